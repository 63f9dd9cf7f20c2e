"""``current_job()``: the job that the running code belongs to, with its progress and its log.

Effect: every execution runs in a context that knows its job; async actors too, since a task inherits the context it is made in.
Store: the job's row (progress) and ``job_log`` (lines), guarded by the claim's token. When Postgres is away, progress and lines are
dropped, logged as such, and the job goes on; when the lease is lost, they raise ``LeaseLost``, so that a job that has been given to
another worker stops.
"""

from __future__ import annotations

import math
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final, NoReturn, Protocol, cast

import psycopg
from dramatiq import Broker, MessageProxy, Middleware, Worker
from psycopg import Connection
from structlog.stdlib import get_logger

from errors import LeaseLost, LedgerUnavailable, Snooze
from ledger import write
from ledger.database import Database
from ledger.records import Finish
from middleware.callbacks import add_followers
from middleware.steps import Remembers, Steps
from middleware.transaction import Transactions, say_too_late
from runtime.claims import Claim, Completion
from runtime.context import current_claim
from runtime.encoding import clean_text, encode_result
from runtime.enlist import leave_all
from runtime.options import option

logger = get_logger(__name__)

#: Shortest time between two writes of a job's progress, in seconds: more often nobody can read it.
PROGRESS_INTERVAL: Final = 0.5
#: Longest log line and stage that is stored, in characters.
MAX_LINE: Final = 4_000
MAX_STAGE: Final = 200


class WakesServices(Protocol):
    """The broker, as far as this middleware needs it."""

    def wake_services(self, within: float) -> None:
        """Something waits that will be due in ``within`` seconds."""


class Job(Remembers):
    """The running job, as its actor sees it."""

    def __init__(
        self,
        *,
        id: str,
        actor: str,
        queue: str,
        attempt: int,
        generation: int = 1,
        max_attempts: int | None = None,
        schedule: str | None = None,
        tick_at: datetime | None = None,
        batch_id: str | None = None,
    ) -> None:
        #: The job's id, the same for every attempt: use it as the idempotency key of calls to other systems.
        self.id = id
        #: The actor's name.
        self.actor = actor
        #: The queue's name.
        self.queue = queue
        #: Which execution this is, from 1; begins again with a replay.
        self.attempt = attempt
        #: Raised by every replay, from 1.
        self.generation = generation
        #: How many failures make the job dead; None: no bound.
        self.max_attempts = max_attempts
        #: The schedule that made the job, and for which of its ticks (aware, UTC); None: none did. A job that was run by hand has no tick.
        self.schedule = schedule
        self.tick_at = tick_at
        #: The batch (group) it belongs to, for ``add_to_batch``; None: it belongs to none.
        self.batch_id = batch_id
        self._result: Any = None
        self._in_transaction = False

    @property
    @abstractmethod
    def cancelled(self) -> bool:
        """Whether somebody asked this job to stop. ``Cancelled`` is raised by itself in code that Python can interrupt; a long call
        outside of it (a driver, a C loop with callbacks) can ask here, and end by raising ``Cancelled``."""

    def snooze(self, delay: float | timedelta) -> NoReturn:
        """End this execution here and run the job again later, spending no attempt.

        Parameters:
            delay: seconds, or a ``timedelta``.

        Raises:
            Snooze: always; let it through.
        """
        raise Snooze(delay)

    @property
    def result(self) -> Any:
        """The result that ``transaction()`` stores with the completion; assigned inside the block, None until then.

        Raises on assignment:
            RuntimeError: outside of ``with job.transaction():``; there, return the result.
            ValueError: it is not JSON, or larger than MAX_RESULT_BYTES.
        """
        return self._result

    @result.setter
    def result(self, value: Any) -> None:
        if not self._in_transaction:
            raise RuntimeError("job.result is for the block of `with job.transaction():`; elsewhere, return the result")
        self._check_result(value)
        self._result = value

    @contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """Commit what the block writes, the jobs it sends, and this job's completion together, or nothing of it.

            with current_job().transaction() as connection:
                connection.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (amount, account))
                send_receipt.send(account)
                current_job().result = {"charged": amount}

        The connection is psycopg's, to the ledger's database; the block's end commits, so it must not. Afterwards the job is completed:
        what the actor then returns or raises is logged and changes nothing. An exception inside the block rolls everything back.

        Raises:
            RuntimeError: the job is completed already, or the block is entered twice.
            LeaseLost: another worker may own the job; everything was rolled back.
            LedgerUnavailable: Postgres was lost, and nothing was committed.
        """
        if self._in_transaction:
            raise RuntimeError("job.transaction() is open already; a job has one commit")
        self._in_transaction = True
        self._result = None
        try:
            with self._completing() as connection:
                yield connection
        finally:
            self._in_transaction = False

    def progress(self, percent: float, stage: str | None = None) -> None:
        """Say how far the job is.

        Parameters:
            percent: 0 to 100.
            stage: a word for what it is doing. At most two writes a second reach the ledger; the last one always does, with the end.

        Raises:
            ValueError: ``percent`` is no number from 0 to 100.
            LeaseLost: another worker may own the job by now.
        """
        if not isinstance(percent, int | float) or not math.isfinite(percent) or not 0 <= percent <= 100:
            raise ValueError(f"progress: {percent!r} is no number from 0 to 100")
        self._report(float(percent), None if stage is None else clean_text(str(stage), MAX_STAGE))

    def log(self, line: str) -> None:
        """Add a line to the job's log in the ledger (at most MAX_LOG_LINES per attempt) and to the worker's own.

        Raises:
            LeaseLost: another worker may own the job by now.
        """
        logger.info(line)
        self._append(clean_text(str(line), MAX_LINE))

    @abstractmethod
    def _report(self, percent: float, stage: str | None) -> None:
        """Take note of how far the job is."""

    @abstractmethod
    def _append(self, line: str) -> None:
        """Take a line of the job's log."""

    @abstractmethod
    def _completing(self) -> AbstractContextManager[Connection[Any]]:
        """The transaction at whose end the job is completed."""

    @abstractmethod
    def _check_result(self, value: Any) -> None:
        """Refuse what ``transaction()`` could not store. Raises: ValueError."""


