"""What travels between the ledger's statements and the rest: new jobs on their way in, claims, and how executions end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ledger.rekeying import Keys
from ledger.states import State


@dataclass(frozen=True, slots=True, kw_only=True)
class SentKey:
    """What a send with an idempotency key is compared by, and how long the key is kept, in seconds; see ``middleware.idempotency``."""

    fingerprint: str
    #: What the same payload had as its fingerprint under other keys of the settings.
    accepted: tuple[str, ...] = ()
    ttl: float


UniqueMode = Literal["skip", "debounce", "throttle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """What a send counts as the same job as, and what it does then; see ``middleware.unique``."""

    key: str
    mode: UniqueMode = "skip"
    #: Seconds from the first send; None: while it is active.
    period: float | None = None
    #: How long after the first send a debounced job is due at the latest, in seconds; None: ten times the delay.
    max_wait: float | None = None
    #: Whether the sender knows the actor, and so what limits its jobs count against.
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class JobControl:
    """What most jobs do not have: keys, limits, a place in a workflow or a schedule. A job with one is written by a statement of its own,
    so that plain jobs do not pay for it. Fields are columns of the same name, but for ``sent`` and ``unique``: what ``ledger.keys`` does
    about the keys."""

    #: Of the sender, and of the actor while the job is active.
    idempotency_key: str | None = None
    sent: SentKey | None = None
    unique_key: str | None = None
    unique: Unique | None = None
    #: See ``middleware.rate_limit`` and ``middleware.concurrency``.
    rate_key: str | None = None
    rate_cost: int | None = None
    concurrency_key: str | None = None
    fair_key: str | None = None
    fair_weight: float | None = None
    #: See ``middleware.composition``.
    batch_id: str | None = None
    upstream_id: str | None = None
    #: See ``keeper.schedule``; ``tick_at`` is an ISO 8601 text.
    schedule: str | None = None
    tick_at: str | None = None
    #: Given, the job waits without a time of its own until whatever it waits for makes it due.
    wait_reason: str | None = None

    @property
    def limits(self) -> Keys:
        """What it counts against limits as; nothing of its unique key."""
        return Keys(None, self.rate_key, self.rate_cost, self.concurrency_key, self.fair_key, self.fair_weight)

    @property
    def is_membership(self) -> bool:
        """Whether there is nothing to it but a batch."""
        return self == JobControl(batch_id=self.batch_id)


# A named tuple, like ``ClaimedJob`` and for the same reason.
class NewJob(NamedTuple):
    """A row to be written by ``enqueue``.

    ``payload`` and ``options`` are JSON texts, already checked. ``delay`` is in seconds; more than 0 makes the job scheduled.
    ``grace`` is how many seconds after now the relay may publish it (again): 0 when its broker is known to be down. ``max_age`` is
    Dramatiq's, in milliseconds.
    """

    message_id: str
    queue: str
    actor: str
    payload: str
    broker: str
    options: str | None = None
    priority: int = 0
    max_attempts: int | None = None
    #: How many losses make it dead; None: MAX_LOST of the keeper that takes it back.
    max_lost: int | None = None
    parent_id: str | None = None
    tags: list[str] | None = None
    delay: float = 0.0
    grace: float | None = None
    max_age: float | None = None
    control: JobControl | None = None

    @property
    def has_keys(self) -> bool:
        """Whether it may turn out to be a job that exists already."""
        return self.control is not None and (self.control.sent is not None or self.control.unique is not None)

    @property
    def waits(self) -> bool:
        """Whether it may not run at once: there is nothing to publish yet."""
        return self.delay > 0 or (self.control is not None and self.control.wait_reason is not None)


class First(NamedTuple):
    """The job that a key led to instead of a new one, as it was sent; ``created_ms`` is a Unix time in milliseconds."""

    message_id: str
    queue: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    created_ms: int


class Enqueued(NamedTuple):
    """What became of a ``NewJob``: the row's id, and whether this call wrote it (False: a repeated send found its own row)."""

    id: int
    message_id: str
    created: bool
    #: A key led to another job: nothing was written, and ``id`` is that job's (0: its row was removed long ago).
    replayed: bool = False
    #: That job; None where its row is gone.
    first: First | None = None


