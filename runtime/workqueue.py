"""The queue between the fetchers and Dramatiq's worker threads.

It takes the place of ``Worker.work_queue`` and answers the same calls. Order within it is the order of claiming, and claims come best
priority first, so it needs no sorting. What was released or lost while it waited is passed over here, on the thread that was about
to run it.

A deque and one lock per waiting thread, and not ``queue.SimpleQueue``: there a wait whose time-out ends just as another thread takes the
item goes on for ever (CPython 3.11: the time left turns negative, which means no time-out), and a shutdown then waits in vain.
"""

from __future__ import annotations

from _thread import LockType, allocate_lock, get_ident
from collections import deque
from collections.abc import Iterable
from queue import Empty
from time import monotonic, sleep
from typing import Final, Protocol

from runtime.claims import Claim, HeldClaims
from runtime.watchdog import Pulse

#: How often ``join`` looks, in seconds.
_JOIN_POLL: Final = 0.01
#: How long a thread waits for a message that can hardly come any more, in seconds: the shutdown has begun, and waits for it.
_CLOSED_WAIT: Final = 0.05
#: The longest wait that a lock takes, in seconds: years.
_FOR_EVER: Final = 2.0**28


class Item(Protocol):
    """What the worker threads take out: something with a message that carries a claim."""

    claim: Claim

    @property
    def message(self) -> object:
        """The message proxy that the worker processes."""


class WorkQueue:
    """Claimed messages waiting for a thread."""

    def __init__(self, held: HeldClaims) -> None:
        self._held = held
        self._items: deque[Item] = deque()
        # Of threads that wait, each asleep on a lock of its own until somebody releases it.
        self._waiting: deque[LockType] = deque()
        self._pulses: dict[int, Pulse] = {}
        self._closed = False

    def pulse(self, thread: int) -> Pulse:
        """The pulse of a worker thread, by its identifier: beats as it asks for work, and rests while it is at work."""
        return self._pulses.get(thread) or self._pulses.setdefault(thread, Pulse())

    def hand_over(self, items: Iterable[Item]) -> None:
        """Queue messages whose claims are held already."""
        self._items.extend(items)
        self._wake_one()

    def close(self) -> None:
        """The shutdown has begun: whoever waits for a message is told that there is none, and soon told again."""
        self._closed = True
        while self._waiting:
            self._wake_one()

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        """The next message that may start now. Raises ``queue.Empty`` after ``timeout`` seconds."""
        entered = monotonic()
        deadline = entered + (timeout if timeout is not None else _FOR_EVER if block else 0.0)
        # Made here, not by who watches: a thread may be waiting for its first job before anybody does.
        pulse = self.pulse(get_ident())
        pulse.beat()
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                if self._closed:
                    deadline = min(deadline, entered + _CLOSED_WAIT)
                self._wait(deadline - monotonic())
                continue
            # Whoever takes one wakes the next: a wake-up that met a thread whose time was over is passed on, not lost.
            if self._waiting and self._items:
                self._wake_one()
            # Its start may have to be committed first, and what follows is for its time limit to watch.
            pulse.rest()
            if self._held.start(item.claim):
                return item
            pulse.beat()

    def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            raise Empty
        lock = allocate_lock()
        lock.acquire()
        self._waiting.append(lock)
        # An item that came before the lock was in the list woke nobody.
        if not self._items:
            lock.acquire(True, seconds)
        try:
            self._waiting.remove(lock)
        except ValueError:
            # Taken out by the one who woke us.
            return

    def _wake_one(self) -> None:
        try:
            self._waiting.popleft().release()
        except IndexError:
            # All are at work; each looks again when it is done.
            return

    def get_nowait(self) -> Item:
        """As ``get``, without waiting."""
        return self.get(block=False)

    def task_done(self) -> None:
        """Dramatiq's word that a message is over; the claims know by themselves."""

    def join(self) -> None:
        """Wait until nothing waits, runs or is about to be written; for ``Worker.join()`` in tests."""
        while self.unfinished_tasks or self._held.settling:
            sleep(_JOIN_POLL)

    @property
    def unfinished_tasks(self) -> int:
        """Messages that wait or run."""
        return len(self._held.occupied)

    def qsize(self) -> int:
        """Messages that wait."""
        return len(self._held.unstarted)

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self._held.unstarted


__all__ = ["Empty", "Item", "WorkQueue"]
