"""The supervisor of ``switchyard worker``: keeps a number of worker processes alive, and is nothing but their parent.

    started      the first alone; once it works, the others: what keeps one from starting is said once, and ends the command
    died         another takes its place after a pause that doubles while it keeps dying, its siblings go on
    recycling    another is started first; the old one goes on until that is ready, then ends its jobs and goes
    SIGTERM      passed on: each ends within its SHUTDOWN_GRACE; a second signal means now

It holds no job, no connection and no thread. Killed, it closes the sockets to its processes, and they stop as by SIGTERM.
"""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import randrange
from time import monotonic
from types import FrameType
from typing import Any, Final

from runtime.child import Options
from runtime.process import RECYCLED, REFUSED

#: First and longest pause before a dead process is replaced, in seconds.
PAUSE_MIN: Final = 0.25
PAUSE_MAX: Final = 30.0
#: How long a process has to have worked for its death to count as the first, in seconds; one that wants to be replaced sooner waits, too.
SETTLED: Final = 30.0
#: How often everything is looked at when nothing happens, in seconds.
LOOK: Final = 1.0
#: Seconds beyond the grace after which a process that has not ended is killed: it gives its jobs back within one.
BEYOND_GRACE: Final = 4.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Process:
    """One worker process, seen from its supervisor."""

    def __init__(self, options: Options) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            argv = replace(options, channel=theirs.fileno()).argv()
            # Ctrl-C is for the supervisor alone, also while the new process is not ready to ignore it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
            try:
                self._popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._channel.setblocking(False)
        self._heard = b""
        self._deaf = False
        self.pid = self._popen.pid
        self.ready_at: float | None = None
        #: Its SHUTDOWN_GRACE, in seconds; 0 until it is ready: then it has no jobs.
        self.grace = 0.0
        self.recycling = False

    def fileno(self) -> int:
        """What becomes readable when there is something to hear; -1 when nothing more can come."""
        return -1 if self._deaf else self._channel.fileno()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def lines(self) -> list[str]:
        """What it has said since the last call."""
        try:
            while data := self._channel.recv(4_096):
                self._heard += data
            self._deaf = True
        except BlockingIOError:
            # That was all for now.
            pass
        except OSError:
            # It died with something unread from us.
            self._deaf = True
        *lines, self._heard = self._heard.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def go(self) -> None:
        """Its successor is ready."""
        try:
            self._channel.send(b"go\n")
        except OSError:
            # It is gone already.
            return

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        self._popen.send_signal(number)

    def close(self) -> None:
        """It has ended."""
        self._channel.close()


@dataclass
class Slot:
    """A place for a process: who holds it, who is about to leave it, and when it is to be filled (monotonic)."""

    current: Process | None = None
    leaving: list[Process] = field(default_factory=list)
    fill_at: float = 0.0
    pause: float = PAUSE_MIN

    def processes(self) -> list[Process]:
        """All that still run."""
        return [*self.leaving, *([] if self.current is None else [self.current])]

    def vacate(self, *, lived: float, at_once: bool) -> float:
        """Have it filled again; returns the seconds until then."""
        if lived >= SETTLED:
            self.pause = PAUSE_MIN
        delay = 0.0 if at_once and lived >= SETTLED else self.pause
        if delay:
            self.pause = min(self.pause * 2, PAUSE_MAX)
        self.current, self.fill_at = None, monotonic() + delay
        return delay