# A named tuple and not a frozen dataclass: one is built per job on the hot path, and it costs a tenth (0.4 against 4 us).
class ClaimedJob(NamedTuple):
    """A job as its claim returned it. ``args``, ``kwargs`` and ``options`` are as sent. ``created_ms``, ``due_ms``,
    ``claimed_ms`` and ``expires_ms`` (the end of its max_age) are Unix times in milliseconds on the database's clock."""

    id: int
    message_id: str
    queue: str
    actor: str
    payload: dict[str, Any]
    options: dict[str, Any] | None
    generation: int
    attempt: int
    failures: int
    max_attempts: int | None
    suspect: bool
    created_ms: int
    claimed_ms: int
    parent_id: str | None
    tags: list[str] | None
    expires_ms: int | None
    max_lost: int | None = None
    due_ms: int = 0
    batch_id: str | None = None
    #: A limit let it run: its end wakes whoever waits for its slot.
    limited: bool = False


Outcome = Literal["failed", "lost", "released", "snoozed", "cancelled"]


@dataclass(slots=True, kw_only=True)
class Finish:
    """How one execution ended, on its way into the ledger.

    ``started`` and ``finished`` are monotonic times of the holder. ``delay`` (seconds) is until the next attempt, for the states
    retrying, scheduled and pending. ``result`` is a JSON text and goes with completed alone.
    """

    id: int
    token: str
    state: State
    started: float
    finished: float
    result: str | None = None
    outcome: Outcome | None = None
    delay: float = 0.0
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    dead_reason: str | None = None
    #: Jobs to be written in the same transaction: callbacks and the next step of a stock pipeline. Only if the end itself was accepted.
    children: list[NewJob] = field(default_factory=list)
    #: The message id of a job for which others wait in the ledger, and the JSON text that they get when it is completed.
    upstream: str | None = None
    handed: str = "null"
    #: As in its claim.
    limited: bool = False


class NewBatch(NamedTuple):
    """A batch to be written with its jobs. The callbacks are rows as ``write.controlled_rows`` makes them; ``expected`` is of a stock
    group, whose children come one by one. The other fields are columns of the same name."""

    id: str
    root_id: str
    name: str | None = None
    parent_id: str | None = None
    sent_by: str | None = None
    waits_for: str | None = None
    followed: bool = False
    place: int = 0
    total: int = 0
    expected: int | None = None
    on_complete: list[dict[str, Any]] | None = None
    on_success: list[dict[str, Any]] | None = None
    on_death: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class DueJob:
    """A row that was made pending at a broker, to be published there."""

    id: int
    queue: str
    actor: str
    priority: int
    broker: str
    #: It is paused: nothing is to be published.
    parked: bool = False
    #: For how many seconds the last one of those taken with it had been due.
    reached: float = 0.0


class Unclaimed(NamedTuple):
    """Why a claim left a row alone."""

    state: State
    actor: str
    suspect: bool
    paused: bool
    queue: str
    #: A limit decides about it.
    limited: bool


@dataclass(frozen=True, slots=True)
class Rescued:
    """A job taken back from a lost worker: its state now, its losses so far, and whether it was held guilty."""

    id: int
    state: State
    lost: int
    guilty: bool


@dataclass(slots=True, kw_only=True)
class WorkerRow:
    """What a worker process says of itself with each heartbeat."""

    id: str
    host: str
    pid: int
    broker: str
    queues: list[str]
    threads: int
    lease: float
    routes: dict[str, str] = field(default_factory=dict)
    consumes: list[str] = field(default_factory=list)
    running: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    #: The actors it knows; None: it does not say.
    actors: list[str] | None = None
    #: The version of Switchyard that it runs; None: it does not say.
    version: str | None = None
