"""What charts are drawn from: depths of the queues at regular times, and what the workers did in each minute.

Both are small tables of their own with a week in them; no read here touches the jobs. Times of waiting and running are counts per power of
two, so counts of many processes add up and a percentile of any span can be told, exact to the bucket and interpolated within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

from psycopg import Connection

from ledger.arrays import plain, texts
from ledger.sql import SQL

Conn = Connection[Any]

#: Buckets of a histogram: the n-th counts what took less than 2^n milliseconds and not less than 2^(n-1); the last one also all above,
#: which is more than 18 hours.
BUCKETS: Final = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was on its way through one queue at one time."""

    at: datetime
    queue: str
    scheduled: int
    pending: int
    running: int
    retrying: int
    #: Seconds that the longest waiting pending job had been due; None: none was pending.
    oldest_pending: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Executions of one actor in one queue that ended within one minute, as far as their workers said so by then."""

    at: datetime
    queue: str
    actor: str
    completed: int
    failed: int
    #: Those of the failed that were the last.
    dead: int
    #: How long they waited, from when they were due, and how long they ran: counts per bucket.
    waits: Sequence[int]
    runs: Sequence[int]


def bucket(milliseconds: float) -> int:
    """The bucket that a time falls into."""
    return min(max(0, int(milliseconds)).bit_length(), BUCKETS - 1)


def percentile(histograms: Iterable[Sequence[int]], share: float) -> float | None:
    """Estimate the time, in seconds, within which ``share`` (0 to 1) of all the executions stayed; None when there were none."""
    counts: list[int] = [sum(column) for column in zip(*histograms, strict=True)]
    wanted: float = share * sum(counts)
    below = 0
    for position, reached in enumerate(accumulate(counts)):
        if reached >= wanted and reached > below:
            low, high = (1 << position) >> 1 if position else 0, 1 << position
            return (low + (high - low) * (wanted - below) / (reached - below)) / 1000
        below = reached
    return None


def samples(connection: Conn, *, since: datetime, until: datetime, queue: str | None = None) -> list[Sample]:
    """The depths of all queues, or of one, at the times from ``since`` and before ``until`` (aware), the oldest first.

    A time without any sample is one at which no keeper worked; a queue that is missing from it held nothing.
    """
    rows = connection.execute(SQL["read_samples"], {"since": since, "until": until, "queue": queue}).fetchall()
    return [
        Sample(at=row[0], queue=row[1], scheduled=row[2], pending=row[3], running=row[4], retrying=row[5], oldest_pending=row[6])
        for row in rows
    ]


def activity(
    connection: Conn, *, since: datetime, until: datetime, queue: str | None = None, actor: str | None = None
) -> list[Activity]:
    """What the workers did in the minutes from ``since`` and before ``until`` (aware), the oldest first."""
    parameters = {"since": since, "until": until, "queue": queue, "actor": actor}
    return [
        Activity(
            at=row[0], queue=row[1], actor=row[2], completed=row[3], failed=row[4], dead=row[5], waits=row[6], runs=row[7]
        )
        for row in connection.execute(SQL["read_activity"], parameters).fetchall()
    ]  # fmt: skip


def record_activity(connection: Conn, entries: Sequence[tuple[str, str, Sequence[int], Sequence[int], Sequence[int]]]) -> None:
    """Add what a process did to the current minute: queue, actor, (completed, failed, dead), waits, runs."""
    connection.execute(
        SQL["record_activity"],
        {
            "queues": texts(entry[0] for entry in entries),
            "actors": texts(entry[1] for entry in entries),
            "completed": plain(entry[2][0] for entry in entries),
            "failed": plain(entry[2][1] for entry in entries),
            "dead": plain(entry[2][2] for entry in entries),
            # An array of arrays would be unnested to single numbers; each travels as the text of one.
            "waits": texts(plain(entry[3]) for entry in entries),
            "runs": texts(plain(entry[4]) for entry in entries),
        },
    )
