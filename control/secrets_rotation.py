"""Changing the key of secret arguments: everything in the ledger that may be read yet is encrypted anew with the first key of SECRET_KEYS.

    batches   the callbacks that they keep until they send them; first, so that whatever they send afterwards is new
    jobs      arguments and options of those that wait, are dead or cancelled; results of all; not what runs: its worker has the old text
    keys      fingerprints of sends with an idempotency key, which are made with a key derived from SECRET_KEYS
    a look    at all of it in one snapshot, what runs included; what was written meanwhile by jobs that ran is done again

In order: put the new key in front of the old one in SECRET_KEYS everywhere, rotate, and take the old one away once nothing is left.
Nothing else holds encrypted texts: triggers, dead-letter places and notices carry none, schedules refuse them, and arguments of completed
jobs are never read again. Values are decrypted in this process alone, a page and a commit at a time, and written if the row's text is still
what was read: a row that is claimed or changed meanwhile is passed by. A process that dies in between has done some of it; the next run
does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from control import access
from errors import SecretUnreadable, SettingsError
from ledger.database import BoundedConnection
from ledger.sealed import MARK, Envelope, replaced, sealed_values
from ledger.sql import SQL
from runtime.fingerprint import fingerprint_keys, fingerprints
from runtime.secrets import Keyring
from settings import Settings

#: Rows of one page, and of one commit.
PAGE: Final = 500
#: How often it walks again over what others wrote in the meantime, before it leaves that to the next run.
ROUNDS: Final = 3
#: How long the search for one page may take, in seconds: there is no index for it.
SEARCH_TIMEOUT: Final = 60.0

_Text = str | None
_READ_ONLY: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


@dataclass(slots=True)
class Rotation:
    """How far a rotation is."""

    #: Jobs that hold something secret, and how many of them were encrypted anew.
    looked_at: int = 0
    rotated: int = 0
    #: Batches whose callbacks do.
    batches: int = 0
    batches_rotated: int = 0
    #: Idempotency keys that have not expired, and how many of them were given a new fingerprint.
    keys: int = 0
    keys_rotated: int = 0
    #: Keys whose fingerprint cannot be made anew, for the job was changed or removed: until they expire, a repeated send may need an older
    #: key to be recognised. None with a FINGERPRINT_KEY.
    keys_left: int = 0
    #: Jobs and batches that no key of SECRET_KEYS opens.
    unreadable: int = 0
    #: Jobs that run, and may wait again with their old key.
    running: int = 0
    #: Changed or claimed by others meanwhile, and written with the old key again.
    missed: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing needs an older key any more."""
        return not (self.missed or self.running or self.unreadable or self.keys_left)


def rotate_secrets(settings: Settings, *, dry_run: bool = False, progress: Callable[[Rotation], None] | None = None) -> Rotation:
    """Encrypt everything that is secret and may be read yet with the first key.

    Parameters:
        settings: whose SECRET_KEYS, and FINGERPRINT_KEY.
        dry_run: only count.
        progress: called after every page.

    Raises:
        SettingsError: SECRET_KEYS is not set.
        LedgerUnavailable: Postgres did not answer; what was done is done.
    """
    if not settings.secret_key_bytes:
        raise SettingsError(
            "SECRET_KEYS", "is not set, so there is no key to encrypt with; `switchyard secrets new-key` prints one"
        )
    walk = _Walk(settings, dry_run, progress or (lambda _: None))
    for _ in range(1 if dry_run else ROUNDS):
        walk.over_everything()
        walk.look_again()
        if not walk.found.missed:
            break
    return walk.found


