"""Dead letters: every job that will not run again unless somebody wants it to, why, and what can be done about it.

Reads walk the dead alone, by the small indexes that only they are in, however many jobs completed beside them. A replay is one guarded
update: of two at once, one finds nothing. Many are replayed in chunks of one statement each, which gives every row its own due time, so a
throttled replay needs no process that stays: whoever asked for it may die at any moment, and each row is either dead or on its way, once.
Connection errors are ``LedgerUnavailable`` at ``Database.connection``.
"""

from __future__ import annotations

import json
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from zlib import crc32

from psycopg import Connection
from psycopg.errors import UniqueViolation

from ledger import batches, read
from ledger.arrays import plain
from ledger.job import DeadGroup, DeadLetter, DeadPage
from ledger.keys import move_period_key
from ledger.rekeying import Keys, KeyTaken, LockedJob, PeriodKey, rekey_ended
from ledger.sql import SQL

Conn = Connection[Any]

#: Rows that one statement replays, or removes. A replay of so many is all or nothing, and takes some seconds at most.
REPLAY_CHUNK: Final = 10_000
DISCARD_CHUNK: Final = 1_000
#: How often a chunk is tried in which a key was taken at that very moment.
ROUNDS: Final = 5

_CURSOR = struct.Struct(">BqQ")
_CURSOR_VERSION = 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


