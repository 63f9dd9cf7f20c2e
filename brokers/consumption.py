"""Which transports a worker process fetches from: those that are the route of one of its queues, and those where something was left behind.

Fetchers start and stop as the routes change, one per transport, each for the queues that concern its transport. A queue that was routed
elsewhere is served at its old broker for another lease after the last sign of anything there, so that triggers left behind are cleared away
and what a sender with an old view publishes is found. Each fetcher backs off by itself while its broker cannot be reached; the others
never wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic

from structlog.stdlib import get_logger

from brokers.fetcher import Fetcher, Intake, make_fetcher
from brokers.transport import Transport
from ledger.routes import Place
from runtime.node import WorkerNode
from runtime.routes import Routes

logger = get_logger(__name__)


class Consumption:
    """The fetchers of one worker process.

    Parameters:
        transports: those this process may use, by name.
        intake: what it takes in, wherever that is.
    """

    def __init__(self, transports: Mapping[str, Transport], routes: Routes, node: WorkerNode, intake: Intake) -> None:
        self._transports = transports
        self._routes = routes
        self._node = node
        self._intake = intake
        self._lock = threading.Lock()
        self._stopped = False
        #: Those that work, by transport.
        self.fetchers: dict[str, Fetcher] = {}
        self._leaving: list[Fetcher] = []
        #: When a broker was last a queue's route, or known to hold something of it (monotonic).
        self._wanted_at: dict[tuple[str, str], float] = {}
        self._unknown: set[str] = set()

    def follow(self, left_behind: Sequence[Place] = ()) -> None:
        """Start and stop fetchers by the routes and by where pending rows are still. After ``stop`` nothing happens."""
        with self._lock:
            if self._stopped:
                return
            now, queues = monotonic(), self._intake.queues()
            wanted = [(self._routes.of(queue), queue) for queue in queues]
            wanted += [(place.broker, place.queue) for place in left_behind if place.queue in queues]
            fresh = now - self._node.held.lease
            self._wanted_at = {key: at for key, at in self._wanted_at.items() if at >= fresh} | dict.fromkeys(wanted, now)
            names = {broker for broker, _ in self._wanted_at}
            for name in sorted(self.fetchers.keys() - names):
                logger.info("fetching no more", broker=name)
                self._retire(name)
            for name in sorted(names - self.fetchers.keys()):
                self._begin(name)
            self._leaving = [fetcher for fetcher in self._leaving if fetcher.alive]
            self._node.heartbeat.consumes = sorted(self.fetchers)

    def stop(self) -> None:
        """Fetch nothing more; returns at once."""
        with self._lock:
            self._stopped = True
            for name in list(self.fetchers):
                self._retire(name)

    def join(self, timeout: float) -> None:
        """Wait until every fetcher has ended, for at most ``timeout`` seconds."""
        deadline = monotonic() + timeout
        for fetcher in self._leaving:
            fetcher.join(max(0.0, deadline - monotonic()))

    def _begin(self, name: str) -> None:
        transport = self._transports.get(name)
        if transport is None:
            if name not in self._unknown:
                self._unknown.add(name)
                logger.error("cannot fetch, the driver is not installed", broker=name, fix=f"pip install 'switchyard[{name}]'")
            return
        fetcher = make_fetcher(transport, self._node, replace(self._intake, queues=lambda: self._served_at(name)))
        self.fetchers[name] = fetcher
        fetcher.start()
        self._node.watchdog.watch(fetcher.name, lambda: fetcher.alive, fetcher.pulse)

    def _retire(self, name: str) -> None:
        fetcher = self.fetchers.pop(name)
        self._node.watchdog.forget(fetcher.pulse)
        fetcher.stop()
        self._leaving.append(fetcher)

    def _served_at(self, name: str) -> list[str]:
        """The queues whose triggers may be at a broker."""
        wanted, of = self._wanted_at, self._routes.of
        return [queue for queue in self._intake.queues() if of(queue) == name or (name, queue) in wanted]
