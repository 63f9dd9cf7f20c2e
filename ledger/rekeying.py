"""What a job that is stored counts as, once its arguments are others: its unique key and its limits' keys, columns of its row.

    edit        of a job that waits                          ``ledger.control``
    debounce    a later send replaces what a job waits with  ``ledger.keys``
    replay      of a job that has ended                      ``ledger.dead``

Each reads and locks the row, has the keys worked out, and writes them within that transaction. Whoever leaves a line wakes the next in it,
last of all: who holds a limit's key waits for no row.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.errors import UniqueViolation

from errors import OptionError
from ledger.sql import SQL

Conn = Connection[Any]


class Keys(NamedTuple):
    """What a job counts as: columns of its row, worked out of its arguments."""

    unique_key: str | None = None
    rate_key: str | None = None
    rate_cost: int | None = None
    concurrency_key: str | None = None
    fair_key: str | None = None
    fair_weight: float | None = None


class PeriodKey(NamedTuple):
    """The key of its actor's that a job (``message_id``) has for a period, and what it is to be; None: free."""

    actor: str
    message_id: str
    key: str
    to: str | None


class KeyTaken(Exception):
    """Another job has the key that a change would give to this one; nothing was changed."""

    def __init__(self, actor: str, key: str) -> None:
        super().__init__(f"{actor}: {key}")
        self.actor = actor
        self.key = key


class LockedJob(NamedTuple):
    """A job that is about to get other arguments, or to be changed in another way; its row is locked."""

    id: int
    actor: str
    queue: str
    payload: dict[str, Any]
    options: dict[str, Any] | None
    #: On the database's clock.
    now: datetime
    #: What it counts as.
    unique_key: str | None
    rate_key: str | None
    concurrency_key: str | None
    fair_key: str | None


def lock_waiting(connection: Conn, message_id: str) -> LockedJob | None:
    """Read and lock a waiting job, within the caller's transaction. None: it is running, or has ended, or is unknown."""
    row = connection.execute(SQL["lock_waiting"], {"message_id": message_id}).fetchone()
    return None if row is None else LockedJob(*row)


def lock_ended(connection: Conn, message_id: str) -> LockedJob | None:
    """Read and lock a dead or cancelled job, within the caller's transaction. None: it is neither, or is unknown."""
    row = connection.execute(SQL["lock_ended"], {"message_id": message_id}).fetchone()
    return None if row is None else LockedJob(*row)


def rekey(connection: Conn, id_: int, actor: str, new: Keys) -> str | None:
    """Have a waiting job count as something else. Returns the key whose line it had a turn in and has left (``wake_line``); None: none.

    Raises:
        KeyTaken: another job has the unique key.
    """
    try:
        row = connection.execute(SQL["rekey"], {"id": id_, **new._asdict()}).fetchone()
    except UniqueViolation:
        raise KeyTaken(actor, new.unique_key or "") from None
    return None if row is None else row[0]


def rekey_ended(connection: Conn, id_: int, new: Keys) -> None:
    """The same for a dead or cancelled job, which holds no key and is in no line before it is replayed."""
    connection.execute(SQL["rekey_ended"], {"id": id_, **new._asdict()})


def wake_line(connection: Conn, key: str) -> None:
    """A turn for a slot of this key was given up: whoever is next has it."""
    connection.execute(SQL["wake_line"], {"key": key})


def refuse_without_actor(job: LockedJob, period_key: str | None, way: str) -> None:
    """Refuse other arguments for a job that has a key which its actor may have made of the old ones, in a process that does not know it.

    Parameters:
        period_key: the key that the job has for a period.
        way: what to do instead.

    Raises:
        OptionError: it has one, which the text names.
    """
    own = (job.options or {}).keys()
    for option, key, said in (
        ("unique_key", job.unique_key or period_key, {"unique_key"}),
        ("rate_limit_key", job.rate_key, {"rate_limit_key", "rate_limit_cost"}),
        ("concurrency_key", job.concurrency_key, {"concurrency_key"}),
        ("fair_key", job.fair_key, {"fair_key"}),
    ):
        if key is not None and not said <= own:
            reason = f"is made of the arguments, and this process does not know the actor; {way}. Nothing was changed"
            raise OptionError(job.actor, option, reason)
