"""What wakes the keeper's loop: its own process, and what Postgres tells it.

The loop waits for both at once, on a pipe and on the socket of its connection, with a deadline. Behind PgBouncer in transaction mode a
session cannot listen; there the deadline alone finds what others committed.
"""

from __future__ import annotations

import math
import os
import select
import threading
from time import monotonic
from typing import Final

from ledger.database import BoundedConnection
from runtime.enlist import DUE_CHANNEL

#: Shortest and longest time for which further notifications wait after one was followed up, in seconds.
HUSH_MIN: Final = 0.01
HUSH_MAX: Final = 1.0


class Alarm:
    """Wakes one thread. ``set`` may be called from any other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: tuple[int, int] | None = None
        self._is_set = False
        self._rung = False
        self._hush = HUSH_MIN
        self._deaf_until = 0.0

    def open(self) -> None:
        """Make the pipe, in the process that waits."""
        with self._lock:
            self._pipe = os.pipe()
            self._is_set = False

    def close(self) -> None:
        """Close the pipe; ``set`` does nothing from now on."""
        with self._lock:
            pipe, self._pipe = self._pipe, None
            if pipe is not None:
                os.close(pipe[0])
                os.close(pipe[1])

    def set(self) -> None:
        """Let ``wait`` return."""
        with self._lock:
            if self._pipe is not None and not self._is_set:
                self._is_set = True
                os.write(self._pipe[1], b"!")

    def listen(self, connection: BoundedConnection) -> None:
        """Hear commits that made something due on this connection."""
        connection.add_notify_handler(lambda _: self._ring())
        connection.execute(f"LISTEN {DUE_CHANNEL}".encode())

    def take(self) -> bool:
        """Whether it rang since the last call: the caller looks now."""
        rung, self._rung = self._rung, False
        return rung

    def hush(self, *, in_vain: bool) -> None:
        """Let notifications wait for a moment, after one was followed up.

        Every keeper hears every notification and one of them gets the rows. Whoever keeps coming too late listens less and less
        often, so that a hundred processes do not all ask after each commit; whoever finds something is quick the next time.
        """
        self._hush = min(self._hush * 2, HUSH_MAX) if in_vain else HUSH_MIN
        self._deaf_until = monotonic() + self._hush

    def wait(self, seconds: float, connection: BoundedConnection | None) -> bool:
        """Wait for at most ``seconds``. True: a commit made something due; False: the time is over, or it was set.

        Raises:
            psycopg.OperationalError: the connection broke.
        """
        assert self._pipe is not None
        until = monotonic() + seconds
        poll = select.poll()
        poll.register(self._pipe[0], select.POLLIN)
        if connection is not None:
            poll.register(connection.fileno(), select.POLLIN)
        while True:
            now = monotonic()
            if self._rung and now >= self._deaf_until:
                return True
            # What rings during the hush is followed up at its end.
            left = (min(until, self._deaf_until) if self._rung else until) - now
            if left <= 0:
                return False
            readable = {descriptor for descriptor, _ in poll.poll(math.ceil(left * 1000))}
            if self._pipe[0] in readable:
                with self._lock:
                    os.read(self._pipe[0], 1)
                    self._is_set = False
                return False
            if readable and connection is not None:
                self._receive(connection)

    def _receive(self, connection: BoundedConnection) -> None:
        """Take in what the socket holds: notifications, or the news that the server is gone."""
        raw = connection.pgconn
        raw.consume_input()
        while raw.notifies() is not None:
            self._ring()

    def _ring(self) -> None:
        self._rung = True