class Supervisor:
    """Keeps ``processes`` worker processes alive until it is told to stop.

    Parameters:
        options: what each is to do; ``max_jobs`` is lowered by up to a tenth, at random, so that they do not all recycle at once.
    """

    def __init__(self, options: Options, processes: int) -> None:
        self._options = options
        self._slots = [Slot() for _ in range(processes)]
        self._signals = 0
        self._told = 0
        self._kill_at: float | None = None
        self._ever_ready = False
        self._complete = False
        self._code = 0

    def run(self) -> int:
        """Run until everything has ended; returns the exit code, 0 when all of it ended well."""
        with self._handlers() as woken:
            while True:
                self._pass_signals_on()
                if not self._told:
                    self._fill()
                elif not any(slot.processes() for slot in self._slots):
                    return self._code
                self._wait(woken)
                for slot in self._slots:
                    for process in slot.processes():
                        self._hear(slot, process)
                        if process.returncode is not None:
                            self._hear(slot, process)
                            self._ended(slot, process)

    @contextmanager
    def _handlers(self) -> Iterator[socket.socket]:
        """Count signals, and have each make the socket readable."""
        woken, wake = socket.socketpair()
        with woken, wake:
            woken.setblocking(False)
            wake.setblocking(False)
            before: dict[int, Any] = {number: signal.signal(number, self._count) for number in _SIGNALS}
            fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            try:
                yield woken
            finally:
                signal.set_wakeup_fd(fd)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _wait(self, woken: socket.socket) -> None:
        """Wait until a process says something or ends, a signal comes, or something is due."""
        processes = [process for slot in self._slots for process in slot.processes()]
        due = [slot.fill_at for slot in self._slots if slot.current is None and not self._told]
        if self._kill_at is not None:
            due.append(self._kill_at)
        # One whose channel is closed is about to be gone.
        longest = 0.05 if any(process.fileno() < 0 for process in processes) else LOOK
        seconds = max(0.0, min([longest, *(at - monotonic() for at in due if self._ever_ready or self._told)]))
        sources: list[Any] = [woken, *(process for process in processes if process.fileno() >= 0)]
        readable, _, _ = select.select(sources, [], [], seconds)
        if woken in readable:
            woken.recv(4_096)

    def _fill(self) -> None:
        """Start what is due; until one has worked, one alone."""
        for slot in self._slots if self._ever_ready else self._slots[:1]:
            if slot.current is None and monotonic() >= slot.fill_at:
                most = self._options.max_jobs
                spread = most if most is None else most - randrange(most // 10 + 1)  # noqa: S311 (hides nothing)
                slot.current = Process(replace(self._options, max_jobs=spread))

    def _hear(self, slot: Slot, process: Process) -> None:
        for line in process.lines():
            word, _, rest = line.partition(" ")
            if word == "ready":
                self._ever_ready = True
                process.ready_at, process.grace = monotonic(), float(rest)
                self._say_once_complete()
                for old in slot.leaving:
                    old.go()
            elif word == "recycling" and not process.recycling:
                process.recycling = True
                slot.leaving.append(process)
                delay = slot.vacate(lived=_lived(process), at_once=True)
                if not self._told:
                    _say(f"process {process.pid} is replaced{_after(delay)}: {rest}")

    def _say_once_complete(self) -> None:
        if not self._complete and all(slot.current is not None and slot.current.ready_at is not None for slot in self._slots):
            self._complete = True
            _say(f"at work: {_processes(len(self._slots))}, threads in each: {self._options.threads}")

    def _ended(self, slot: Slot, process: Process) -> None:
        process.close()
        code = process.returncode
        assert code is not None
        if process.recycling:
            slot.leaving.remove(process)
        asked_for_it = code == RECYCLED or (code == 0 and (process.recycling or bool(self._told)))
        if self._told:
            slot.current = None if slot.current is process else slot.current
            # Whom a signal reached before its handler was there had no jobs.
            if not asked_for_it and not (process.ready_at is None and code == -signal.SIGTERM):
                self._code = self._code or (code if code > 0 else 128 - code)
                _say(f"process {process.pid} {_explained(code)}{_jobs_of(process)}")
            return
        if not self._ever_ready and code > 0:
            # Whatever it is, it is said already, and the next one would say the same.
            self._told, self._code = 1, code
            slot.current = None
        elif process.recycling:
            if not asked_for_it:
                _say(f"process {process.pid}, which was being replaced, {_explained(code)}{_jobs_of(process)}")
        else:
            delay = slot.vacate(lived=_lived(process), at_once=asked_for_it)
            _say(f"process {process.pid} {_explained(code)}{_jobs_of(process)}; another starts{_after(delay) or ' now'}")

    def _pass_signals_on(self) -> None:
        everyone = [process for slot in self._slots for process in slot.processes()]
        # More than two say nothing new.
        while self._told < min(self._signals, 2):
            self._told += 1
            for process in everyone:
                process.send(signal.SIGTERM)
            grace = max((process.grace for process in everyone), default=0.0) if self._told == 1 else 0.0
            self._kill_at = monotonic() + grace + BEYOND_GRACE
            if everyone:
                what = f"running jobs may end within {grace:g} s" if self._told == 1 else "giving running jobs back"
                _say(f"stopping {_processes(len(everyone))}, {what}")
        if self._kill_at is not None and monotonic() >= self._kill_at:
            self._kill_at = None
            for process in everyone:
                process.send(signal.SIGKILL)


def _say(line: str) -> None:
    sys.stderr.write(f"switchyard: {line}\n")
    sys.stderr.flush()


def _lived(process: Process) -> float:
    return 0.0 if process.ready_at is None else monotonic() - process.ready_at


def _after(delay: float) -> str:
    return f" in {delay:g} s" if delay else ""


def _processes(number: int) -> str:
    return f"{number} process" if number == 1 else f"{number} processes"


def _explained(code: int) -> str:
    if code == REFUSED:
        return "could not start"
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _jobs_of(process: Process) -> str:
    """What becomes of the jobs of a process that died."""
    return "" if process.ready_at is None else ", its jobs run again, one at a time, when their leases have ended"
