"""The whole system at one glance: what every queue holds, who works, what is paused or overdue, and what should not be so.

For people who look once, for a screen that is drawn anew every second, and for health checks: each statement reads an index of rows that
are not over, and none more than ``BOUND`` of them. Beyond it the figures of a queue are those of the keepers' last sample, with its
time; is there none, they are lower bounds, and say so. Judging what is wrong is the caller's. Changes nothing; Postgres down:
``LedgerUnavailable`` where the connection comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from psycopg import Connection

from ledger import routes, sent
from ledger.control import EVERY, Pause
from ledger.routes import Route
from ledger.sql import SQL

Conn = Connection[Any]

#: Rows of one kind that are counted one by one: some 50 ms.
BOUND: Final = 50_000
#: A table smaller than this is read to count its rows, in bytes: some 10 ms.
SMALL: Final = 4 * 2**20
#: How old a sample may be that stands in for counting, in seconds.
FRESH: Final = 300.0
#: For how long a tick may be due, or a lease over, before that is worth a word, in seconds: a keeper looks every few seconds.
PATIENCE: Final = 60.0
#: The most schedules, or actors, that are named.
NAMED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """What is in one queue."""

    queue: str
    #: Pending, the parked among them.
    waiting: int = 0
    running: int = 0
    retrying: int = 0
    scheduled: int = 0
    #: Of the waiting and the scheduled: those that wait for a rate or a slot.
    limited: int = 0
    #: Of the waiting: those that wait for the end of a pause.
    parked: int = 0
    dead: int = 0
    #: Seconds that the longest waiting job has been due, the parked aside; None: none waits.
    oldest: float | None = None
    #: Living workers that consume it.
    workers: int = 0
    #: What is paused of it: all of it, or some actors.
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker process that has not said goodbye."""

    id: str
    host: str
    pid: int
    #: What its settings name.
    broker: str
    #: What it fetches from.
    consumes: tuple[str, ...]
    queues: tuple[str, ...]
    threads: int
    #: Claims that it holds, by the ledger.
    held: int
    started_at: datetime
    beat_at: datetime
    #: Seconds since its last heartbeat, and after how many it counts as dead.
    silence: float
    lease: float
    #: The version of Switchyard that it runs; None: one that did not say so yet.
    version: str | None = None

    @property
    def alive(self) -> bool:
        """Whether its heartbeat is younger than its lease."""
        return self.silence < self.lease

    @property
    def busy(self) -> int:
        """Threads that have something to do, as far as its claims say."""
        return min(self.held, self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownActor:
    """Jobs that wait for a worker that knows their actor."""

    actor: str
    jobs: int
    #: Seconds since the first of them was found.
    oldest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A schedule whose tick has passed without its job."""

    name: str
    actor: str
    due_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All of it."""

    #: The database's clock.
    now: datetime
    #: With indexes, and everything else in the ledger's schema.
    bytes: int
    #: About how many there are, in any state.
    jobs: int
    queues: Sequence[QueueState]
    #: The figures of the queues are of that time; None: they were counted now.
    as_of: datetime | None
    #: Some figures are lower bounds: of jobs on their way, of the dead.
    at_least: bool
    dead_at_least: bool
    workers: Sequence[WorkerState]
    unknown: Sequence[UnknownActor]
    overdue: Sequence[Overdue]
    schedules: int
    next_due_at: datetime | None
    #: Deaths within the last hour, at most ``BOUND``.
    died_lately: int
    #: Claims whose lease ended more than ``PATIENCE`` ago and that no keeper took back, at most ``BOUND``.
    lost: int
    #: Seconds that the keepers' next sample has been overdue, negative before its time; None: there was never a keeper.
    unkept: float | None
    pauses: Sequence[Pause]
    routes: Sequence[Route]
    #: Brokers that pending rows were last published to.
    holding: frozenset[str] = field(default_factory=frozenset)
    #: The keeper that watches over each broker, by its name in ``ledger.sent``.
    keepers: Mapping[str, str] = field(default_factory=dict)

    @property
    def living(self) -> list[WorkerState]:
        """The workers whose heartbeat is young enough."""
        return [worker for worker in self.workers if worker.alive]

    @property
    def dead(self) -> int:
        """Dead letters in all queues."""
        return sum(queue.dead for queue in self.queues)


def overview(connection: Conn, *, bound: int = BOUND) -> Overview:
    """Look at everything.

    Parameters:
        bound: rows of one kind that are counted one by one.
    """
    now, size, jobs, table = _row(connection, "overview_ledger")
    if table < SMALL:
        # Before the first ANALYZE nobody knows how full its pages are.
        (jobs,) = _row(connection, "overview_count")
    workers = worker_states(connection)
    pauses = _pauses(connection)
    counted = connection.execute(SQL["overview_queues"], {"bound": bound}, prepare=False).fetchall()
    capped, dead_capped = (bool(counted[0][9]), bool(counted[0][10])) if counted else (False, False)
    sampled = connection.execute(SQL["overview_sample"], {"within": FRESH}).fetchall() if capped else []
    bounds = {"bound": bound, "patience": PATIENCE, "most": NAMED}
    schedules, next_due_at, died_lately, lost, unkept = _row(connection, "overview_rest", bounds)
    return Overview(
        now=now,
        bytes=size,
        jobs=jobs,
        queues=_queues(counted, sampled, [worker for worker in workers if worker.alive], pauses),
        as_of=sampled[0][0] if sampled else None,
        at_least=capped and not sampled,
        dead_at_least=dead_capped,
        workers=workers,
        unknown=[UnknownActor(actor=row[0], jobs=row[1], oldest=row[2]) for row in _rows(connection, "overview_unknown", bounds)],
        overdue=[Overdue(name=row[0], actor=row[1], due_at=row[2]) for row in _rows(connection, "overview_overdue", bounds)],
        schedules=schedules,
        next_due_at=next_due_at,
        died_lately=died_lately,
        lost=lost,
        unkept=unkept,
        pauses=pauses,
        routes=routes.routes(connection),
        holding=frozenset(place.broker for place in routes.pending_places(connection)),
        keepers=sent.keepers(connection),
    )


def worker_states(connection: Conn) -> list[WorkerState]:
    """The worker processes that have not said goodbye, the oldest first; those that died are forgotten after ten leases."""
    return [
        WorkerState(
            id=row[0], host=row[1], pid=row[2], broker=row[3], consumes=tuple(row[4]), queues=tuple(row[5]), threads=row[6],
            held=row[7], started_at=row[8], beat_at=row[9], silence=row[10], lease=row[11], version=row[12],
        )
        for row in _rows(connection, "overview_workers")
    ]  # fmt: skip


def clock(connection: Conn) -> datetime:
    """The database's clock, which all times in the ledger are of."""
    moment: datetime = next(iter(connection.execute("SELECT clock_timestamp()")))[0]
    return moment


def _queues(
    counted: Sequence[tuple[Any, ...]],
    sampled: Sequence[tuple[Any, ...]],
    living: Sequence[WorkerState],
    pauses: Sequence[Pause],
) -> list[QueueState]:
    figures: dict[str, dict[str, Any]] = {queue: {} for worker in living for queue in worker.queues}
    for queue, waiting, running, retrying, scheduled, limited, parked, dead, oldest, *_ in counted:
        figures[queue] = {
            "waiting": waiting, "running": running, "retrying": retrying, "scheduled": scheduled, "limited": limited,
            "parked": parked, "dead": dead, "oldest": oldest,
        }  # fmt: skip
    for _, queue, scheduled, pending, running, retrying, oldest in sampled:
        known = {"scheduled": scheduled, "waiting": pending, "running": running, "retrying": retrying, "oldest": oldest}
        figures[queue] = figures.get(queue, {}) | known
    return [
        QueueState(
            queue=queue,
            workers=sum(queue in worker.queues for worker in living),
            paused=any(pause.queue in (queue, None) for pause in pauses if pause.queue is not None or pause.actor is None),
            **figures[queue],
        )
        for queue in sorted(figures)
    ]


def _pauses(connection: Conn) -> list[Pause]:
    return [
        Pause(queue=None if queue == EVERY else queue, actor=None if actor == EVERY else actor, since=since, waiting=0)
        for queue, actor, since in _rows(connection, "overview_pauses")
    ]


def _rows(connection: Conn, name: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    # Planned for these very values: a generic plan takes every LIMIT for a tenth of the table.
    return connection.execute(SQL[name], parameters, prepare=False).fetchall()


def _row(connection: Conn, name: str, parameters: dict[str, Any] | None = None) -> tuple[Any, ...]:
    (found,) = _rows(connection, name, parameters)
    return found
