"""Secret arguments of jobs that are stored: keeping them when a job is changed, and changing their key.

A rotation encrypts what waits, or is dead or cancelled, anew with the first key of SECRET_KEYS. In order: put the new key in front of the
old one in SECRET_KEYS everywhere, rotate, and take the old one away once nothing is left. Values are decrypted in this process alone, and
written if the row's text is still what was read: a job that is claimed or changed meanwhile is passed by. A process that dies in between
has done some of it; the next run does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from control import access
from errors import PayloadError, SecretUnreadable, SettingsError
from ledger.database import BoundedConnection
from ledger.sealed import MARK, holds_sealed, is_sealed, masked, places_of, sealed_values
from ledger.sql import SQL
from runtime.secrets import Keyring

#: Rows of one page, and of one commit.
PAGE: Final = 500


@dataclass(slots=True)
class Rotation:
    """How far a rotation is. ``unreadable`` are jobs that no key of SECRET_KEYS opens; ``running`` may wait again with their old key."""

    looked_at: int = 0
    rotated: int = 0
    unreadable: int = 0
    running: int = 0
    #: Changed or claimed by others meanwhile.
    missed: int = 0


def kept_secrets(
    actor: str,
    payload: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    message_id: str,
    keys: tuple[bytes, ...],
) -> tuple[list[Any], dict[str, Any]]:
    """New arguments of a stored job, its secrets sealed where they were before; a mask, as readers are shown it, keeps what is there.

    What an actor keeps secret is known where it is declared; the command line goes by what the job has already.

    Parameters:
        payload: the job's arguments as they are stored.

    Raises:
        PayloadError: a secret would be stored for all to read, since it is given in another place or there is no key.
    """
    ring = Keyring(keys)

    def kept(before: Any, value: Any) -> Any:
        # What was shown, be it a list of results that it was given one by one.
        if holds_sealed(before) and value == masked(before):
            return before
        field = _field(actor, before)
        if field is None or holds_sealed(value):
            return value
        if not ring:
            raise PayloadError(actor, field, "is secret, and SECRET_KEYS is not set here")
        return ring.seal(actor, field, value, message_id)

    before = [*payload["args"], *(None for _ in args)]
    known = {field: value for value in (*payload["args"], *payload["kwargs"].values()) if (field := _field(actor, value))}
    new_args = [kept(before[place], value) for place, value in enumerate(args)]
    new_kwargs = {name: kept(known.get(name), value) for name, value in kwargs.items()}
    found = {field for value in (*new_args, *new_kwargs.values()) if (field := _field(actor, value))}
    if missing := sorted(known.keys() - found):
        reason = "is secret in this job; give it where it was, or change the job in a program that imports the actor"
        raise PayloadError(actor, missing[0], reason)
    return new_args, new_kwargs


def _field(actor: str, value: Any) -> str | None:
    """The secret argument of this actor that a stored value is; None: it is none."""
    if is_sealed(value) and (value["actor"], value["field"]) in places_of(value):
        return value["field"]
    return next((field for envelope in sealed_values(value) for one, field in places_of(envelope) if one == actor), None)


def rotate_secrets(
    keys: tuple[bytes, ...], *, dry_run: bool = False, progress: Callable[[Rotation], None] | None = None
) -> Rotation:
    """Encrypt the secrets of every job that may run yet, or again, with the first key.

    Parameters:
        keys: those of the settings (``settings().secret_key_bytes``).
        dry_run: only count.
        progress: called after every page.

    Raises:
        SettingsError: SECRET_KEYS is not set.
        LedgerUnavailable: Postgres did not answer; what was done is done.
    """
    if not keys:
        raise SettingsError(
            "SECRET_KEYS", "is not set, so there is no key to encrypt with; `switchyard secrets new-key` prints one"
        )
    ring, found, after = Keyring(keys), Rotation(), 0
    while True:
        at = after
        after = access.ask(lambda connection: _page(connection, ring, found, at, dry_run))  # noqa: B023 (called at once)
        if progress is not None:
            progress(found)
        if after == at:
            rows = access.ask(lambda connection: connection.execute(SQL["sealed_and_running"]).fetchall())
            found.running = sum(any(_is_stale(text, ring) for text in row) for row in rows)
            return found


def _page(connection: BoundedConnection, ring: Keyring, found: Rotation, after: int, dry_run: bool) -> int:
    """One page of the walk. Returns the id to go on after."""
    rows = connection.execute(SQL["sealed_jobs"], {"after": after, "limit": PAGE}).fetchall()
    stale: list[tuple[int, str, str | None, str]] = []
    unreadable = 0
    for id_, _, payload, options in rows:
        try:
            texts = _resealed(payload, ring), None if options is None else _resealed(options, ring)
        except SecretUnreadable:
            unreadable += 1
            continue
        if texts != (payload, options):
            stale.append((id_, *texts, payload))
    done = len(stale)
    if stale and not dry_run:
        ids, payloads, options_, read = map(list, zip(*stale, strict=True))
        parameters = {"ids": ids, "payloads": payloads, "options": options_, "read": read}
        done = len(connection.execute(SQL["reseal_jobs"], parameters).fetchall())
    found.looked_at += len(rows)
    found.unreadable += unreadable
    found.rotated += done
    found.missed += len(stale) - done
    return int(rows[-1][0]) if rows else after


def _is_stale(text: str | None, ring: Keyring) -> bool:
    return text is not None and not all(map(ring.is_fresh, sealed_values(json.loads(text))))


def _resealed(text: str, ring: Keyring) -> str:
    """The JSON text with every stale value sealed anew; whatever else stands in it stays as it is, digit by digit."""
    for envelope in sealed_values(json.loads(text)):
        if not ring.is_fresh(envelope):
            actor, field = envelope["actor"], envelope["field"]
            fresh = ring.seal(actor, field, ring.open(actor, field, envelope), salt=envelope[MARK])
            text = text.replace(envelope[MARK], fresh[MARK])
    return text
