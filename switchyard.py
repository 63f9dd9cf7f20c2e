"""Switchyard's public face: everything an app or an actor imports, and the one place where the parts are joined.

    import dramatiq, switchyard
    switchyard.configure()                       # settings from the environment; connects to nothing yet

    @dramatiq.actor
    def greet(name: str) -> str: ...

    greet.send("Ada")                            # committed in the ledger when it returns

``configure`` joins settings, ledger, middleware, broker and keeper, and sets Dramatiq's broker. Everything else here is a thin call
into the ledger; reads and commands need no worker and no broker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import dramatiq
from dramatiq import Broker, Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import Retry

import settings as _settings_module
from brokers import TRANSPORTS, make_transport
from brokers.broker import SwitchyardBroker
from brokers.transport import Transport
from control import access
from control.batches import add_to_batch, batch, list_batches
from control.cancel import cancel, cancel_many
from control.composition import group, pipeline
from control.dead_letters import (
    Discards,
    Replay,
    Replays,
    dead_groups,
    dead_letters,
    discard,
    discard_many,
    replay,
    replay_many,
    try_replay,
)
from control.edit import edit
from control.keys import find_by_key, forget_key
from control.limits import limits, reset_limit, set_limit
from control.pause import pause, paused, resume
from control.schedules import (
    create_schedule,
    cron,
    delete_schedule,
    get_schedule,
    pause_schedule,
    resume_schedule,
    run_schedule,
    schedule_ticks,
    schedules,
    update_schedule,
)
from errors import (
    BatchClosed,
    BatchNotFound,
    Cancelled,
    CronError,
    EnlistRefused,
    IdempotencyConflict,
    JobExists,
    JobNotFound,
    KeyInUse,
    LeaseLost,
    LedgerForbidden,
    LedgerNotMigrated,
    LedgerUnavailable,
    OptionError,
    PayloadError,
    Permanent,
    ScheduleError,
    ScheduleExists,
    ScheduleNotFound,
    SettingsError,
    Snooze,
    SwitchyardError,
)
from keeper import Keeper
from ledger import read
from ledger.batch import Batch, BatchCallback
from ledger.borrowed import borrow
from ledger.control import CancelCount, Pause
from ledger.database import BoundedConnection, Database
from ledger.forks import ForkSafeLock
from ledger.job import Attempt, Counts, DeadGroup, DeadLetter, DeadPage, Job, LogLine, Page
from ledger.keys import KeyBinding
from ledger.records import Finish
from ledger.schedules import Schedule, Tick
from ledger.states import TERMINAL, State
from middleware import stack, stub_stack
from middleware.current_job import current_job
from middleware.job_context import job_context
from middleware.log_context import configure_structlog
from middleware.retries import failed, snoozed
from runtime import enlist as enlisting
from runtime import process
from settings import Settings

__all__ = [
    "Attempt",
    "Batch",
    "BatchCallback",
    "BatchClosed",
    "BatchNotFound",
    "CancelCount",
    "Cancelled",
    "Counts",
    "CronError",
    "DeadGroup",
    "DeadLetter",
    "DeadPage",
    "Discards",
    "EnlistRefused",
    "IdempotencyConflict",
    "Job",
    "JobExists",
    "JobNotFound",
    "KeyBinding",
    "KeyInUse",
    "LeaseLost",
    "LedgerForbidden",
    "LedgerNotMigrated",
    "LedgerUnavailable",
    "LogLine",
    "OptionError",
    "Page",
    "Pause",
    "PayloadError",
    "Permanent",
    "Replay",
    "Replays",
    "Retry",
    "Schedule",
    "ScheduleError",
    "ScheduleExists",
    "ScheduleNotFound",
    "SettingsError",
    "Snooze",
    "State",
    "SwitchyardError",
    "Tick",
    "add_to_batch",
    "attempts",
    "batch",
    "cancel",
    "cancel_many",
    "children",
    "configure",
    "counts",
    "create_schedule",
    "cron",
    "current_job",
    "database",
    "dead_groups",
    "dead_letters",
    "delete_schedule",
    "discard",
    "discard_many",
    "edit",
    "enlist",
    "enqueue_many",
    "find_by_key",
    "forget_key",
    "get_job",
    "get_schedule",
    "group",
    "job_context",
    "limits",
    "list_batches",
    "list_jobs",
    "logs",
    "pause",
    "pause_schedule",
    "paused",
    "pipeline",
    "replay",
    "replay_many",
    "reset_limit",
    "resume",
    "resume_schedule",
    "run_schedule",
    "schedule_ticks",
    "schedules",
    "set_limit",
    "settings",
    "try_replay",
    "update_schedule",
    "wait",
]

T = TypeVar("T")

#: First and longest pause between two looks of ``wait``, in seconds.
_WAIT_MIN: Final = 0.005
_WAIT_MAX: Final = 0.25

_lock = ForkSafeLock()
_configured: tuple[Settings, Database, Broker] | None = None


def configure(**overrides: Any) -> Broker:
    """Read the settings, make the broker, and make it Dramatiq's. Connects to nothing yet.

    Calling it again with the same outcome returns the same broker.

    Parameters:
        overrides: settings by their lower-case names, which win over the environment and ``.env``.

    Raises:
        SettingsError: a setting is wrong, or it was configured before with others. Where a command (``dramatiq``, ``periodiq``) is loading
            the application, the process ends instead, with the line and exit code 3.
    """
    try:
        return _configure(overrides)
    except SettingsError as error:
        if process.is_booting():
            # What the operator of a command needs is the line, not the way to it.
            process.refuse(str(error))
        raise


def _configure(overrides: dict[str, Any]) -> Broker:
    global _configured
    with _lock:
        if _configured is not None and not overrides:
            return _configured[2]
        wanted = _settings_module.load(**overrides)
        if _configured is not None:
            changed = [name for name in type(wanted).model_fields if getattr(wanted, name) != getattr(_configured[0], name)]
            if changed:
                raise SettingsError(
                    changed[0].upper(), "was configured before with another value; configure() works once per process"
                )
            return _configured[2]
        configure_structlog()
        ledger = Database(
            wanted.database_url.get_secret_value(),
            pool_size=wanted.pool_size,
            timeout=wanted.send_timeout,
            pgbouncer=wanted.pgbouncer,
        )
        broker = _make_broker(wanted, ledger)
        dramatiq.set_broker(broker)
        _configured = (wanted, ledger, broker)
        return broker


def _make_broker(wanted: Settings, ledger: Database) -> Broker:
    if wanted.broker == "stub":
        return StubBroker(middleware=stub_stack(wanted))
    # The chosen one must work, so its driver is loaded now; the others are there for rows that are still with them.
    transports: dict[str, Transport] = {wanted.broker: make_transport(wanted.broker, wanted)}
    for name in TRANSPORTS:
        if name not in transports:
            try:
                transports[name] = make_transport(name, wanted)
            except SettingsError:
                # Its driver is not installed, so nothing here can have used it.
                continue

    def fail(message: Any, error: BaseException) -> Finish:
        return failed(message, error, broker.actors.get(message.actor_name))

    broker = SwitchyardBroker(wanted, ledger, transports, stack(wanted, ledger), failure=fail, snooze=snoozed)
    broker.services.append(Keeper(broker))
    return broker


def _current() -> tuple[Settings, Database, Broker]:
    if _configured is None:
        configure()
    assert _configured is not None
    return _configured


access.provide(lambda: _current()[1:])


def _ask(work: Callable[[BoundedConnection], T]) -> T:
    return _current()[1].run(work)


def settings() -> Settings:
    """The settings of this process."""
    return _current()[0]


def database() -> Database:
    """The ledger's database, for actors and apps that keep tables of their own beside it."""
    return _current()[1]


