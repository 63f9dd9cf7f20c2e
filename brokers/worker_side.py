"""What happens to a Dramatiq ``Worker`` that is started on our broker.

Dramatiq gives every queue a consumer thread and every consumer a prefetch of its own. Ours fetch per transport and share one room,
so before the worker makes its threads, its work queue is replaced by ours and its table of consumers by one that has a single entry
for all queues: 200 queues cost one thread. That one consumer hands nothing out; it is where acks and nacks come in.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from dramatiq import Broker, Consumer, Message, MessageProxy, Middleware, Worker
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import SkipMessage
from psycopg.errors import InsufficientPrivilege
from structlog.stdlib import get_logger

from brokers.consumption import Consumption
from brokers.fetcher import Intake
from brokers.message import ClaimedMessage
from errors import LedgerUnavailable
from ledger.database import require_migrated
from ledger.records import Finish
from ledger.states import State
from runtime import process
from runtime.node import WorkerNode
from runtime.watchdog import Pulse

if TYPE_CHECKING:
    from brokers.broker import SwitchyardBroker

logger = get_logger(__name__)

#: Pause between two looks of the consumer thread once the shutdown has begun, in seconds.
LEAVING_WAIT: Final = 0.05
#: How long Dramatiq waits for threads: the node's own clock ends the process long before.
_FOR_EVER_MS: Final = 10**9


class Service(Protocol):
    """Something that runs beside the fetchers in every worker process, such as the keeper."""

    pulse: Pulse

    @property
    def alive(self) -> bool:
        """Whether its thread works."""

    def start(self, node: WorkerNode) -> None:
        """Begin, with threads of its own."""

    def wake(self, within: float) -> None:
        """Something waits that will be due in ``within`` seconds."""

    def stop(self) -> None:
        """End, within a second or two."""


class SharedConsumers(dict[str, Any]):
    """Dramatiq's table of consumer threads: the first queue declared gets one, and it stands for all the others."""

    def __contains__(self, queue_name: object) -> bool:
        return len(self) > 0

    def __missing__(self, queue_name: str) -> Any:
        for consumer in self.values():
            return consumer
        raise QueueNotFound(queue_name)


