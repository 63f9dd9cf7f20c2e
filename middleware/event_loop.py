"""The event loop of async actors: one thread per worker, which it starts at the boot and stops at the shutdown.

Dramatiq's AsyncIO keeps one loop per process: when two workers live in one process for a while (a test inside a test), the first to stop
takes the other's loop along, and the other's thread is never stopped and keeps the process from ending. This one stops its own
and puts back the one it found. The watchdog looks at it: a coroutine that blocks the loop keeps every other from going on, which is
its job's business until the time limit of one of them is over and the loop does not even take that in. Actor options: none. Store: none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable
from typing import Final, TypeVar

from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.middleware import AsyncIO, Interrupt

from runtime.node import WorkerNode
from runtime.watchdog import Pulse

R = TypeVar("R")

#: How long the loop may take to start, in seconds.
START_TIMEOUT: Final = 5.0
#: How often the loop says that it goes round, in seconds.
BEAT: Final = 1.0


class WatchedLoop(EventLoopThread):
    """A loop that counts its rounds; it rests while coroutines run that have time left."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.pulse = Pulse()
        self._lock = threading.Lock()
        self._waiting = 0
        # Somebody gave up waiting, and the loop has not come round since.
        self._overdue = False

    def run(self) -> None:
        """Run the loop until it is stopped."""
        self.loop.call_soon(self._go_round)
        super().run()  # type: ignore[no-untyped-call]

    def run_coroutine(self, coro: Awaitable[R]) -> R:
        """Run a coroutine on the loop, and wait for it on this thread."""
        self._wait(1)
        try:
            result: R = super().run_coroutine(coro)
            return result
        except RuntimeError as error:
            if isinstance(error.__cause__, Interrupt):
                # It was told to stop and did not: that has not even reached it, if the loop is blocked.
                self._overdue = True
            raise
        finally:
            self._wait(-1)

    def _wait(self, more: int) -> None:
        with self._lock:
            self._waiting += more
            self.pulse.resting = self._waiting > 0 and not self._overdue

    def _go_round(self) -> None:
        with self._lock:
            self._overdue = False
            self.pulse.beat()
            self.pulse.resting = self._waiting > 0
        self.loop.call_later(BEAT, self._go_round)


class EventLoop(AsyncIO):
    """Runs the coroutines of async actors."""

    def __init__(self) -> None:
        super().__init__()
        self._own: WatchedLoop | None = None
        self._found: EventLoopThread | None = None

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the loop."""
        self._found = get_event_loop_thread()
        own = self._own = WatchedLoop(self.logger)
        own.start(timeout=START_TIMEOUT)
        set_event_loop_thread(own)
        node: WorkerNode | None = getattr(broker, "node", None)
        if node is not None:
            node.watchdog.watch("event loop", own.is_alive, own.pulse)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop it."""
        own, self._own = self._own, None
        if own is None:
            return
        if get_event_loop_thread() is own:
            set_event_loop_thread(self._found if self._found is not None and self._found.is_alive() else None)
        own.stop()  # type: ignore[no-untyped-call]
        own.join()