def enqueue_many(messages: Iterable[Message[Any]], *, delay: int | timedelta | None = None) -> list[Message[Any]]:
    """Send many messages, any mix of actors, in one transaction: all of them or none.

    Parameters:
        messages: from ``actor.message(...)`` or ``actor.message_with_options(...)``.
        delay: milliseconds, or a ``timedelta``, until they may run.

    Raises:
        PayloadError, OptionError, JobExists, LedgerUnavailable: as ``send()``; then nothing was stored. ``OptionError`` also for an option
            that nobody knows (docs/reference/message-options.md).
    """
    broker = _current()[2]
    if isinstance(broker, SwitchyardBroker):
        return broker.enqueue_many(messages, delay=delay)
    milliseconds = int(delay.total_seconds() * 1000) if isinstance(delay, timedelta) else delay
    return [broker.enqueue(message, delay=milliseconds) for message in messages]


@contextmanager
def enlist(session_or_connection: object) -> Iterator[None]:
    """Have every send inside the block belong to the caller's transaction: committed with it, or gone with it.

        with Session(engine) as session, session.begin(), enlist(session):
            session.add(order)
            charge.send(order.id)

    The job is published right after the commit, by a living worker's keeper if this process dies in between. A savepoint that is
    rolled back takes its sends along. Of nested blocks the innermost counts; other threads are not affected. With BROKER=stub there is no
    transaction to belong to, and sends go as ever.

    Parameters:
        session_or_connection: a SQLAlchemy Session or Connection (psycopg, psycopg2), or a psycopg 3 Connection, to the ledger's database.

    Raises:
        TypeError: it is something else.
        EnlistRefused: at a send, when the connection is in autocommit mode, or leads to another database.
    """
    broker = _current()[2]
    if isinstance(broker, SwitchyardBroker):
        with enlisting.enlist(session_or_connection, broker.ledger_only):
            yield
    else:
        borrow(session_or_connection)
        yield


