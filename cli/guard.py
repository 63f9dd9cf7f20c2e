"""Ends what a stack started when the stack itself is killed. A process of its own; imports only the standard library.

It reads lines from its standard input: ``+PID SIGNAL`` for a process that leads a group of its own and is stopped by that signal,
``-PID`` for one that has ended. A normal stop leaves nothing to do. When the input ends although processes are left, because the
stack was killed, each gets its signal, the last started first, and a few seconds; then its whole group gets SIGKILL. It holds
the stack's lock meanwhile, so that the next start waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

#: Seconds for one process to stop by itself. Its jobs are safe either way: their leases run out and others take them.
GRACE = 5.0


def tell(pid: int, number: int, *, group: bool) -> bool:
    """Send a signal to a process or its group; False when nothing of it is left."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end(pid: int, number: int, grace: float = GRACE) -> None:
    """Stop a process that somebody else has to reap, and whatever is left of its group after ``grace`` seconds."""
    # To the leader alone: dramatiq passes the signal on, and takes a second one for impatience.
    tell(pid, number, group=False)
    deadline = time.monotonic() + grace
    while tell(pid, 0, group=True) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    tell(pid, signal.SIGKILL, group=True)


def main() -> None:
    """Follow the input to its end, then clean up."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    left: dict[int, int] = {}
    for line in sys.stdin:
        pid, _, number = line[1:].partition(" ")
        if line.startswith("+"):
            left[int(pid)] = int(number)
        else:
            left.pop(int(pid), None)
    for group, number in reversed(left.items()):
        end(group, number)


if __name__ == "__main__":
    main()