#: Why jobs die, as far as it is Switchyard that says so; an error class derived from ``Permanent`` may have a ``dead_reason`` of its own.
REASONS: Final = (
    "max_retries", "permanent", "time_limit", "result_unstorable", "worker_lost", "expired", "unknown_actor", "undecryptable", "untold",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Which dead letters are meant; what is None leaves them all."""

    actor: str | None = None
    queue: str | None = None
    #: Why they are dead, e.g. ``max_retries``.
    reason: str | None = None
    #: The group of failures of one kind.
    fingerprint: str | None = None
    error_type: str | None = None
    #: A part of the error's text or type, or of the actor's name, in any case.
    search: str | None = None
    #: They died at this time or later, and before that; aware.
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("actor", "queue", "reason", "fingerprint", "error_type", "search"):
            # A variable that nobody filled in; as a search it would find every dead letter.
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: give it a value, or leave it out")
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and moment.utcoffset() is None:
                raise ValueError(f"{name} {moment.isoformat()} is naive: give it a time zone")

    def where(self) -> tuple[str, dict[str, Any]]:
        """The condition, in words of this module's own, and the values bound to it."""
        # Literal, so that the partial indexes of dead rows serve.
        conditions, values = ["state = 'dead'"], dict[str, Any]()
        for column, value in (
            ("actor", self.actor),
            ("queue", self.queue),
            ("dead_reason", self.reason),
            ("fingerprint", self.fingerprint),
            ("error_type", self.error_type),
        ):
            if value is not None:
                conditions.append(f"{column} = %({column})s")
                values[column] = value
        if self.search is not None:
            conditions.append("(error ILIKE %(search)s OR error_type ILIKE %(search)s OR actor ILIKE %(search)s)")
            values["search"] = f"%{_literally(self.search)}%"
        if self.since is not None:
            conditions.append("finished_at >= %(since)s")
            values["since"] = self.since
        if self.until is not None:
            conditions.append("finished_at < %(until)s")
            values["until"] = self.until
        return " AND ".join(conditions), values


class DeadNotice(NamedTuple):
    """What is told of one death: the job as it was then, and where its payload is (under its id in the ledger), never the payload."""

    job_id: int
    id: str
    actor: str
    queue: str
    generation: int
    reason: str | None
    error_type: str | None
    error: str | None
    fingerprint: str
    attempts: int
    failures: int
    lost: int
    created_at: datetime
    died_at: datetime
    hook: str | None

    def context(self) -> dict[str, Any]:
        """The same as JSON has it: what a hook is given, and what stands in a broker's dead-letter place."""
        found = self._asdict()
        del found["job_id"], found["hook"]
        return found | {name: found[name].astimezone(UTC).isoformat() for name in ("created_at", "died_at")}

    @property
    def key(self) -> str:
        """The name of this very death: another replay may die as well."""
        return f"{self.id}:{self.generation}"

    @property
    def text(self) -> str:
        """The context as JSON text, always the same."""
        return json.dumps(self.context(), ensure_ascii=False, separators=(",", ":"))


class Chunk(NamedTuple):
    """What a chunk of a replay came to: how many rows are on their way, when the whole replay began, and when the last row is due."""

    replayed: int
    base: datetime | None
    last_due: datetime | None


class _Stranded(Exception):
    """Jobs whose workflow is not whole any more: their replay is rolled back."""

    def __init__(self, message_ids: Iterable[str] = ()) -> None:
        super().__init__()
        self.message_ids = set(message_ids)


def page(connection: Conn, wanted: DeadFilter, *, limit: int = read.DEFAULT_LIMIT, after: str | None = None) -> DeadPage:
    """List the dead letters that are meant, the latest death first.

    Parameters:
        limit: letters on the page, 1 to 200.
        after: ``next`` of the page before. Later deaths do not shift the pages.

    Raises:
        ValueError: a limit out of range, or an ``after`` that no page gave out.
    """
    _check_limit(limit)
    where, values = wanted.where()
    values["limit"] = limit + 1
    if after is not None:
        where += " AND (finished_at, id) < (%(after_time)s, %(after_id)s)"
        values["after_time"], values["after_id"] = _cursor_place(after)
    rows = read.job_rows(connection, [where], values, "ORDER BY finished_at DESC, id DESC LIMIT %(limit)s")
    more, rows = len(rows) > limit, rows[:limit]
    found = {"message_ids": [row["message_id"] for row in rows]}
    tracebacks = dict(connection.execute(SQL["dead_tracebacks"], found).fetchall()) if rows else {}
    letters = tuple(DeadLetter(job=read.job_of(row), traceback=tracebacks.get(row["message_id"])) for row in rows)
    return DeadPage(letters=letters, next=_cursor(rows[-1]["finished_at"], rows[-1]["id"]) if more else None)


def groups(connection: Conn, wanted: DeadFilter, *, limit: int = read.DEFAULT_LIMIT) -> list[DeadGroup]:
    """Group the dead letters that are meant by what they have in common, the largest group first.

    Raises:
        ValueError: a limit out of range (1 to 200 groups).
    """
    _check_limit(limit)
    where, values = wanted.where()
    query = f"WITH dead AS ({SQL['dead_rows']} WHERE {where}) {SQL['dead_groups']}"
    rows = connection.execute(query.encode(), values | {"limit": limit}, prepare=False).fetchall()
    return [
        DeadGroup(
            fingerprint=row[0], count=row[1], actor=row[2], reason=row[3], error_type=row[4], error=row[5], first_at=row[6],
            last_at=row[7], example=row[8],
        )
        for row in rows
    ]  # fmt: skip


def count(connection: Conn, wanted: DeadFilter) -> int:
    """Count the dead letters that are meant."""
    where, values = wanted.where()
    query = f"WITH dead AS ({SQL['dead_rows']} WHERE {where}) {SQL['dead_count']}"
    return int(next(iter(connection.execute(query.encode(), values, prepare=False)))[0])


def chunks(connection: Conn, wanted: DeadFilter, *, size: int, limit: int | None = None) -> Iterator[list[int]]:
    """The rows that are meant, by id, in the order in which they died, ``size`` at a time; each chunk is read when it is asked for.

    What dies meanwhile, be it once more, is not among them.
    """
    place: tuple[datetime, int] | None = None
    begun = next(iter(connection.execute(SQL["dead_clock"])))[0]
    left = limit
    while left is None or left > 0:
        where, values = wanted.where()
        where += " AND finished_at <= %(begun)s"
        values["limit"], values["begun"] = size if left is None else min(size, left), begun
        if place is not None:
            where += " AND (finished_at, id) > (%(after_time)s, %(after_id)s)"
            values["after_time"], values["after_id"] = place
        query = f"{SQL['dead_rows']} WHERE {where} ORDER BY finished_at, id LIMIT %(limit)s"
        rows = connection.execute(query.encode(), values, prepare=False).fetchall()
        if rows:
            yield [row[0] for row in rows]
            place = rows[-1][2], rows[-1][0]
        if len(rows) < values["limit"]:
            return
        left = None if left is None else left - len(rows)


def replay(connection: Conn, message_id: str, *, queue: str | None = None) -> bool:
    """Begin a new generation of a dead or cancelled job, due at once. False: it is neither, or its key is in use (``key_holder``), or it is
    a step and what it waits for was removed, or retention has begun with its workflow (``batches.was_pruned``).

    Parameters:
        queue: the queue that it goes to; None: its own.
    """
    values = {"message_id": message_id, "queue": queue, "payload": None}
    try:
        # Of a caller's transaction nothing is lost by the refusal.
        with connection.transaction():
            done = connection.execute(SQL["replay"], values).fetchone() is not None
            if done and batches.wait_again(connection, [message_id]):
                raise _Stranded
            return done
    except (UniqueViolation, _Stranded):
        return False


def replay_changed(
    connection: Conn,
    job: LockedJob,
    message_id: str,
    *,
    payload: str,
    keys: Keys | None,
    period: PeriodKey | None,
    queue: str | None = None,
) -> bool:
    """``replay`` a job with other arguments, and as what it counts as with them; its row is locked. False: its workflow is not whole any
    more, as with ``replay``.

    Parameters:
        payload: JSON text instead of what was sent.
        keys: all that it counts as; None: as before.
        period: how the key that it has for a period is to change; None: it stays.

    Raises:
        KeyTaken: another job of its actor has its key; nothing was changed.
    """
    try:
        with connection.transaction():
            if keys is not None:
                rekey_ended(connection, job.id, keys)
            if period is not None:
                move_period_key(connection, period)
            connection.execute(SQL["replay"], {"message_id": message_id, "queue": queue, "payload": payload})
            if batches.wait_again(connection, [message_id]):
                raise _Stranded
    except UniqueViolation:
        raise KeyTaken(job.actor, (job if keys is None else keys).unique_key or "") from None
    except _Stranded:
        return False
    return True


def key_holder(connection: Conn, message_id: str) -> str | None:
    """The id of the active job that has the key of this one; None: nobody has it, or it has none."""
    row = connection.execute(SQL["key_holder"], {"message_id": message_id}).fetchone()
    return None if row is None else str(row[0])


def replay_rows(
    connection: Conn,
    ids: Sequence[int],
    *,
    interval: float = 0.0,
    ahead: float = 0.0,
    base: datetime | None = None,
    queue: str | None = None,
) -> Chunk:
    """Replay one chunk of dead rows in their order, all or none of those that can be; those whose workflow is not whole any more cannot.

    Parameters:
        interval: seconds from one row's due time to the next one's.
        ahead: seconds from ``base`` to the first one's.
        base: when the whole replay began, on the database's clock; None: now.
        queue: the queue that they go to; None: each its own.
    """
    without: list[str] = []
    values = {"ids": plain(ids), "interval": interval, "ahead": ahead, "base": base, "queue": queue, "without": without}
    round_ = 1
    while True:
        try:
            with connection.transaction():
                rows = connection.execute(SQL["replay_rows"], values, prepare=False).fetchall()
                placed = [row[3] for row in rows if row[3] is not None]
                if placed and (lost := batches.wait_again(connection, placed)):
                    raise _Stranded(lost)
                break
        except _Stranded as error:
            # Each time some rows fewer.
            without += error.message_ids
        except UniqueViolation:
            # A key was taken between the look and the write: the next look sees it.
            if round_ == ROUNDS:
                raise
            round_ += 1
    return Chunk(len(rows), rows[0][1] if rows else base, max((row[2] for row in rows), default=None))


def discard(connection: Conn, message_id: str) -> tuple[str, str, str, str | None] | None:
    """Remove a dead or cancelled job with its attempts and log; what waited for its completion, or that of a batch it was in, is cancelled.
    Returns its actor, queue, state and reason; None: it is neither."""
    with connection.transaction():
        gone = connection.execute(SQL["discard"], {"message_id": message_id}).fetchone()
        if gone is None:
            return None
        *said, batch = gone
        batches.cancel_hopeless(connection, [(message_id, batch)])
    actor, queue, state, reason = said
    return actor, queue, state, reason


def discard_rows(connection: Conn, ids: Sequence[int]) -> int:
    """Remove one chunk of dead rows with their attempts and logs; what waited for them, or for a batch they were in, is cancelled.
    Returns how many."""
    with connection.transaction():
        gone = connection.execute(SQL["discard_rows"], {"ids": plain(sorted(ids))}).fetchall()
        if gone:
            batches.cancel_hopeless(connection, gone)
    return len(gone)


def take_hooks(connection: Conn, actors: Sequence[str], limit: int) -> list[DeadNotice]:
    """Take notices whose hook is one of ``actors``; they are gone when the caller's transaction is committed."""
    rows = connection.execute(SQL["take_hooks"], {"actors": list(actors), "limit": limit}).fetchall()
    return sorted(DeadNotice(*row) for row in rows)


def take_for_broker(connection: Conn, broker: str, *, own: str, limit: int) -> list[DeadNotice]:
    """Take notices that go to a broker's dead-letter place; they are gone when the caller's transaction is committed.

    Parameters:
        own: the broker of the caller's settings, for queues that have no route yet.
    """
    rows = connection.execute(SQL["take_for_broker"], {"broker": broker, "own": own, "limit": limit}).fetchall()
    return sorted(DeadNotice(*row) for row in rows)


def forget_notices(connection: Conn, keep: timedelta, *, now: object = None) -> list[tuple[str, str | None]]:
    """Give up notices older than ``keep``. Returns the consumer and the hook of each."""
    rows = connection.execute(SQL["forget_notices"], {"keep": keep.total_seconds(), "now": now}).fetchall()
    return [(row[0], row[1]) for row in rows]


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= read.MAX_LIMIT:
        raise ValueError(f"limit {limit} is out of range: 1 to {read.MAX_LIMIT}")


def _literally(text: str) -> str:
    """A text of which no character is a pattern of ILIKE. NUL is in no text that Postgres has."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("\x00", "�")


def _cursor(at: datetime, row_id: int) -> str:
    body = _CURSOR.pack(_CURSOR_VERSION, (at - _EPOCH) // timedelta(microseconds=1), row_id)
    return urlsafe_b64encode(body + crc32(body).to_bytes(4, "big")).rstrip(b"=").decode()


def _cursor_place(text: str) -> tuple[datetime, int]:
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        version, microseconds, row_id = _CURSOR.unpack(raw[:-4])
        at = _EPOCH + timedelta(microseconds=microseconds)
        valid = version == _CURSOR_VERSION and _cursor(at, row_id) == text
    except (ValueError, OverflowError, struct.error):
        valid = False
    if not valid:
        raise ValueError(f"after {text!r} is not the cursor of a page: pass on what next holds, unchanged")
    return at, row_id
