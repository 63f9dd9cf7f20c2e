"""BROKER=stub: actors in unit tests, without any server.

Dramatiq's own StubBroker with Dramatiq's own middleware, which is fault-free in one process, and those of ours that need no ledger: the
payload check, the tags, schedules (checked, and never due), limits (checked, and holding nobody back), and ``current_job()``, whose
progress and lines go nowhere. The option names are the same, and checked the same; keys make no two sends one, for there is no ledger to
remember them.
"""

from __future__ import annotations

import threading
from typing import Any

from dramatiq import Broker, Message, MessageProxy, Middleware
from dramatiq.middleware import AgeLimit, AsyncIO, Callbacks, GroupCallbacks, Pipelines, Retries, ShutdownNotifications, TimeLimit
from dramatiq.rate_limits.backends import StubBackend as StubBarriers
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from middleware.concurrency import Concurrency
from middleware.dead_letter import DeadLetterHook
from middleware.idempotency import Idempotency
from middleware.job_context import job_context
from middleware.payload import CheckedPayload
from middleware.periodic import Periodic
from middleware.rate_limit import RateLimit
from middleware.secrets import Secrets
from middleware.tags import Tags
from middleware.unique import UniqueJobs
from middleware.worker_lost import WorkerLost
from runtime.message_options import MessageOptions
from settings import Settings, load


class StubMessageOptions(Middleware):
    """Refuses options that nobody knows, as our broker does by itself."""

    def __init__(self, settings: Settings) -> None:
        self._more = settings.message_options
        self._options: MessageOptions | None = None

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check what the sender gave."""
        if self._options is None:
            self._options = MessageOptions(broker, self._more)
        self._options.check(message)

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Know what the other middleware has added."""
        if self._options is not None:
            self._options.learn(message)


class StubCurrentJob(Middleware):
    """Gives every execution a job that only remembers what it is told."""

    def __init__(self) -> None:
        self._local = threading.local()
        #: What jobs remember from one attempt to the next, by their ids.
        self._steps: dict[str, dict[str, str]] = {}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Enter the job's context on this thread."""
        self._local.context = job_context(
            id=message.message_id,
            actor=message.actor_name,
            queue=message.queue_name,
            attempt=message.options.get("retries", 0) + 1,
            steps=self._steps.setdefault(message.message_id, {}),
        )
        self._local.context.__enter__()

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Leave it."""
        self._local.context.__exit__(None, None, None)
        if exception is None:
            self._steps.pop(message.message_id, None)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Leave it."""
        self.after_process_message(broker, message)


def stub_stack(settings: Settings | None = None) -> list[Middleware]:
    """The middlewares of the stub broker; without settings, with those of the environment."""
    settings = settings or load()
    return [
        # Before anybody adds an option.
        StubMessageOptions(settings),
        AgeLimit(),
        TimeLimit(),
        ShutdownNotifications(),
        Callbacks(),
        Pipelines(),
        GroupCallbacks(StubBarriers()),
        Retries(),
        AsyncIO(),
        CheckedPayload(),
        Tags(),
        Periodic(),
        WorkerLost(),
        Secrets(settings),
        Idempotency(settings),
        UniqueJobs(settings),
        DeadLetterHook(),
        RateLimit(),
        Concurrency(),
        StubCurrentJob(),
        Results(backend=StubBackend(), store_results=True),
    ]