class AckConsumer(Consumer):
    """The consumer of every queue: yields nothing, and takes what the worker threads are done with."""

    def __init__(self, broker: SwitchyardBroker, timeout: int) -> None:
        self._broker = broker
        self._timeout = timeout / 1000
        self._closed = threading.Event()

    def __next__(self) -> MessageProxy | None:
        node = self._broker.node
        # Whoever stops the worker waits for this thread to look whether it is stopped.
        if node is None or node.leaving.wait(self._timeout):
            self._closed.wait(LEAVING_WAIT)
        return None

    def ack(self, message: MessageProxy) -> None:
        """The execution is over: how it ended was noted on the claim."""
        self._broker.settle(cast("ClaimedMessage", message))

    # To the worker a failed message is nacked; to us both mean that the claim leaves the process.
    nack = ack

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Unstarted claims are released by the node, long before Dramatiq asks."""

    def close(self) -> None:
        """Let ``__next__`` return."""
        self._closed.set()


class WorkerSide(Middleware):
    """Starts and stops everything a worker process needs; always the first middleware, so that it boots first and leaves last."""

    def __init__(self, broker: SwitchyardBroker) -> None:
        self._broker = broker
        self.consumption: Consumption | None = None
        self._worker: Worker | None = None

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Check the database, take over the work queue and the consumers, register the process.

        Raises:
            SystemExit: that cannot be done, and standard error says why in one line. Dramatiq would log it and go on with a worker that
                does nothing.
        """
        process.worker_boots()
        with refusing():
            self._boot(worker)

    def _boot(self, worker: Worker) -> None:
        ours = self._broker
        whitelist = worker.consumer_whitelist

        def queues() -> list[str]:
            return [name for name in ours.queues if not whitelist or name in whitelist]

        require_migrated(ours.database)
        node = WorkerNode(
            ours.settings,
            ours.database,
            threads=worker.worker_threads,
            queues=queues,
            actors=lambda: sorted(ours.actors),
            routes=ours.routes,
            on_waiting=ours.wake_services,
        )
        try:
            node.start()
        except InsufficientPrivilege:
            # Raised again on a pooled connection it becomes the error that names the right, with the user's name.
            with ours.database.connection():
                raise
        try:
            ours.database.run(lambda connection: ours.limits.declare(connection, queues()))
        except Exception:
            node.stop()
            raise
        self._worker = worker
        worker.work_queue = cast("Any", node.queue)
        worker.consumers = SharedConsumers()
        ours.node = node
        if process.is_ours() and not process.is_supervised():
            # Dramatiq's command leaves at a second signal by SystemExit, perhaps before it has begun to stop the worker.
            Finalize(None, self._leave, exitpriority=0)
        self.consumption = Consumption(
            ours.transports,
            ours.routes,
            node,
            Intake(queues, lambda: list(ours.actors), self._is_paused, ours.limits.queues),
        )

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Threads are there to work: fetch. Raises: SystemExit: as ``before_worker_boot``; jobs that had begun were given the grace."""
        with refusing():
            try:
                self._begin(worker)
            except Exception:
                worker.stop(timeout=_FOR_EVER_MS)
                raise

    def _begin(self, worker: Worker) -> None:
        node, consumption = self._broker.node, self.consumption
        assert node is not None
        assert consumption is not None
        # What is there now stays: the collector need not walk over every imported module each time that jobs made some garbage.
        gc.collect()
        gc.freeze()
        consumption.follow()
        for service in self._broker.services:
            service.start(node)
        self._watch_all(node, worker)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Fetch nothing more, give back what has not started, and start the clock of the grace."""
        node, consumption = self._broker.node, self.consumption
        assert node is not None
        assert consumption is not None
        node.watchdog.relax()
        consumption.stop()
        node.begin_shutdown()
        for service in self._broker.services:
            service.stop()
        consumption.join(2.0)
        # A claim may have been under way while the first release ran.
        node.release_unstarted()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """The threads are at rest: write the last results, sign off."""
        node = self._broker.node
        assert node is not None
        node.release_unstarted()
        node.stop()
        self._broker.node = None
        gc.unfreeze()
        if node.recycling is not None and process.is_ours():
            # Whatever started this process learns that it is to start another.
            self._broker.close()
            raise SystemExit(process.RECYCLED)

    def _watch_all(self, node: WorkerNode, worker: Worker) -> None:
        for service in self._broker.services:
            name = type(service).__name__.lower()
            node.watchdog.watch(name, lambda service=service: service.alive, service.pulse)  # type: ignore[misc]
        publisher = self._broker.publisher
        node.watchdog.watch("publisher", lambda: publisher.alive, publisher.pulse)
        for consumer in worker.consumers.values():
            node.watchdog.watch("consumer", consumer.is_alive)
        for number, thread in enumerate(worker.workers, 1):
            assert thread.ident is not None
            node.watchdog.watch(f"worker {number}", thread.is_alive, node.queue.pulse(thread.ident))
        node.watchdog.start()

    def _leave(self) -> None:
        """The process's main thread ends. Nothing to do after a shutdown in order; otherwise there is no more time for one."""
        node = self._broker.node
        if node is None:
            return
        node.watchdog.relax()
        node.held.close()
        if self.consumption is not None:
            self.consumption.stop()
            self.consumption.join(2.0)
        node.hurry()

    def _is_paused(self) -> bool:
        return self._worker is not None and any(consumer.paused for consumer in self._worker.consumers.values())


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever goes wrong inside keeps the worker from starting: the process says so in one line and ends with code 3."""
    try:
        yield
    except LedgerUnavailable as error:
        process.refuse(f"DATABASE_URL: {error.headline}")
    except Exception as error:
        logger.debug("the worker cannot start", exc_info=True)
        said = (str(error).strip() or "no reason given").splitlines()[0]
        process.refuse(f"the worker cannot start: {type(error).__name__}: {said}")


def how_it_ended(message: ClaimedMessage, default: Callable[[Message[Any], BaseException], Finish]) -> Finish:
    """The end that the hooks noted; failing that, what the message itself tells.

    Nothing noted means that a hook kept ours from running: a skipped message is cancelled, anything else is a failed attempt.
    """
    claim = message.claim
    if claim.ending is not None:
        return claim.ending
    error = message._exception
    if error is not None and not isinstance(error, SkipMessage):
        return default(cast("Message[Any]", message), error)
    now = monotonic()
    return Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.CANCELLED,
        started=claim.started or now,
        finished=now,
        outcome="cancelled",
        error_type="SkipMessage",
        error="skipped by a middleware or by the actor",
    )


def untold(message: ClaimedMessage, error: Exception) -> Finish:
    """The end of an execution when even noting it failed: a dead letter, on view and replayable."""
    claim, now = message.claim, monotonic()
    return Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.DEAD,
        started=claim.started or now,
        finished=now,
        outcome="failed",
        error_type=type(error).__name__,
        error="how the execution ended cannot be told; the worker's log has the reason",
        dead_reason="untold",
    )
