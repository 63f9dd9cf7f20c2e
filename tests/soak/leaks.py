"""Leaks put into a worker on purpose, so that the judge can be seen to find them: ``SOAK_LEAK=memory`` (or ``files``, ``threads``)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq import Broker
from dramatiq.broker import MessageProxy

#: Bytes kept of each job.
KEPT = 10_000


class Leak(dramatiq.Middleware):
    """Keeps something of every job for ever."""

    def __init__(self, keep: Callable[[], Any]) -> None:
        self._keep = keep
        self._kept: list[Any] = []

    def after_process_message(self, broker: Broker, message: MessageProxy, **_: Any) -> None:
        self._kept.append(self._keep())


def _thread() -> threading.Event:
    forever = threading.Event()
    threading.Thread(target=forever.wait, daemon=True).start()
    return forever


#: What is kept, by name.
KINDS: dict[str, Callable[[], Any]] = {
    "memory": lambda: bytearray(KEPT),
    "files": lambda: os.open("/dev/null", os.O_RDONLY),
    "threads": _thread,
}


def install(broker: Broker, name: str) -> None:
    """Put the leak of that name in; none if it is empty."""
    if name:
        broker.add_middleware(Leak(KINDS[name]))
