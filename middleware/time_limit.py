"""``time_limit``: a body that runs too long gets ``TimeLimitExceeded``.

Effect: raised in the body's thread and nowhere else (see ``runtime.interrupt``): never in a hook, never in the next job, never in a body
that has returned. It is a failure like any other: retried, and at the end dead with reason ``time_limit``. A body that has not ended
5 seconds later, because it hangs where no exception reaches it (a C call) or caught the exception, is given up: the same end is written
without it, with where it hangs as its traceback, and since nothing ends its thread, the process is replaced.
Actor and message option: ``time_limit`` in milliseconds, default 10 minutes, as in Dramatiq. Store: the job's row, by the flusher.
"""

from __future__ import annotations

import threading
import traceback
from time import monotonic
from typing import Any, Final

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware, Worker
from dramatiq.middleware.time_limit import TimeLimitExceeded
from structlog.stdlib import get_logger

from middleware.callbacks import add_followers
from middleware.retries import MAX_TRACEBACK, failed
from runtime.claims import Claim, Completion
from runtime.encoding import clean_text
from runtime.heartbeat import TIME_LIMIT_GRACE
from runtime.node import WorkerNode
from runtime.options import DEFAULT_TIME_LIMIT_MS, check_numbers, option
from runtime.watchdog import Pulse

logger = get_logger(__name__)

#: How often running bodies are looked at, in seconds; a limit is exceeded by at most this much.
CHECK_INTERVAL: Final = 0.25


class TimeLimit(Middleware):
    """Watches what runs."""

    def __init__(self) -> None:
        self._running: dict[Claim, MessageProxy] = {}
        #: Those that were interrupted already.
        self._told: dict[Claim, None] = {}
        self._stop = threading.Event()
        self._pulse = Pulse()

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"time_limit"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's limit."""
        check_numbers(actor.actor_name, actor.options, {"time_limit": "milliseconds"}, least=1)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own limit."""
        if message.options:
            check_numbers(message.actor_name, message.options, {"time_limit": "milliseconds"}, least=1)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start watching."""
        self._stop.clear()
        node: WorkerNode = broker.node  # type: ignore[attr-defined]
        thread = threading.Thread(target=self._watch, args=(broker, node), name="switchyard-time-limit", daemon=True)
        thread.start()
        node.watchdog.watch("time limit", thread.is_alive, self._pulse)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Put the body under its limit."""
        limit = option("time_limit", message, broker.actors.get(message.actor_name), DEFAULT_TIME_LIMIT_MS)
        if limit is not None:
            claim: Claim = message.claim
            claim.time_limit = limit / 1000
            self._running[claim] = message

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """The body is over."""
        self._forget(message.claim)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """There was no body."""
        self._forget(message.claim)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop watching."""
        self._stop.set()

    def _forget(self, claim: Claim) -> None:
        self._running.pop(claim, None)
        if self._told:
            self._told.pop(claim, None)

    def _watch(self, broker: Broker, node: WorkerNode) -> None:
        while not self._stop.wait(CHECK_INTERVAL):
            self._pulse.beat()
            now = monotonic()
            for claim, message in list(self._running.items()):
                limit, started = claim.time_limit, claim.started
                if limit is None or started is None or now < started + limit:
                    continue
                try:
                    if now >= started + limit + TIME_LIMIT_GRACE:
                        self._give_up(broker, node, claim, message)
                    elif claim not in self._told and claim.guard is not None and claim.guard.interrupt(TimeLimitExceeded):
                        self._told[claim] = None
                        logger.warning("time limit exceeded", job_id=claim.job.message_id, actor=claim.job.actor, limit=limit)
                except Exception:
                    # One job's doing: the others keep their limits, and this one its lease.
                    logger.critical("a job cannot be given up", job_id=claim.job.message_id, exc_info=True)
                    self._forget(claim)

    def _give_up(self, broker: Broker, node: WorkerNode, claim: Claim, message: MessageProxy) -> None:
        """Write the end of a body that does not end; see the module's docstring."""
        if claim.completion is Completion.UNDER_WAY:
            # Its own commit says how it ends, within the time of a statement.
            return
        error = TimeLimitExceeded(f"did not end within {TIME_LIMIT_GRACE:g} s of its time limit of {claim.time_limit:g} s")
        ending = failed(message, error, broker.actors.get(message.actor_name))
        if claim.guard is not None and (stack := claim.guard.stack()):
            ending.traceback = clean_text("Given up while it was here:\n" + "".join(traceback.format_list(stack)), MAX_TRACEBACK)
        if claim.completion is None:
            add_followers(broker, message, ending, None)
        if node.give_up(claim, ending):
            logger.error(
                "gave up a job that does not end", job_id=claim.job.message_id, actor=claim.job.actor, state=ending.state
            )
            self._forget(claim)
