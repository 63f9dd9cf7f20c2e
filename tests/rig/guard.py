"""Ends what a test run started, also when the run itself is killed. A process of its own; imports only the standard library.

It reads lines from its standard input: ``+PID`` for a process group that now exists, ``-PID`` for one that has ended, ``=PATH``
for a directory to remove. When the input ends, because the run is over or was killed, it sends SIGTERM to the groups still
there, SIGKILL five seconds later, and removes the directories.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time

_GRACE = 5.0


def _signal(group: int, number: int) -> bool:
    """Signal a whole group; False when nothing of it is left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def main() -> None:
    """Follow the input to its end, then clean up."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    directories: list[str] = []
    for line in sys.stdin:
        kind, value = line[:1], line[1:].rstrip("\n")
        if kind == "+":
            groups.add(int(value))
        elif kind == "-":
            groups.discard(int(value))
        elif kind == "=":
            directories.append(value)

    for group in groups:
        _signal(group, signal.SIGCONT)
    left = {group for group in groups if _signal(group, signal.SIGTERM)}
    deadline = time.monotonic() + _GRACE
    while left and time.monotonic() < deadline:
        left = {group for group in left if _signal(group, 0)}
        threading.Event().wait(0.05)
    for group in left:
        _signal(group, signal.SIGKILL)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