def get_job(id: str) -> Job | None:
    """The job with this id (a message's ``message_id``); None when there is none, or when ``id`` is no id at all.

    ``wait`` and the verbs that change a job raise ``JobNotFound`` instead.
    """
    return _ask(lambda connection: read.get_job(connection, id))


def list_jobs(**filters: Any) -> Page:
    """One page of jobs, newest first; see ``ledger.read.list_jobs`` for the filters.

    Parameters:
        filters: ``state`` (or a list; other queues' words work too), ``actor``, ``queue``, ``tag``, ``parent_id``, ``batch``,
            ``wait_reason`` (such as ``concurrency``, or a list), ``created_after``, ``created_before``, ``limit`` (50, at most 200),
            ``after`` (the cursor of the page before).

    Raises:
        ValueError: a filter's value is wrong; the text names it.
    """
    return _ask(lambda connection: read.list_jobs(connection, **filters))


def children(id: str) -> list[Job]:
    """The jobs that a job's actor sent, and of a pipeline the step after it, the newest first, at most 200. Raises: JobNotFound."""
    return _ask(lambda connection: read.children(connection, id))


def counts() -> Counts:
    """How many jobs there are, per queue and state."""
    return _ask(read.counts)


def attempts(id: str) -> list[Attempt]:
    """Every execution of a job so far, oldest first; of very many of one outcome the first and the latest (see ``Attempt.omitted``).

    Raises:
        JobNotFound: no job has this id.
    """
    return _ask(lambda connection: read.attempts(connection, id))


def logs(id: str) -> list[LogLine]:
    """What a job's attempts wrote with ``current_job().log()``. Raises: JobNotFound."""
    return _ask(lambda connection: read.logs(connection, id))


def wait(id: str, timeout: float | timedelta = 10.0) -> Job:
    """Block until a job has ended, and return it.

    Parameters:
        timeout: seconds, or a ``timedelta``.

    Raises:
        JobNotFound: no job has this id.
        TimeoutError: it has not ended in time; the job goes on.
    """
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    deadline = time.monotonic() + seconds
    pause = _WAIT_MIN
    while True:
        job = get_job(id)
        if job is None:
            raise JobNotFound(id)
        if job.state in TERMINAL:
            return job
        if time.monotonic() + pause > deadline:
            raise TimeoutError(f"job {id} is {job.state} after {seconds:g} s")
        time.sleep(pause)
        pause = min(pause * 1.5, _WAIT_MAX)