class ClaimedJobContext(Job):
    """A job run by a worker: progress and lines go to the ledger."""

    def __init__(self, broker: Broker, message: MessageProxy, shared: CurrentJob) -> None:
        claim: Claim = message.claim
        job = claim.job
        super().__init__(
            id=job.message_id,
            actor=job.actor,
            queue=job.queue,
            attempt=job.attempt,
            generation=job.generation,
            max_attempts=job.max_attempts,
            **_origin(job.options),
            batch_id=job.batch_id,
        )
        self._claim = claim
        self._broker = broker
        self._message = message
        self._shared = shared
        self._database = shared.database
        self._max_log_lines = shared.max_log_lines
        self._lock = threading.Lock()
        self._reported_at = -math.inf
        self._pending: tuple[float, str | None] | None = None
        self._stage: str | None = None
        self._steps = Steps(shared.database, claim, shared.max_result_bytes)

    def _known_step(self, name: str) -> str | None:
        return self._steps.known(name)

    def _store_step(self, name: str, result: Any) -> str:
        return self._steps.store(name, result)

    @property
    def cancelled(self) -> bool:
        """See ``Job``."""
        return self._claim.cancel_requested

    def _report(self, percent: float, stage: str | None) -> None:
        stage = None if stage is None else self._claim.redacted(stage)
        with self._lock:
            # A stage is kept until another one is named.
            self._stage = stage if stage is not None else self._stage
            self._pending = (percent, self._stage)
            if monotonic() - self._reported_at < PROGRESS_INTERVAL:
                return
            self._reported_at = monotonic()
        self.write_progress()

    def write_progress(self) -> None:
        """Write what was reported last, if it is not written yet."""
        with self._lock:
            pending, self._pending = self._pending, None
        if pending is not None:
            claim, (percent, stage) = self._claim, pending
            self._guarded(lambda c: write.record_progress(c, claim.job.id, claim.token, percent, stage), "progress")

    def _append(self, line: str) -> None:
        claim = self._claim
        line = claim.redacted(line)
        with self._lock:
            claim.log_lines += 1
            count = claim.log_lines
        if count == self._max_log_lines + 1:
            line = f"[further lines are not stored: MAX_LOG_LINES is {self._max_log_lines}]"
        elif count > self._max_log_lines:
            return
        self._guarded(lambda c: write.append_log(c, claim.job.id, claim.token, [line], [0.0]), "log line")

    def _guarded(self, statement: Any, what: str) -> None:
        if self._claim.completion is Completion.COMMITTED:
            logger.warning("dropped, job.transaction() has completed the job", what=what)
            return
        if self._claim.lost:
            raise LeaseLost(self.id)
        try:
            ours = self._database.run(statement)
        except (LedgerUnavailable, psycopg.Error) as error:
            # Neither is worth failing a job for; its end waits for Postgres anyway.
            logger.warning("dropped, Postgres is away", what=what, error=str(error).strip())
            return
        if not ours:
            self._claim.lost = True
            raise LeaseLost(self.id)

    @contextmanager
    def _completing(self) -> Iterator[Connection[Any]]:
        claim = self._claim
        with self._shared.transactions.completing(claim, self._stored_result, self._follow) as connection:
            yield connection
        with self._lock:
            # The completion says 100 %.
            self._pending = None
        if claim.ending is not None and (claim.ending.children or claim.ending.upstream is not None):
            cast("WakesServices", self._broker).wake_services(0.0)

    def _follow(self, ending: Finish) -> None:
        add_followers(self._broker, self._message, ending, self._result)

    def _stored_result(self) -> str | None:
        if not option("store_results", self._message, self._broker.actors.get(self.actor), True):
            return None
        return encode_result(self._claim.masked(self._result), self._shared.max_result_bytes)

    def _check_result(self, value: Any) -> None:
        encode_result(value, self._shared.max_result_bytes)


