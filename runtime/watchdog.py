"""The watchdog: ends a worker process whose threads died or hang, so that whatever started it starts another.

Each loop counts its rounds on a ``Pulse``; one that waits out an outage goes on counting. Blocking is bounded everywhere (statements
20 s, connections and sockets 5 s), so a thread that counts nothing for WATCHDOG seconds hangs. Worker threads count as they ask for
work; inside a job they rest, since its time limit watches over that. Time is counted in looks, not by a clock: a process that was stopped
as a whole (SIGSTOP, a frozen machine) did not look either, and nothing is held against its threads.

A thread that never lets go of the interpreter stops the watchdog too, so a timer outside of Python ends the process when the looks stay
out for twice WATCHDOG and two leases: by then its jobs belong to others. It prints every thread's traceback; the exit code is 1.
"""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from structlog.stdlib import get_logger

from runtime import process

logger = get_logger(__name__)

#: Looks without a beat after which a thread hangs.
LOOKS: Final = 10
#: Standard error, where the timer outside of Python writes to.
_STDERR: Final = 2


class Pulse:
    """How far one thread's loop has come; that thread alone changes it."""

    __slots__ = ("beats", "resting")

    def __init__(self) -> None:
        self.beats = 0
        self.resting = False

    def beat(self) -> None:
        """Another round."""
        self.beats += 1
        self.resting = False

    def rest(self) -> None:
        """What comes now may take as long as it likes."""
        self.resting = True


@dataclass(slots=True)
class _Watched:
    name: str
    alive: Callable[[], bool]
    pulse: Pulse | None
    seen: int = -1
    looks: int = 0


class Watchdog:
    """Watches the threads of one worker process.

    Parameters:
        patience: seconds without a beat after which a thread hangs; 0: only deaths are noticed.
        lease: seconds a claim stays valid without a heartbeat.
        end: told the reason; ends the process.
    """

    def __init__(self, patience: float, *, lease: float, end: Callable[[str], None]) -> None:
        self._patience = patience
        self._lease = lease
        self._end = end
        self._watched: list[_Watched] = []
        self._lock = threading.Lock()
        self._off_duty = False
        self._stop = threading.Event()

    def watch(self, name: str, alive: Callable[[], bool], pulse: Pulse | None = None) -> None:
        """Watch a thread that works from now until the shutdown, or until it is forgotten."""
        with self._lock:
            self._watched.append(_Watched(name, alive, pulse))

    def forget(self, pulse: Pulse) -> None:
        """The thread with this pulse may end."""
        with self._lock:
            self._watched = [watched for watched in self._watched if watched.pulse is not pulse]

    def start(self) -> None:
        """Look, in a thread, until ``stop``."""
        threading.Thread(target=self._run, name="switchyard-watchdog", daemon=True).start()

    def relax(self) -> None:
        """The shutdown begins: threads may end, and the grace keeps the time from here on."""
        with self._lock:
            self._off_duty = True

    def stop(self) -> None:
        """The process ends in order."""
        self._stop.set()

    def look(self) -> None:
        """Look at every thread once."""
        with self._lock:
            for watched in () if self._off_duty else self._watched:
                if not watched.alive():
                    self._end(f"the {watched.name} thread has died")
                    self._off_duty = True
                    return
                if self._hangs(watched):
                    self._end(f"the {watched.name} thread has made no progress for {self._patience:g} s")
                    self._off_duty = True
                    return

    def _hangs(self, watched: _Watched) -> bool:
        pulse = watched.pulse
        if pulse is None or not self._patience:
            return False
        if pulse.resting or pulse.beats != watched.seen:
            watched.seen, watched.looks = pulse.beats, 0
            return False
        watched.looks += 1
        return watched.looks >= LOOKS

    def _run(self) -> None:
        interval = (self._patience or 10.0) / LOOKS
        timer = bool(self._patience) and process.is_ours()
        try:
            while not self._stop.wait(interval):
                if timer:
                    faulthandler.dump_traceback_later(2 * max(self._patience, self._lease), exit=True, file=_STDERR)
                self.look()
        finally:
            if timer:
                faulthandler.cancel_dump_traceback_later()
