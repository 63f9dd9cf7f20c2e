"""The publisher: one thread per process that owns the broker connections, so that no ``send()`` ever waits for a broker.

    send() ── commit ──► offer() ──► thread: publish in batches, follow confirms

A transport that fails opens its circuit: while it is open nothing is offered to it, rows are written due at once (``grace`` is 0) and
lie in the ledger until the transport answers again; the relay then publishes them. A queue that the broker refuses while it takes others
is treated so alone: the circuit stays closed. A publish that fails after the commit sets its rows
due. What is still in this process when it dies is found missing in the broker when the row's grace (one LEASE) is over, and published. So
this thread may lose anything it holds and no job is lost. A forked child starts a thread of its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Final

from structlog.stdlib import get_logger

from ledger.forks import ForkSafeLock
from runtime.triggers import Outgoing, Outlet, PublishFailed
from runtime.watchdog import Pulse

logger = get_logger(__name__)

#: Most offers waiting in memory; what is offered beyond is left to the relay.
MAX_WAITING: Final = 50_000
#: Most triggers of one call to a transport.
MAX_BATCH: Final = 1_000
#: While triggers come in a stream (the last ones went out less than ``STREAM`` seconds ago), the next ones are gathered for ``GATHER``
#: seconds. One by one they cost a sending process 60 us each on Redis and 90 on RabbitMQ (measured at 1,500 sends a second).
STREAM: Final = 0.005
GATHER: Final = 0.002
#: How soon an outlet that was just used may tidy up (a doorbell's trailing ring), and how often an idle one must, in seconds.
TIDY_SOON: Final = 0.005
TIDY_IDLE: Final = 1.0
#: First and longest pause before a failed broker is tried again, in seconds.
RETRY_MIN: Final = 0.25
RETRY_MAX: Final = 5.0
#: How long a normal exit of the process waits for what is not published yet, in seconds.
EXIT_FLUSH: Final = 2.0


#: Connections that a forked child inherited, kept for ever.
_inherited: list[object] = []


class _Circuit:
    """One broker as the publisher sees it: its outlet, and when it may be tried again after a failure."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.open = False
        self.retry_at = 0.0
        self.pause = RETRY_MIN
        #: The queues that it refuses. Replaced as a whole, since other threads read it.
        self.refused: frozenset[str] = frozenset()

    def fail(self) -> None:
        self.open = True
        self.retry_at = monotonic() + self.pause
        self.pause = min(self.pause * 2, RETRY_MAX)

    def heal(self) -> None:
        # The pause stays as it is until something was published: a broker may answer questions and still take nothing.
        self.open = False


