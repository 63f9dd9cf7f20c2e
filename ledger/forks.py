"""Locks in a process that forks while other threads hold them.

A child has the thread that forked and no other: a lock that one of the others held stays locked over there, and the child's first send
would wait for it for ever. What these locks guard is made anew in a child (pools, threads), so there they are free from the beginning.
"""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

_made: WeakSet[ForkSafeLock] = WeakSet()


class ForkSafeLock:
    """A lock that nobody holds in a forked child. Not to be held by the thread that forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _made.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Be free, whoever held it."""
        self._lock = threading.Lock()


def _renew_all() -> None:
    for lock in _made:
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
