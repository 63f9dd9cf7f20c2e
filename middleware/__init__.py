"""The middleware stack: what Switchyard adds to a message's life, in the order in which it has to stand.

Before-hooks run from the top down, after-hooks from the bottom up. Each file is one concern and says what it does, which options it
reads, and what happens when its store is down. To add one: a file in this folder and a line below, with its reason.

Dramatiq's own Retries, TimeLimit, AgeLimit, Callbacks, Pipelines and ShutdownNotifications are not used: each loses or doubles jobs
under ordinary faults. Ours keep their option names and meaning. Of Dramatiq's, Results remains (by its exact class, or the
worker warns about every return value).
"""

from __future__ import annotations

from dramatiq import Middleware
from dramatiq.results import Results

from ledger.database import Database
from middleware.callbacks import Callbacks
from middleware.cancellation import Cancellation
from middleware.concurrency import Concurrency
from middleware.current_job import CurrentJob
from middleware.dead_letter import DeadLetterHook
from middleware.event_loop import EventLoop
from middleware.group_callbacks import LedgerGroupCallbacks
from middleware.idempotency import Idempotency
from middleware.log_context import LogContext
from middleware.max_age import MaxAge
from middleware.payload import CheckedPayload
from middleware.periodic import Periodic
from middleware.rate_limit import RateLimit
from middleware.results import LedgerResults
from middleware.retries import Retries
from middleware.secrets import Secrets
from middleware.shutdown import ShutdownNotice
from middleware.status import Status
from middleware.stub import stub_stack
from middleware.tags import Tags
from middleware.time_limit import TimeLimit
from middleware.unique import UniqueJobs
from middleware.worker_lost import WorkerLost
from runtime.secrets import Keyring
from settings import Settings

__all__ = ["stack", "stub_stack"]


def stack(settings: Settings, database: Database) -> list[Middleware]:
    """The middlewares of one broker, in order."""
    return [
        # Logging is set up first, so that everything after it can speak; it looks jobs up and needs no place around them.
        LogContext(level=settings.log_level, style=settings.log_format),
        # The event loop must run before the first async actor does, and outlive the last.
        EventLoop(),
        # Around everything that belongs to a job: the first to enter its context, the last to leave it.
        CurrentJob(database, max_log_lines=settings.max_log_lines, max_result_bytes=settings.max_result_bytes),
        # Refuses bad arguments before anything else looks at them.
        CheckedPayload(),
        Tags(),
        # Only looks at options; its place does not matter.
        Periodic(),
        WorkerLost(),
        # Its place among hooks does not matter: it works where the row is made, and around the body.
        Secrets(settings),
        # Look at arguments that are known to fit.
        Idempotency(settings),
        UniqueJobs(settings),
        DeadLetterHook(),
        # After the payload check: their keys are told from the arguments.
        RateLimit(),
        Concurrency(),
        # After-hooks come back up: these two see the verdict that status and retries noted below them.
        Results(backend=LedgerResults(database, Keyring(settings.secret_key_bytes)), store_results=True),
        Callbacks(),
        # Takes part in sends alone.
        LedgerGroupCallbacks(database),
        # The verdict: success and failure exclude each other, so their order does not matter.
        Status(max_result_bytes=settings.max_result_bytes),
        Retries(),
        # May veto the execution, so they stand before what watches one.
        MaxAge(),
        Cancellation(),
        # Closest to the body: what they watch is nothing but the body.
        ShutdownNotice(),
        TimeLimit(),
    ]