def _origin(options: dict[str, Any] | None) -> dict[str, Any]:
    """What a job's options say of the schedule that made it."""
    if not options or "schedule" not in options:
        return {}
    tick_at = options.get("tick_at")
    return {"schedule": options["schedule"], "tick_at": tick_at and datetime.fromisoformat(tick_at)}


#: The job of the running code; set by the worker's middleware, and by ``job_context`` in a unit test.
running_job: Final[ContextVar[Job | None]] = ContextVar("switchyard_current_job", default=None)


def current_job() -> Job:
    """The job this code runs for.

    Raises:
        RuntimeError: called outside an actor; in a unit test, use ``with switchyard.job_context(): ...``.
    """
    job = running_job.get()
    if job is None:
        raise RuntimeError("current_job() works inside a running actor only; in a unit test use `with switchyard.job_context():`")
    return job


def find_current_job() -> Job | None:
    """The job this code runs for, or None outside an actor."""
    return running_job.get()


class CurrentJob(Middleware):
    """Sets the context of every execution, and takes it down whatever happened."""

    def __init__(self, database: Database, *, max_log_lines: int, max_result_bytes: int) -> None:
        self.database = database
        self.max_log_lines = max_log_lines
        self.max_result_bytes = max_result_bytes
        self.transactions = Transactions(database)
        self._local = threading.local()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Enter the job's context on this thread."""
        leave_all()
        claim: Claim = message.claim
        job = ClaimedJobContext(broker, message, self)
        self._local.tokens = (current_claim.set(claim), running_job.set(job))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Write the progress that is still unwritten, then leave the context."""
        tokens: tuple[Token[Claim | None], Token[Job | None]] | None = getattr(self._local, "tokens", None)
        if tokens is None:
            return
        self._local.tokens = None
        job = running_job.get()
        if cast("Claim", message.claim).completion is Completion.COMMITTED:
            say_too_late(result, exception)
        try:
            if isinstance(job, ClaimedJobContext):
                job.write_progress()
        except LeaseLost as error:
            logger.warning("last progress refused", error=str(error))
        finally:
            running_job.reset(tokens[1])
            current_claim.reset(tokens[0])

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """A skipped message leaves its context too."""
        self.after_process_message(broker, message)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Let the connections of transactions go."""
        self.transactions.close()
