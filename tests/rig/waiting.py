"""Wait for a condition up to a deadline. Tests never sleep for a length of time in the hope that something happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Timeout(AssertionError):
    """The condition did not come true in time."""


def wait_until(
    condition: Callable[[], T], timeout: float = 30.0, message: str | Callable[[], str] = "", interval: float = 0.02
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    Parameters:
        timeout: seconds until the test fails; default 30: it costs nothing when all is well.
        message: what was waited for; a callable is asked at the end, so that it can say how things stood.
        interval: seconds between two looks; default 0.02.
    Raises:
        Timeout: an AssertionError with the message and the last value. An exception of ``condition`` itself passes through.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = (message() if callable(message) else message) or getattr(condition, "__name__", "the condition")
            raise Timeout(f"not within {timeout:g} s: {text}; last seen: {value!r}")
        pause.wait(interval)
