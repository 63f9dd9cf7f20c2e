"""What a process counts as it works: dropped triggers, refused claims, fenced results. Shown with each heartbeat in ``worker.counters``."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from structlog.stdlib import get_logger

logger = get_logger(__name__)

#: How many different things a log-once counter remembers, so that a flood of forged triggers cannot fill the memory.
_REMEMBERED: Final = 1_000


class Counters:
    """Thread-safe named counters, and a log line for the first of each kind of oddity."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()
        self._seen: set[tuple[str, object]] = set()

    def add(self, name: str, amount: int = 1) -> None:
        """Count ``amount`` more of ``name``."""
        with self._lock:
            self._values[name] += amount

    def note(self, name: str, key: object, message: str) -> None:
        """Count one of ``name``, and log ``message`` the first time for this ``key``."""
        with self._lock:
            self._values[name] += 1
            new = (name, key) not in self._seen and len(self._seen) < _REMEMBERED
            if new:
                self._seen.add((name, key))
        if new:
            logger.warning(message, counter=name)

    def snapshot(self) -> dict[str, int]:
        """All counts so far."""
        with self._lock:
            return dict(self._values)
