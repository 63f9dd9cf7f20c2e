"""Keys: which job one stands for, and letting it go.

A key of a sender (``idempotency_key``) stands for its job until it expires; one of an actor (``unique_key``) while the job is active or
for a period. Both are found by the actor's name and the key.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from control import access
from ledger import keys
from ledger.keys import KeyBinding

Kind = Literal["idempotency", "unique"]
KINDS: Final = get_args(Kind)


def find_by_key(actor: str, key: str, *, kind: Kind = "idempotency") -> KeyBinding | None:
    """Say which job a key stands for; None: it is free.

    Parameters:
        actor: the actor's name; every actor has keys of its own.
        kind: ``"unique"`` for a key of the actor's ``unique_key``.

    Raises:
        ValueError: there is no such kind of key.
        LedgerUnavailable: Postgres did not answer.
    """
    _check(kind)
    return access.ask(lambda connection: keys.find(connection, kind, actor, key))


def forget_key(actor: str, key: str, *, kind: Kind = "idempotency") -> bool:
    """Make a key free: the next send with it makes a new job. The job it stood for goes on. False: it was free.

    Raises:
        ValueError, LedgerUnavailable: as ``find_by_key``.
    """
    _check(kind)
    return access.ask(lambda connection: keys.forget(connection, kind, actor, key))


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown: {' or '.join(KINDS)}")
