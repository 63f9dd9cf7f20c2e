"""The read path: what the ledger knows, as the values of ``ledger.job``.

Reads change nothing and lock nothing. They have to stay fast beside millions of completed rows, so lists walk the primary key
from the newest job down (keyset pages, never OFFSET) or use the small partial indexes of the states that are rare; each page
is planned for its very values, never with a generic plan. Filters by actor, queue or tag alone have no index: they are quick
while matches are not rare, and read the table when they are. Connection errors are ``LedgerUnavailable`` at
``Database.connection``, where the connection comes from.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID
from zlib import crc32

from psycopg import Connection
from psycopg.rows import dict_row

from errors import JobNotFound
from ledger.job import Attempt, Count, Counts, HeldJob, Job, LogLine, Page, QueueDepth, Worker
from ledger.sealed import masked
from ledger.sql import SQL
from ledger.states import WAIT_REASONS, WAITING, State, states_named

Conn = Connection[Any]

#: Jobs on a page, and log lines in an answer, unless told otherwise.
DEFAULT_LIMIT: Final = 50
#: The most of either in one answer: a page is built in memory, payloads and results included.
MAX_LIMIT: Final = 200
#: Up to this many rows the completed jobs are counted (some 50 ms), beyond it a sample of this size is scaled up (about 1 % off).
COUNT_CAP: Final = 200_000
#: How far ids and creation times may disagree in order (concurrent inserts, a stepped clock).
CREATION_SKEW: Final = timedelta(minutes=1)

_CURSOR = struct.Struct(">BQ")
_CURSOR_VERSION = 1

#: Columns that are fields of the same name.
_PLAIN: Final = (
    "actor", "queue", "priority", "attempt", "max_attempts", "failures", "lost", "generation", "created_at", "run_at",
    "started_at", "finished_at", "progress", "stage", "result", "error_type", "error", "dead_reason", "wait_reason", "broker",
    "worker", "cancel_requested_at", "idempotency_key", "rate_key", "concurrency_key", "batch_id", "upstream_id", "fingerprint",
    "schedule", "tick_at", "blocked_on",
)  # fmt: skip


def get_job(connection: Conn, message_id: str | UUID) -> Job | None:
    """Read one job; None when no job has this id, which goes for a text that is no UUID as well."""
    uuid = _uuid(message_id)
    if uuid is None:
        return None
    rows = job_rows(connection, ["message_id = %(message_id)s"], {"message_id": uuid})
    return job_of(rows[0]) if rows else None


def exists(connection: Conn, message_id: str | UUID) -> bool:
    """Whether a job has this id."""
    uuid = _uuid(message_id)
    return uuid is not None and connection.execute(SQL["row_id"], {"message_id": uuid}).fetchone() is not None


def list_jobs(
    connection: Conn,
    *,
    state: State | str | Iterable[State | str] | None = None,
    actor: str | None = None,
    queue: str | None = None,
    tag: str | None = None,
    parent_id: str | UUID | None = None,
    batch: str | UUID | None = None,
    wait_reason: str | Iterable[str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    limit: int = DEFAULT_LIMIT,
    after: str | None = None,
) -> Page:
    """List the jobs that meet every given filter, the newest first.

    Parameters:
        state: a state, another queue's word for one (``waiting``, ``failed`` …), or several of these: any of them.
        batch: only the jobs of this batch (a group's ``id``).
        wait_reason: only jobs that wait for this, a word of ``WAIT_REASONS``, or several: any of them. Who waits for a limit may be
            scheduled or pending.
        created_after: not older than this; aware.
        created_before: older than this; aware.
        limit: jobs on the page, 1 to 200.
        after: ``next`` of the page before. Jobs sent meanwhile do not shift the pages.

    Raises:
        ValueError: an unknown state or reason to wait, a limit out of range, a naive time, a parent id that is no UUID, or an ``after``
            that no page gave out.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit {limit} is out of range: 1 to {MAX_LIMIT} jobs on a page")
    where, values = _conditions(
        connection,
        states=None if state is None else _states(state),
        actor=actor,
        queue=queue,
        tag=tag,
        parent_id=parent_id,
        batch=batch,
        wait_reason=wait_reason,
        created_after=created_after,
        created_before=created_before,
    )
    if after is not None:
        where.append("id < %(after)s")
        values["after"] = _cursor_id(after)
    rows = job_rows(connection, where, values | {"limit": limit + 1}, "ORDER BY id DESC LIMIT %(limit)s")
    more = len(rows) > limit
    return Page(jobs=tuple(job_of(row) for row in rows[:limit]), next=_cursor(rows[limit - 1]["id"]) if more else None)


def matching(connection: Conn, *, states: frozenset[State], **filters: Any) -> list[tuple[int, State]]:
    """Every job in one of these states that meets the filters of ``list_jobs`` (and ``batch``): row id and state, in the order of the ids.

    Raises:
        ValueError: as ``list_jobs``.
    """
    where, values = _conditions(connection, states=states, **filters)
    statement = f"{SQL['job_states']} WHERE {' AND '.join(where)} ORDER BY id"
    rows = connection.execute(statement.encode(), values, prepare=False).fetchall()
    return [(id_, State(state)) for id_, state in rows]


def _conditions(
    connection: Conn,
    *,
    states: frozenset[State] | None,
    actor: str | None = None,
    queue: str | None = None,
    tag: str | None = None,
    batch: str | UUID | None = None,
    parent_id: str | UUID | None = None,
    wait_reason: str | Iterable[str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Filters as conditions and the values in them. Raises: ValueError: one of them is wrong."""
    where, values = ["true"], dict[str, Any]()
    if wait_reason is not None:
        values["wait_reasons"] = _wait_reasons(wait_reason)
        where.append("wait_reason = ANY(%(wait_reasons)s::text[])")
        # Nobody else has one, and these have indexes.
        states = WAITING if states is None else states
    if states is not None:
        where.append(_in_states(states))
    for column, value in (("actor", actor), ("queue", queue)):
        if value is not None:
            where.append(f"{column} = %({column})s")
            values[column] = value
    if tag is not None:
        where.append("tags @> %(tags)s::text[]")
        values["tags"] = [tag]
    for name, column, id_ in (("parent_id", "parent_id", parent_id), ("batch", "batch_id", batch)):
        if id_ is not None:
            where.append(f"{column} = %({column})s")
            values[column] = _uuid(id_)
            if values[column] is None:
                raise ValueError(f"{name} {id_!r} is no id (a UUID)")
    for moment in (created_after, created_before):
        if moment is not None and moment.utcoffset() is None:
            raise ValueError(f"time {moment.isoformat()} is naive: give it a time zone")
    # Ids grow with the time of creation, so the times are looked up as ids first, and the walk ends where they end.
    if created_after is not None:
        where.append("created_at >= %(since)s AND id >= %(first)s")
        values |= {"since": created_after, "first": _first_id_from(connection, created_after - CREATION_SKEW)}
    if created_before is not None:
        where.append("created_at < %(until)s AND id < %(last)s")
        values |= {"until": created_before, "last": _first_id_from(connection, created_before + CREATION_SKEW)}
    return where, values


def _wait_reasons(given: str | Iterable[str]) -> list[str]:
    reasons = [given] if isinstance(given, str) else list(given)
    for reason in reasons:
        if reason not in WAIT_REASONS:
            raise ValueError(f"wait_reason {reason!r} is unknown; use {', '.join(WAIT_REASONS)}")
    return reasons


def children(connection: Conn, message_id: str | UUID) -> list[Job]:
    """List the jobs that a job's actor sent, and the pipeline's step after it, the newest first, up to ``MAX_LIMIT``.

    Raises:
        JobNotFound: no job has this id.
    """
    _row_id(connection, message_id)
    values = {"parent_id": _uuid(message_id), "limit": MAX_LIMIT}
    return [
        job_of(row) for row in job_rows(connection, ["parent_id = %(parent_id)s"], values, "ORDER BY id DESC LIMIT %(limit)s")
    ]


def counts(connection: Conn) -> Counts:
    """Count the jobs per queue, actor and state.

    Everything active, dead or cancelled is counted exactly, in time proportional to its number (some 0.3 s per million). The
    completed are counted exactly in a ledger of up to ``COUNT_CAP`` rows and estimated from a sample in a larger one.
    """
    rows = [
        Count(queue=queue, actor=actor, state=State(state), count=count, estimated=False)
        for queue, actor, state, count in connection.execute(SQL["count_unfinished"]).fetchall()
    ]
    return Counts(rows=(*rows, *_completed(connection)))


def _completed(connection: Conn) -> list[Count]:
    size = next(iter(connection.execute(SQL["table_size"])))[0]
    scale = max(1.0, size / COUNT_CAP)
    if scale == 1.0:
        found = connection.execute(SQL["count_completed"]).fetchall()
    else:
        found = connection.execute(SQL["sample_completed"], {"percent": 100 / scale}).fetchall()
    return [
        Count(queue=queue, actor=actor, state=State.COMPLETED, count=round(count * scale), estimated=scale > 1)
        for queue, actor, count in found
    ]


def queue_depths(connection: Conn, *, now: datetime | None = None) -> list[QueueDepth]:
    """Say what is on its way through each queue that holds anything active, by name; ``now`` replaces the clock in tests."""
    rows = connection.execute(SQL["queue_depths"], {"now": now}).fetchall()
    return [
        QueueDepth(queue=queue, pending=pending, scheduled=scheduled, retrying=retrying, running=running, latency=latency)
        for queue, pending, scheduled, retrying, running, latency in rows
    ]


def attempts(connection: Conn, message_id: str | UUID) -> list[Attempt]:
    """List the executions of a job in order, the running one and the one that completed included. Of each outcome the first ten and the
    latest ninety or so are kept; the others are counted (``Attempt.omitted``).

    Raises:
        JobNotFound: no job has this id.
    """
    rows = connection.execute(SQL["job_attempts"], {"id": _row_id(connection, message_id)}).fetchall()
    return [
        Attempt(
            attempt=row[0], generation=row[1], worker=row[2], started_at=row[3], finished_at=row[4], outcome=row[5],
            error_type=row[6], error=row[7], traceback=row[8], omitted=row[9],
        )
        for row in rows
    ]  # fmt: skip


def logs(connection: Conn, message_id: str | UUID, *, after: int = 0, limit: int = MAX_LIMIT) -> list[LogLine]:
    """List the lines of a job's log, the oldest first.

    Parameters:
        after: only lines written after the one with this id.
        limit: lines, 1 to 200.

    Raises:
        JobNotFound: no job has this id.
        ValueError: the limit is out of range.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit {limit} is out of range: 1 to {MAX_LIMIT} lines")
    parameters = {"job_id": _row_id(connection, message_id), "after": after, "limit": limit}
    rows = connection.execute(SQL["job_logs"], parameters).fetchall()
    return [LogLine(id=row[0], generation=row[1], attempt=row[2], at=row[3], line=row[4]) for row in rows]


def workers(connection: Conn, *, now: datetime | None = None) -> list[Worker]:
    """List the living worker processes, the oldest first, with what they hold; ``now`` replaces the clock in tests."""
    held: dict[str, list[HeldJob]] = defaultdict(list)
    for worker, id_, actor, queue, attempt, started_at in connection.execute(SQL["held_jobs"]).fetchall():
        held[worker].append(HeldJob(id=id_, actor=actor, queue=queue, attempt=attempt, started_at=started_at))
    rows = connection.execute(SQL["living_workers"], {"now": now}).fetchall()
    return [
        Worker(
            id=row[0], host=row[1], pid=row[2], broker=row[3], queues=tuple(row[4]), threads=row[5], running=row[6],
            counters=row[7], started_at=row[8], beat_at=row[9], lease=row[10], jobs=tuple(held[row[0]]), version=row[11],
        )
        for row in rows
    ]  # fmt: skip


def job_rows(connection: Conn, where: list[str], values: dict[str, Any], rest: str = "") -> list[dict[str, Any]]:
    """The jobs that meet every condition. Conditions are texts of this module's own; what callers give is bound."""
    query = f"{SQL['jobs']} WHERE {' AND '.join(where)} {rest}"
    with connection.cursor(row_factory=dict_row) as cursor:
        # Never prepared: a generic plan cannot know that an actor is rare, and would walk the whole table for it.
        return cursor.execute(query.encode(), values, prepare=False).fetchall()


def job_of(row: dict[str, Any]) -> Job:
    payload = masked(row["payload"])
    fields = {name: row[name] for name in _PLAIN} | {"result": masked(row["result"])}
    return Job(
        id=row["message_id"],
        state=State(row["state"]),
        args=tuple(payload["args"]),
        kwargs=payload["kwargs"],
        parent_id=row["parent_id"],
        tags=tuple(row["tags"] or ()),
        **fields,
    )


def _uuid(text: str | UUID) -> UUID | None:
    if isinstance(text, UUID):
        return text
    try:
        return UUID(text)
    except ValueError:
        return None


def _row_id(connection: Conn, message_id: str | UUID) -> int:
    uuid = _uuid(message_id)
    row = connection.execute(SQL["row_id"], {"message_id": uuid}).fetchone() if uuid is not None else None
    if row is None:
        raise JobNotFound(str(message_id))
    return int(row[0])


def _states(wanted: State | str | Iterable[State | str]) -> frozenset[State]:
    words = [wanted] if isinstance(wanted, str) else list(wanted)
    return frozenset().union(*(states_named(word) for word in words))


def _in_states(states: frozenset[State]) -> str:
    """Match any of the states, in words from which the planner can tell that a partial index will do.

    Every pending row has a ``next_publish_at``, or belongs to the Postgres broker, or is parked, every scheduled one has a
    ``next_publish_at`` or waits without a time, every retrying one has one: saying so costs nothing and opens ``job_due``, ``job_ready``,
    ``job_parked`` and ``job_timeless``. States are literals, from our own enumeration: a bound one would hide the partial indexes from a
    generic plan.
    """
    arms = ["false"]
    for state in sorted(states):
        here = f"state = '{State(state)}'"
        if state is State.PENDING:
            unparked = "wait_reason IS DISTINCT FROM 'paused'"
            arms += [f"{here} AND next_publish_at IS NOT NULL", f"{here} AND broker = 'postgres' AND {unparked}"]
            arms.append(f"{here} AND wait_reason = 'paused'")
        elif state is State.SCHEDULED:
            arms += [f"{here} AND next_publish_at IS NOT NULL", f"{here} AND next_publish_at IS NULL"]
        elif state in WAITING:
            arms.append(f"{here} AND next_publish_at IS NOT NULL")
        else:
            arms.append(here)
    return f"({' OR '.join(arms)})"


def _first_id_from(connection: Conn, moment: datetime) -> int:
    """Find the id from which on jobs were created at or after ``moment``: halve the range, some 20 index probes."""
    row = connection.execute(SQL["job_ids"]).fetchone()
    if row is None or row[0] is None:
        return 0
    low, high = row[0], row[1] + 1
    while low < high:
        middle = (low + high) // 2
        probe = connection.execute(SQL["created_from"], {"id": middle}).fetchone()
        if probe is None or probe[1] >= moment:
            high = middle
        else:
            low = probe[0] + 1
    return int(low)


def _cursor(row_id: int) -> str:
    body = _CURSOR.pack(_CURSOR_VERSION, row_id)
    return urlsafe_b64encode(body + crc32(body).to_bytes(4, "big")).rstrip(b"=").decode()


def _cursor_id(text: str) -> int:
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        version, row_id = _CURSOR.unpack(raw[:-4])
        valid = version == _CURSOR_VERSION and _cursor(row_id) == text
    except (ValueError, struct.error):
        valid = False
    if not valid:
        raise ValueError(f"after {text!r} is not the cursor of a page: pass on what Page.next holds, unchanged")
    return int(row_id)
