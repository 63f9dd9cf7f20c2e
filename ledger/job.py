"""What the ledger answers with: jobs, their attempts, log lines, workers and counts, as plain frozen values.

A value is a copy of what was committed when it was read; nothing in it is lazy, and nothing leads back to the database.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ledger.states import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, as its row in the ledger has it. All times are aware, on the database's clock."""

    #: Dramatiq's message id, a UUID in its usual text form.
    id: str
    actor: str
    queue: str
    state: State
    #: Positional and keyword arguments, as sent.
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: Lower runs first, as in Dramatiq.
    priority: int
    #: Executions so far in this generation, the running one included.
    attempt: int
    #: How many failures end in a dead letter (``max_retries`` + 1); None: no bound.
    max_attempts: int | None
    #: Executions of this generation that failed, and worker deaths that this job was held guilty of.
    failures: int
    lost: int
    #: 1, and one more with each replay.
    generation: int
    created_at: datetime
    #: When it may, or might, run: the send, the end of its delay or back-off, its release or replay, the time that a rate limit promised
    #: it. None: it waits for something else than a time, see ``wait_reason``.
    run_at: datetime | None
    #: Start and end of the latest execution. A start is recorded with the next heartbeat, so a young one may be missing.
    started_at: datetime | None
    finished_at: datetime | None
    #: Percent (0 to 100) and the actor's own word for where it is.
    progress: float | None
    stage: str | None
    #: What the actor returned; only of a completed job.
    result: Any
    #: The last failure; gone once the job completes (``attempts`` knows them all).
    error_type: str | None
    error: str | None
    #: Why a dead job is dead, e.g. ``max_retries``.
    dead_reason: str | None
    #: Why a waiting job does not run, when it is not for want of a free worker; ``upstream``: for another job, see ``upstream_id``.
    wait_reason: str | None
    #: Where its trigger was published last: postgres, redis or rabbitmq.
    broker: str
    #: The process that runs it, or ran it last.
    worker: str | None
    #: The job whose actor sent this one.
    parent_id: str | None
    tags: tuple[str, ...]
    #: When somebody asked a running job to stop; None: nobody did.
    cancel_requested_at: datetime | None = None
    #: What its sender called it, so that sending it again makes no second job.
    idempotency_key: str | None = None
    #: The limits it counts against.
    rate_key: str | None = None
    concurrency_key: str | None = None
    #: The group it belongs to, and the job or group whose result it still waits for.
    batch_id: str | None = None
    upstream_id: str | None = None
    #: The same for failures of the same kind.
    fingerprint: str | None = None
    #: The schedule that made it, and for which of its ticks.
    schedule: str | None = None
    tick_at: datetime | None = None
    #: The key whose slots it waits for: its ``concurrency_key``, or ``queue:`` and its queue.
    blocked_on: str | None = None


#: How an execution stands or ended. ``lost``: its worker process died; ``released``: given back at a shutdown.
AttemptOutcome = Literal["running", "completed", "failed", "lost", "released", "snoozed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One execution of a job."""

    #: Counts the executions within a generation, from 1. What lies in a gap was counted as ``omitted`` of one before it.
    attempt: int
    #: Which replay it belongs to; 1 is the original send.
    generation: int
    worker: str | None
    #: None: it was claimed and its start is not recorded (yet).
    started_at: datetime | None
    #: None while it runs.
    finished_at: datetime | None
    outcome: AttemptOutcome
    error_type: str | None
    error: str | None
    traceback: str | None
    #: How many later executions with this outcome are not kept, nor their log: they came between this one and the next in the list that
    #: ended so. Of each outcome a job keeps the first ten executions and the latest ninety to a hundred.
    omitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line written with ``job.log()``."""

    #: Grows with time; ``logs(after=)`` takes it.
    id: int
    generation: int
    attempt: int
    at: datetime
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some jobs of a list, and the way to the next ones."""

    jobs: tuple[Job, ...]
    #: For ``list_jobs(after=)``; None: this is the last page.
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead job, and how its last execution ended. Why it is dead: ``job.dead_reason``, ``job.error``; when: ``job.finished_at``."""

    job: Job
    #: Of the last execution; None where there was none, or nobody saw its end.
    traceback: str | None

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadPage:
    """Some dead letters of a list, and the way to the next ones."""

    letters: tuple[DeadLetter, ...]
    #: For ``dead_letters(after=)``; None: this is the last page.
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadGroup:
    """Dead letters of one kind: the same actor, reason and type of error, and a text and traceback alike."""

    fingerprint: str
    count: int
    actor: str
    reason: str
    error_type: str | None
    #: The example's.
    error: str | None
    #: The first and the latest death.
    first_at: datetime
    last_at: datetime
    #: The id of one of them, the one sent last.
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many jobs of one queue, actor and state there are."""

    queue: str
    actor: str
    state: State
    count: int
    #: Scaled up from a sample (only ever the completed jobs of a large ledger).
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many jobs there are; combinations that no job has are missing."""

    rows: tuple[Count, ...]

    @property
    def estimated(self) -> bool:
        """Whether the completed jobs are an estimate; all other counts are exact."""
        return any(row.estimated for row in self.rows)

    def by_state(self) -> dict[State, int]:
        """Jobs per state, all seven named."""
        totals = dict.fromkeys(State, 0)
        for row in self.rows:
            totals[row.state] += row.count
        return totals

    def by_queue(self) -> dict[str, dict[State, int]]:
        """Jobs per queue and state."""
        return self._grouped("queue")

    def by_actor(self) -> dict[str, dict[State, int]]:
        """Jobs per actor and state."""
        return self._grouped("actor")

    def _grouped(self, key: Literal["queue", "actor"]) -> dict[str, dict[State, int]]:
        groups: dict[str, dict[State, int]] = defaultdict(lambda: dict.fromkeys(State, 0))
        for row in self.rows:
            groups[row.queue if key == "queue" else row.actor][row.state] += row.count
        return dict(sorted(groups.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """What is on its way through one queue; exact."""

    queue: str
    pending: int
    scheduled: int
    retrying: int
    running: int
    #: Seconds that the longest waiting pending job has been due; 0 when none is pending.
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldJob:
    """A job that a worker holds a claim on."""

    id: str
    actor: str
    queue: str
    attempt: int
    #: None: claimed, and waiting for a thread; or started less than a heartbeat ago.
    started_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A living worker process, by its last heartbeat."""

    id: str
    host: str
    pid: int
    broker: str
    queues: tuple[str, ...]
    threads: int
    #: Jobs it said it was running; ``jobs`` is what the ledger says.
    running: int
    #: What it counted since its start, e.g. triggers dropped.
    counters: dict[str, int]
    started_at: datetime
    beat_at: datetime
    #: Seconds of silence after which it counts as dead.
    lease: float
    jobs: tuple[HeldJob, ...]
    #: The version of Switchyard that it runs; None: one that did not say so yet.
    version: str | None = None
