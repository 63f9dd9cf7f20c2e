"""One whole Switchyard in the test's process: settings, ledger, broker, actors, and a Dramatiq worker when it is started."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import dramatiq
from dramatiq import Message
from dramatiq.results import ResultFailure

import switchyard
from brokers.broker import SwitchyardBroker
from ledger.job import Attempt, Job
from ledger.states import TERMINAL
from settings import Settings
from tests.conformance import jobs
from tests.rig.rabbitmq import remove_queues
from tests.rig.redis import remove_keys
from tests.rig.waiting import wait_until


class System:
    """Takes the place of this process's configured Switchyard until it is closed."""

    def __init__(self, settings: Settings, declare: Callable[[dramatiq.Broker], Any] = jobs.declare) -> None:
        self._before = switchyard._configured, dramatiq.broker.global_broker
        switchyard._configured = None
        broker = switchyard.configure(**{name: getattr(settings, name) for name in type(settings).model_fields})
        assert isinstance(broker, SwitchyardBroker)
        self._own = switchyard._configured, broker
        self.settings = settings
        self.broker = broker
        self.database = switchyard.database()
        self.jobs: Any = declare(broker)
        self.worker: dramatiq.Worker | None = None

    def activate(self) -> None:
        """Be this process's Switchyard again, whatever other system was made or closed meanwhile."""
        switchyard._configured, dramatiq.broker.global_broker = self._own

    def start(self, *, threads: int = 8, queues: set[str] | None = None) -> System:
        """Start a worker in this process."""
        self.worker = dramatiq.Worker(self.broker, worker_threads=threads, worker_timeout=100, queues=queues)
        self.worker.start()
        return self

    def stop(self) -> None:
        """Stop the worker in order."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.stop()

    def close(self) -> None:
        """Stop the worker, close every connection, remove what is ours from the broker."""
        self.stop()
        queues = list(self.broker.queues)
        self.broker.close()
        if switchyard._configured is self._own[0]:
            switchyard._configured, dramatiq.broker.global_broker = self._before
        with suppress(OSError):
            if self.settings.broker == "redis":
                remove_keys(self.settings.redis_url.get_secret_value(), self.settings.broker_prefix)
            elif self.settings.broker == "rabbitmq":
                prefix = self.settings.broker_prefix
                names = [*(f"{prefix}.{queue}.p10" for queue in queues), f"{prefix}.dead", f"{prefix}.ledgers"]
                remove_queues(self.settings.rabbitmq_url.get_secret_value(), names)

    def job(self, message: Message[Any] | str) -> Job:
        """The job as it stands now."""
        found = switchyard.get_job(message if isinstance(message, str) else message.message_id)
        assert found is not None
        return found

    def ended(self, message: Message[Any], timeout: float = 30.0) -> Job:
        """The job, once it is completed, dead or cancelled."""
        return self.until(message, lambda job: job.state in TERMINAL, timeout)

    def until(self, message: Message[Any], condition: Callable[[Job], bool], timeout: float = 30.0) -> Job:
        """The job, once a condition holds for it."""
        wait_until(lambda: condition(self.job(message)), timeout, lambda: f"the job gets there; it is {self.job(message)}")
        return self.job(message)

    def attempts(self, message: Message[Any]) -> list[Attempt]:
        """The executions of a job so far."""
        return switchyard.attempts(message.message_id)

    def attempts_of(self, job: Job) -> list[Attempt]:
        """As ``attempts``, for a job."""
        return switchyard.attempts(job.id)

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What the database answers."""
        return self.database.run(lambda connection: connection.execute(statement.encode(), parameters).fetchall())

    def count(self) -> int:
        """How many jobs there are."""
        return int(self.rows("SELECT count(*) FROM switchyard.job")[0][0])

    def counters(self) -> dict[str, int]:
        """What this process's worker counted so far."""
        assert self.broker.node is not None
        return self.broker.node.counters.snapshot()


def failure_of(message: Message[Any], timeout: int = 30_000) -> ResultFailure:
    """The failure that ``get_result`` raises."""
    try:
        result = message.get_result(block=True, timeout=timeout)
    except ResultFailure as error:
        return error
    raise AssertionError(f"no failure but a result: {result!r}")
