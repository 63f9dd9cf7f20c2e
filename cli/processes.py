"""The processes a stack starts: each in a group of its own with its output in a file, none outliving the stack.

Three things end them: the stack's own stop; ``guard.py`` when the stack was killed; and the next start, which finds the process
ids of a run whose guard was killed as well and makes sure, by the command line, that they still are what they were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from cli import guard
from errors import SwitchyardError

#: How often a wait looks again, in seconds.
POLL: Final = 0.02
#: How much of a log a failure quotes, in lines.
_QUOTED_LINES: Final = 6


class StackError(SwitchyardError):
    """A part of the stack cannot be started, or has stopped; the text says which, and what to do."""


class Guard:
    """The running ``guard.py``; it learns of every process, and keeps ``lock`` (a file descriptor) open."""

    def __init__(self, lock: int) -> None:
        script = str(Path(__file__).with_name("guard.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", script],
            stdin=subprocess.PIPE, text=True, start_new_session=True, pass_fds=(lock,), cwd="/",
        )  # fmt: skip

    def tell(self, line: str) -> None:
        """Hand over one line, as the guard's docstring describes."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise StackError("the process that cleans up after a killed stack has itself been killed") from error

    def dismiss(self) -> None:
        """Everything has been stopped: let it go."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            # It was killed; there is nothing left that it should have stopped.
            pass
        self._process.wait()


class Child:
    """One process and what it forks.

    Parameters:
        name: what to call it, and its files in ``run``: ``NAME.pid``.
        argv: the program and its arguments.
        log: the file that standard output and error go to; the one of the run before is kept as ``.1``.
        env: the whole environment.
        stop_signal: what makes it stop in an orderly way.
        user: for root only: the user id and group id to run as.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        run: Path,
        env: Mapping[str, str],
        guard: Guard,
        cwd: Path | None = None,
        stop_signal: int = signal.SIGTERM,
        user: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._guard = guard
        self._signal = stop_signal
        self._pidfile = run / f"{name}.pid"
        self.stopped = False
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_name(log.name + ".1"))
        with log.open("wb") as output:
            self._popen = _spawn(argv, output, env, cwd, user)
        self.pid = self._popen.pid
        self._pidfile.write_text(f"{self.pid}\n")
        guard.tell(f"+{self.pid} {stop_signal:d}")

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._popen.poll()

    def require(self) -> None:
        """Make sure that it runs. Raises: StackError: it has ended; quotes the end of its log."""
        if (code := self.returncode) is not None:
            raise StackError(f"{self.name} ended with {_explained(code)}; the end of {shown(self.log)}:\n{self.last_words()}")

    def last_words(self) -> str:
        """The last lines of its log, indented."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-_QUOTED_LINES:]) or "    (empty)"

    def stop(self, grace: float, hurry: Callable[[], bool]) -> bool:
        """Stop it and what is left of its group; returns whether it went by itself.

        Parameters:
            grace: seconds until SIGKILL.
            hurry: asked while waiting; true means SIGKILL now.
        """
        if self.returncode is None:
            self._popen.send_signal(self._signal)
        deadline = time.monotonic() + grace
        while self.returncode is None and time.monotonic() < deadline and not hurry():
            time.sleep(POLL)
        by_itself = self.returncode is not None
        guard.tell(self.pid, signal.SIGKILL, group=True)
        self._popen.wait()
        self._guard.tell(f"-{self.pid}")
        self._pidfile.unlink(missing_ok=True)
        self.stopped = True
        return by_itself


def end_leftover(name: str, run: Path, mark: str, stop_signal: int = signal.SIGTERM) -> None:
    """Stop what a killed run has left.

    Parameters:
        mark: what its command line contains; another process that has got its id since is left alone.
    """
    pidfile = run / f"{name}.pid"
    try:
        pid = int(pidfile.read_text())
    except (FileNotFoundError, ValueError):
        return
    # The id of a leader that is gone is not given out again while its group has members, so such a group is ours.
    if mark in command_line(pid) or not guard.tell(pid, 0, group=False):
        guard.end(pid, stop_signal)
    pidfile.unlink(missing_ok=True)


def command_line(pid: int) -> str:
    """A process's command line; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    # No /proc: macOS and the BSDs, which always have ps.
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


def shown(path: Path) -> str:
    """A path as people read it: relative to the working directory where it is below that."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _spawn(
    argv: Sequence[str], output: IO[bytes], env: Mapping[str, str], cwd: Path | None, user: tuple[int, int] | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=dict(env), cwd=cwd, start_new_session=True,
            user=user and user[0], group=user and user[1], extra_groups=user and [],
        )  # fmt: skip
    except OSError as error:
        raise StackError(f"cannot start {argv[0]}: {error.strerror}") from error


def _explained(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
