"""``time_limit``: a body that runs too long gets ``TimeLimitExceeded``.

Effect: raised in the body's thread and nowhere else (see ``runtime.interrupt``): never in a hook, never in the next job, never in a body
that has returned. It is a failure like any other: retried, and at the end dead with reason ``time_limit``. A body that hangs where no
exception reaches it (a C call) is given up by its lease.
Actor and message option: ``time_limit`` in milliseconds, default 10 minutes, as in Dramatiq. Store: none.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any, Final

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware, Worker
from dramatiq.middleware.time_limit import TimeLimitExceeded
from structlog.stdlib import get_logger

from runtime.claims import Claim
from runtime.options import DEFAULT_TIME_LIMIT_MS, check_numbers, option

logger = get_logger(__name__)

#: How often running bodies are looked at, in seconds; a limit is exceeded by at most this much.
CHECK_INTERVAL: Final = 0.25


class TimeLimit(Middleware):
    """Watches what runs."""

    def __init__(self) -> None:
        self._running: dict[Claim, None] = {}
        self._stop = threading.Event()

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
        threading.Thread(target=self._watch, name="switchyard-time-limit", daemon=True).start()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Put the body under its limit."""
        limit = option("time_limit", message, broker.actors.get(message.actor_name), DEFAULT_TIME_LIMIT_MS)
        if limit is not None:
            claim: Claim = message.claim
            claim.time_limit = limit / 1000
            self._running[claim] = None

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """The body is over."""
        self._running.pop(message.claim, None)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """There was no body."""
        self._running.pop(message.claim, None)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(CHECK_INTERVAL):
            now = monotonic()
            for claim in list(self._running):
                limit, started = claim.time_limit, claim.started
                if limit is None or started is None or now < started + limit or claim.guard is None:
                    continue
                # Once is enough: a body that catches it and goes on is given up by its lease.
                if claim.guard.interrupt(TimeLimitExceeded):
                    self._running.pop(claim, None)
                    logger.warning("time limit exceeded", job_id=claim.job.message_id, actor=claim.job.actor, limit=limit)