class Publisher:
    """Publishes triggers for one process.

    Parameters:
        outlet: makes the publishing side of a broker, by name.
        probe: raises ``PublishFailed`` while a broker, by name, cannot be reached.
        make_due: told the ids of rows whose trigger may not have arrived; must not raise.
        grace: seconds a trigger may take to be claimed before it is looked for.
        published: told, in the publisher's thread, what went to a broker, and now and then nothing while it is down; must not raise.
    """

    def __init__(
        self,
        outlet: Callable[[str], Outlet],
        probe: Callable[[str], object],
        make_due: Callable[[Sequence[int]], None],
        *,
        grace: float,
        published: Callable[[str, Sequence[Outgoing]], None] = lambda _, __: None,
    ) -> None:
        self._outlet = outlet
        self._probe = probe
        self._make_due = make_due
        self._grace = grace
        self._published = published
        self._lock = ForkSafeLock()
        self._pid = 0
        self._thread: threading.Thread | None = None
        #: For the watchdog of a worker; at rest until there is a thread.
        self.pulse = Pulse()
        self.pulse.rest()
        self._reset()

    def _reset(self) -> None:
        self._queue: SimpleQueue[tuple[str, Sequence[Outgoing]] | None] = SimpleQueue()
        self._circuits: dict[str, _Circuit] = {}
        self._published_at = 0.0
        self._closing_until: float | None = None
        self._done = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether the thread works, or there is none: nothing was offered yet, or it was closed."""
        return self._pid != os.getpid() or self._thread is None or self._thread.is_alive()

    def grace(self, broker: str, queue: str) -> float:
        """Seconds after which the trigger of a row written now is looked for; 0 while the broker's circuit is open, or it refuses the
        queue: the row is due."""
        return 0.0 if self.is_open(broker) or queue in self.refused(broker) else self._grace

    def is_open(self, broker: str) -> bool:
        """Whether the broker is known to be down, so that nothing should be offered to it."""
        circuit = self._circuits.get(broker) if self._pid == os.getpid() else None
        return circuit is not None and circuit.open

    def refused(self, broker: str) -> frozenset[str]:
        """The queues that the broker is known to refuse, so that nothing should be offered for them."""
        circuit = self._circuits.get(broker) if self._pid == os.getpid() else None
        return frozenset() if circuit is None else circuit.refused

    def offer(self, broker: str, batch: Sequence[Outgoing]) -> None:
        """Hand over triggers of committed rows. Never blocks, never fails."""
        if self._pid != os.getpid():
            self._begin()
        # An open circuit: the rows were written due at once, the relay has them. Too many: their grace brings the relay.
        if self.is_open(broker) or self._queue.qsize() > MAX_WAITING:
            return
        refused = self.refused(broker)
        if refused:
            batch = [trigger for trigger in batch if trigger.queue not in refused]
        if batch:
            self._queue.put((broker, batch))

    def close(self, timeout: float = EXIT_FLUSH) -> None:
        """Publish what is left for at most ``timeout`` seconds, then close the connections."""
        if self._pid != os.getpid() or self._done.is_set():
            return
        self._closing_until = monotonic() + timeout
        self._queue.put(None)
        self._done.wait(timeout + 0.5)
        self._pid = 0

    def _begin(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                return
            if self._circuits:
                # Inherited by a fork: collecting them here could say goodbye on the parent's connections.
                _inherited.append(self._circuits)
            self._reset()
            self._thread = threading.Thread(target=self._run, name="switchyard-publisher", daemon=True)
            self._thread.start()
            atexit.register(self.close)
            self._pid = os.getpid()

    def _run(self) -> None:
        tidy = TIDY_IDLE
        while True:
            self.pulse.beat()
            batches, closing = self._collect(tidy)
            for broker, batch in batches.items():
                self._publish(broker, batch)
            if batches:
                self._published_at = monotonic()
                tidy = TIDY_SOON
            else:
                tidy = TIDY_IDLE
                for broker, circuit in list(self._circuits.items()):
                    self._tidy(broker, circuit)
            if closing:
                break
        self.pulse.rest()
        left = max(0.0, (self._closing_until or 0.0) - monotonic())
        for broker, circuit in self._circuits.items():
            self._attempt(broker, circuit, lambda circuit=circuit: circuit.outlet.flush(left))  # type: ignore[misc]
            circuit.outlet.close()
        self._done.set()

    def _collect(self, timeout: float) -> tuple[dict[str, list[Outgoing]], bool]:
        """Wait for triggers, then take all there are, by broker."""
        batches: dict[str, list[Outgoing]] = defaultdict(list)
        taken = 0
        try:
            entry = self._queue.get(timeout=timeout)
            if entry is not None and monotonic() - self._published_at < STREAM:
                sleep(GATHER)
            while entry is not None:
                broker, batch = entry
                batches[broker] += batch
                taken += len(batch)
                if taken >= MAX_BATCH:
                    break
                entry = self._queue.get_nowait()
        except Empty:
            entry = ("", ())
        return batches, entry is None

    def _publish(self, broker: str, batch: list[Outgoing]) -> None:
        circuit = self._circuits.get(broker)
        if circuit is None:
            circuit = self._circuits[broker] = _Circuit(self._outlet(broker))
        for start in range(0, len(batch), MAX_BATCH):
            self.pulse.beat()
            chunk = batch[start : start + MAX_BATCH]
            if circuit.open:
                # It failed a moment ago, after these were committed with a grace.
                self._make_due([trigger.job_id for trigger in chunk])
            else:
                ids = [trigger.job_id for trigger in chunk]
                if self._attempt(broker, circuit, lambda chunk=chunk: circuit.outlet.publish(chunk), ids):  # type: ignore[misc]
                    circuit.pause = RETRY_MIN
                    self._published(broker, chunk)

    def _tidy(self, broker: str, circuit: _Circuit) -> None:
        if not circuit.open:
            self._attempt(broker, circuit, circuit.outlet.idle)
        elif monotonic() >= circuit.retry_at:
            self._published(broker, ())
            try:
                self._probe(broker)
            except Exception as error:
                if not isinstance(error, PublishFailed):
                    logger.critical("the probe of a broker failed", broker=broker, exc_info=True)
                circuit.fail()
            else:
                logger.info("broker is back", broker=broker)
                circuit.heal()

    def _attempt(self, broker: str, circuit: _Circuit, action: Callable[[], list[int]], ids: Sequence[int] = ()) -> bool:
        """Do it; rows whose trigger may not have arrived, ``ids`` if nobody knows which, become due. Returns whether it went well."""
        well = True
        failed: Sequence[int]
        try:
            failed = action()
        except PublishFailed as error:
            well, failed = False, error.unpublished
            logger.warning("broker is down, jobs wait in the ledger", broker=broker, error=str(error))
        except Exception:
            # A bug, or a driver's. The thread must outlive it, or this process never publishes again.
            well, failed = False, ids
            logger.critical("publishing failed, jobs wait in the ledger", broker=broker, exc_info=True)
        if not well:
            circuit.fail()
        # Before the rows become due, or the relay would offer them again at once.
        circuit.refused = frozenset(circuit.outlet.refused())
        if failed:
            self._make_due(failed)
        return well