class _Walk:
    """A run; each page is one function on a connection, and may be repeated."""

    def __init__(self, settings: Settings, dry_run: bool, progress: Callable[[Rotation], None]) -> None:
        self.found = Rotation()
        self._ring = Keyring(settings.secret_key_bytes)
        self._prints = fingerprint_keys(settings)
        #: Whether a fingerprint that nobody can make again may be one of an older key.
        self._in_doubt = len(settings.secret_key_bytes) > 1 and settings.fingerprint_key is None
        self._dry_run = dry_run
        self._progress = progress

    def over_everything(self) -> None:
        """Rewrite what is there; what was counted before counts no more, but for what was rewritten."""
        found = self.found
        found.looked_at = found.batches = found.keys = found.keys_left = found.unreadable = 0
        number: int | None = 0
        while number is not None:
            number = self._ask(lambda connection, after=number: self._batches(connection, after))
        row: int | None = 0
        while row is not None:
            row = self._ask(lambda connection, after=row: self._jobs(connection, after))
        key: tuple[str, str] | None = ("", "")
        while key is not None:
            key = self._ask(lambda connection, after=key: self._keys(connection, after))

    def look_again(self) -> None:
        """Count what is not encrypted with the first key, in one snapshot."""
        running, others = access.database().run(self._left, SEARCH_TIMEOUT)
        self.found.running = running
        # A dry run has left all of it.
        self.found.missed = 0 if self._dry_run else others

    def _ask(self, page: Callable[..., Any]) -> Any:
        after = access.database().run(page, SEARCH_TIMEOUT)
        self._progress(self.found)
        return after

    def _batches(self, connection: BoundedConnection, after: int) -> int | None:
        rows = connection.execute(SQL["sealed_batches"], {"after": after, "limit": PAGE}).fetchall()
        stale: list[tuple[str, tuple[_Text, ...], tuple[_Text, ...]]] = []
        for _, id_, *texts in rows:
            stale += self._changed(id_, texts, _callbacks_of)
        done = len(stale)
        if stale and not self._dry_run:
            (complete, success, death), (complete_read, success_read, death_read) = _columns(stale, 3)
            parameters = {
                "ids": [id_ for id_, *_ in stale], "on_complete": complete, "on_success": success, "on_death": death,
                "complete_read": complete_read, "success_read": success_read, "death_read": death_read,
            }  # fmt: skip
            with connection.transaction():
                connection.execute(SQL["lock_batches"], {"ids": parameters["ids"]}).fetchall()
                done = len(connection.execute(SQL["reseal_batches"], parameters).fetchall())
        self.found.batches += len(rows)
        self.found.batches_rotated += done
        return rows[-1][0] if rows else None

    def _jobs(self, connection: BoundedConnection, after: int) -> int | None:
        rows = connection.execute(SQL["sealed_jobs"], {"after": after, "limit": PAGE, "running": False}).fetchall()
        stale: list[tuple[int, tuple[_Text, ...], tuple[_Text, ...]]] = []
        for id_, _, *texts in rows:
            stale += self._changed(id_, texts, _values_of)
        done = len(stale)
        if stale and not self._dry_run:
            (payloads, options, results), (payload_read, options_read, result_read) = _columns(stale, 3)
            parameters = {
                "ids": [id_ for id_, *_ in stale], "payloads": payloads, "options": options, "results": results,
                "payload_read": payload_read, "options_read": options_read, "result_read": result_read,
            }  # fmt: skip
            with connection.transaction():
                connection.execute(SQL["lock_in_order"], {"ids": parameters["ids"]}).fetchall()
                done = len(connection.execute(SQL["reseal_jobs"], parameters).fetchall())
        self.found.looked_at += len(rows)
        self.found.rotated += done
        return rows[-1][0] if rows else None

    def _changed(self, id_: Any, texts: Sequence[_Text], values_of: Callable[[str], Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
        """The row with its new texts and those that were read; nothing, if it is fresh, or cannot be read."""
        try:
            new = tuple(None if text is None else _resealed(text, values_of(text), self._ring) for text in texts)
        except SecretUnreadable:
            self.found.unreadable += 1
            return
        if new != tuple(texts):
            yield id_, new, tuple(texts)

    def _keys(self, connection: BoundedConnection, after: tuple[str, str]) -> tuple[str, str] | None:
        parameters = {"scope": after[0], "key": after[1], "limit": PAGE}
        rows = connection.execute(SQL["fingerprinted_keys"], parameters).fetchall()
        stale: list[tuple[str, str, str, str]] = []
        for scope, key, text, payload, options in rows:
            state = self._fingerprint(scope, text, payload, options)
            if state is None:
                self.found.keys_left += self._in_doubt
            elif state != text:
                stale.append((scope, key, text, state))
        if stale and not self._dry_run:
            scopes, keys, read, new = map(list, zip(*stale, strict=True))
            connection.execute(SQL["renew_fingerprints"], {"scopes": scopes, "keys": keys, "read": read, "new": new}).fetchall()
        self.found.keys += len(rows)
        self.found.keys_rotated += len(stale)
        return (rows[-1][0], rows[-1][1]) if rows else None

    def _fingerprint(self, actor: str, text: str, payload: _Text, options: _Text) -> str | None:
        """What a send's fingerprint has to be; None: nobody can tell."""
        if payload is None:
            return None
        try:
            opened = [replaced(json.loads(part or "{}"), self._open) for part in (payload, options)]
        except SecretUnreadable:
            return None
        first, *others = fingerprints(self._prints, actor, json.dumps(opened[0]), opened[1])
        # The last one is made without any key.
        if text in (first, others[-1] if others else first):
            return text
        return first if text in others else None

    def _open(self, envelope: Envelope) -> Any:
        return self._ring.open(envelope["actor"], envelope["field"], envelope)

    def _left(self, connection: BoundedConnection) -> tuple[int, int]:
        """Jobs that run with an older key, and whatever else has one. What cannot be read was counted before."""
        running = others = 0
        with connection.transaction():
            connection.execute(_READ_ONLY)
            number, row = 0, 0
            while rows := connection.execute(SQL["sealed_batches"], {"after": number, "limit": PAGE}).fetchall():
                others += sum(self._is_stale(texts, _callbacks_of) for _, _, *texts in rows)
                number = rows[-1][0]
            while rows := connection.execute(SQL["sealed_jobs"], {"after": row, "limit": PAGE, "running": True}).fetchall():
                for _, state, *texts in rows:
                    stale = self._is_stale(texts, _values_of)
                    running += stale and state == "running"
                    others += stale and state != "running"
                row = rows[-1][0]
        return running, others

    def _is_stale(self, texts: Sequence[_Text], values_of: Callable[[str], Iterable[Any]]) -> bool:
        try:
            return any(text is not None and _resealed(text, values_of(text), self._ring) != text for text in texts)
        except SecretUnreadable:
            return False


def _values_of(text: str) -> Iterator[Any]:
    """What is stored in a job's column."""
    yield json.loads(text)


def _callbacks_of(text: str) -> Iterator[Any]:
    """What a batch keeps of its callbacks: rows, whose arguments and options are texts in them."""
    for row in json.loads(text):
        for part in (row["payload"], row["options"]):
            if part is not None:
                yield json.loads(part)


def _columns(
    rows: Sequence[tuple[Any, tuple[_Text, ...], tuple[_Text, ...]]], count: int
) -> tuple[list[list[_Text]], list[list[_Text]]]:
    """The new texts and those that were read, by column."""
    new = [[texts[place] for _, texts, _ in rows] for place in range(count)]
    return new, [[texts[place] for _, _, texts in rows] for place in range(count)]


def _resealed(text: str, values: Iterable[Any], ring: Keyring) -> str:
    """The text with every stale value of these sealed anew; whatever else stands in it stays as it is, digit by digit. Encrypted texts have
    no character that JSON would write in another way, however deep they stand."""
    for value in values:
        for envelope in sealed_values(value):
            text = text.replace(envelope[MARK], _renewed(envelope, ring)[MARK])
    return text


def _renewed(envelope: Envelope, ring: Keyring) -> Envelope:
    """A sealed value under the first key, and what is sealed within it as well: a callback may keep the message secret that it is given.

    Raises:
        SecretUnreadable: no key of SECRET_KEYS sealed it.
    """

    def inner(found: Envelope) -> Envelope:
        try:
            return _renewed(found, ring)
        except SecretUnreadable:
            # It may be anything that looks like one; whoever could read it cannot do so now either.
            return found

    actor, field = envelope["actor"], envelope["field"]
    value = ring.open(actor, field, envelope)
    new = replaced(value, inner)
    return envelope if ring.is_fresh(envelope) and new == value else ring.seal(actor, field, new, salt=envelope[MARK])
