"""Ctrl-C, SIGTERM and a closed terminal, as one exception that never strikes at a bad moment.

Inside the block a signal raises ``Stopped`` in the main thread; inside ``shielded()`` it waits for the shield's end, so that no
process is started without being recorded. Once stopping has begun, one more signal only means hurry.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The user, or whoever started us, wants us to stop. No Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Installs the handlers for the length of a ``with`` block, in the main thread."""

    def __init__(self) -> None:
        self.hurry = False
        self._shields = 0
        self._stopping = False
        self._arrived: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold signals back until the end of the block."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self._raise_arrived()

    def stopping(self) -> None:
        """From here on a signal raises nothing more; it sets ``hurry``."""
        self._stopping = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self.hurry = True
            return
        self._arrived = number
        self._raise_arrived()

    def _raise_arrived(self) -> None:
        if self._arrived is not None and not self._shields and not self._stopping:
            number, self._arrived = self._arrived, None
            raise Stopped(number)
