"""What the ledger says about a period: the numbers behind the report and the digest.

Everything is counted in one read-only transaction, so the tables of one report agree with each other. A job counts in the
period in which it was created or ended, whichever a figure is about; a failed attempt counts when it failed, also when a later
attempt succeeded. What retention has pruned is not counted any more, nor is what a very long history does not keep (ADR 36).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, NamedTuple, TypeVar

from psycopg import Connection
from psycopg.rows import class_row

from actors.connections import private_connection

#: The longest time one statement may take, in seconds: a report is not worth an overloaded database.
STATEMENT_SECONDS: Final = 20.0
#: Periods up to this long are charted by the hour, longer ones by the day.
HOURLY_UP_TO: Final = timedelta(hours=48)
#: How many jobs the list of the slowest holds.
SLOWEST: Final = 10

T = TypeVar("T")


class StateCount(NamedTuple):
    """How many of the jobs created in the period are in a state now."""

    queue: str
    state: str
    jobs: int


class ActorFigures(NamedTuple):
    """One actor's period. Seconds are those of completed jobs' last attempts, None if there are none."""

    actor: str
    completed: int
    dead: int
    failures: int
    mean_seconds: float | None
    p95_seconds: float | None

    @property
    def failure_rate(self) -> float:
        """Failed attempts among all that ended, 0 to 1."""
        ended = self.completed + self.failures
        return self.failures / ended if ended else 0.0


class Bucket(NamedTuple):
    """One bar of the chart: jobs completed, and attempts failed, from ``start`` on."""

    start: datetime
    completed: int
    failures: int


class SlowJob(NamedTuple):
    """A completed job and how long its last attempt took, in seconds."""

    job_id: str
    actor: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The numbers of one period, ``since`` inclusive to ``until`` exclusive."""

    since: datetime
    until: datetime
    states: list[StateCount]
    actors: list[ActorFigures]
    buckets: list[Bucket]
    slowest: list[SlowJob]

    @property
    def completed(self) -> int:
        return sum(actor.completed for actor in self.actors)

    @property
    def dead(self) -> int:
        return sum(actor.dead for actor in self.actors)

    @property
    def failures(self) -> int:
        return sum(actor.failures for actor in self.actors)

    @property
    def created(self) -> int:
        return sum(count.jobs for count in self.states)


_STATES: Final = """
SELECT queue, state, count(*) AS jobs FROM switchyard.job
WHERE created_at >= %(since)s AND created_at < %(until)s
GROUP BY queue, state ORDER BY queue, state
"""

_ACTORS: Final = """
WITH ended AS (
    SELECT actor,
           count(*) FILTER (WHERE state = 'completed') AS completed,
           count(*) FILTER (WHERE state = 'dead') AS dead,
           avg(extract(epoch FROM finished_at - started_at)) FILTER (WHERE state = 'completed') AS mean_seconds,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8)
               FILTER (WHERE state = 'completed') AS p95_seconds
    FROM switchyard.job WHERE finished_at >= %(since)s AND finished_at < %(until)s GROUP BY actor
), failed AS (
    SELECT j.actor, count(*) AS failures
    FROM switchyard.attempt a JOIN switchyard.job j ON j.id = a.job_id
    WHERE a.outcome IN ('failed', 'lost') AND a.finished_at >= %(since)s AND a.finished_at < %(until)s GROUP BY j.actor
)
SELECT actor, coalesce(completed, 0) AS completed, coalesce(dead, 0) AS dead, coalesce(failures, 0) AS failures,
       mean_seconds::float8 AS mean_seconds, p95_seconds
FROM ended FULL JOIN failed USING (actor) ORDER BY coalesce(completed, 0) + coalesce(failures, 0) DESC, actor
"""

_BUCKETS: Final = """
WITH events AS (
    SELECT date_trunc(%(bucket)s, finished_at, 'UTC') AS start, 1 AS completed, 0 AS failures
    FROM switchyard.job WHERE state = 'completed' AND finished_at >= %(since)s AND finished_at < %(until)s
    UNION ALL
    SELECT date_trunc(%(bucket)s, finished_at, 'UTC'), 0, 1
    FROM switchyard.attempt
    WHERE outcome IN ('failed', 'lost') AND finished_at >= %(since)s AND finished_at < %(until)s
)
SELECT start, sum(completed)::int8 AS completed, sum(failures)::int8 AS failures FROM events GROUP BY start ORDER BY start
"""

_SLOWEST: Final = """
SELECT message_id::text AS job_id, actor, extract(epoch FROM finished_at - started_at)::float8 AS seconds
FROM switchyard.job
WHERE state = 'completed' AND started_at IS NOT NULL AND finished_at >= %(since)s AND finished_at < %(until)s
ORDER BY finished_at - started_at DESC, id LIMIT %(limit)s
"""


def collect(since: datetime, until: datetime) -> Figures:
    """Count a period, on a connection of its own, within 20 s a statement."""
    hourly = until - since <= HOURLY_UP_TO
    values: dict[str, Any] = {"since": since, "until": until, "bucket": "hour" if hourly else "day", "limit": SLOWEST}
    with private_connection("figures", statement_seconds=STATEMENT_SECONDS) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        figures = Figures(
            since=since,
            until=until,
            states=_rows(connection, StateCount, _STATES, values),
            actors=_rows(connection, ActorFigures, _ACTORS, values),
            buckets=_rows(connection, Bucket, _BUCKETS, values),
            slowest=_rows(connection, SlowJob, _SLOWEST, values),
        )
    return figures


def last_hours(hours: int, now: datetime | None = None) -> tuple[datetime, datetime]:
    """The period of that many hours which ends now."""
    until = now or datetime.now(UTC)
    return until - timedelta(hours=hours), until


def yesterday(now: datetime | None = None) -> tuple[datetime, datetime]:
    """The last full day in UTC."""
    until = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return until - timedelta(days=1), until


def _rows(connection: Connection[Any], kind: type[T], statement: LiteralString, values: dict[str, Any]) -> list[T]:
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(statement, values).fetchall()
