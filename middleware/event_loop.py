"""The event loop of async actors: one thread per worker, which it starts at the boot and stops at the shutdown.

Dramatiq's AsyncIO keeps one loop per process: when two workers live in one process for a while (a test inside a test), the first to stop
takes the other's loop along, and the other's thread is never stopped and keeps the process from ending. This one stops its own
and puts back the one it found. Actor options: none. Store: none.
"""

from __future__ import annotations

from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.middleware import AsyncIO

#: How long the loop may take to start, in seconds.
START_TIMEOUT = 5.0


class EventLoop(AsyncIO):
    """Runs the coroutines of async actors."""

    def __init__(self) -> None:
        super().__init__()
        self._own: EventLoopThread | None = None
        self._found: EventLoopThread | None = None

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Start the loop."""
        self._found = get_event_loop_thread()
        self._own = EventLoopThread(self.logger)
        self._own.start(timeout=START_TIMEOUT)
        set_event_loop_thread(self._own)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Stop it."""
        own, self._own = self._own, None
        if own is None:
            return
        if get_event_loop_thread() is own:
            set_event_loop_thread(self._found if self._found is not None and self._found.is_alive() else None)
        own.stop()
        own.join()
