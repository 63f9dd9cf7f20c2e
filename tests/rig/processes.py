"""Child processes of a test run: each in a group of its own, its output in a file, none outliving the run.

Signals go to the whole tree of a child, since ``dramatiq`` forks workers and Postgres gives every backend a session of its own.
What a run leaves behind, because it was interrupted or killed, is ended by ``guard.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.rig.waiting import wait_until

#: The checkout.
ROOT = Path(__file__).resolve().parents[2]


class Guard:
    """The channel to ``guard.py``, which is started with the first child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def tell(self, line: str) -> None:
        """Hand the guard one line, as its docstring describes."""
        with self._lock:
            if self._process is None:
                script = str(Path(__file__).with_name("guard.py"))
                self._process = subprocess.Popen(
                    [sys.executable, "-I", script],
                    stdin=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    cwd="/",
                    env=inherited_environment(),
                )
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """The run is over: let the guard end what is left, and wait for it."""
        with self._lock:
            if self._process is not None:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(timeout=15)
                self._process = None


GUARD = Guard()


class Child:
    """One child process and everything it forks.

    Parameters:
        argv: the program and its arguments.
        log: the file that standard output and error are appended to.
        env: the whole environment, nothing is inherited.
        user: for root only: the unprivileged user to run as.
    """

    def __init__(
        self, argv: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path | str = "/", user: str | None = None
    ) -> None:
        self.argv = list(argv)
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                user=user,
                group=_group_of(user),
                extra_groups=None if user is None else [],
            )
        self.pid = self._popen.pid
        self._ended = False
        GUARD.tell(f"+{self.pid}")

    @property
    def running(self) -> bool:
        """Whether the process itself has not ended yet."""
        return self.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        code = self._popen.poll()
        if code is not None and not self._ended:
            self._ended = True
            GUARD.tell(f"-{self.pid}")
        return code

    def children(self) -> list[psutil.Process]:
        """The living descendants, the process itself not among them."""
        try:
            return [child for child in psutil.Process(self.pid).children(recursive=True) if _alive(child)]
        except psutil.NoSuchProcess:
            return []

    def send(self, number: int) -> None:
        """Send a signal to the process alone; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM to the process alone, as a supervisor does."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and everything below it, and wait until all of it is gone."""
        tree = self.children()
        self.send(signal.SIGKILL)
        for process in tree:
            _quietly(process, signal.SIGKILL)
        self._popen.wait(timeout=10)
        wait_until(lambda: not any(_alive(process) for process in tree), 30, f"the children of {self.argv[0]} end")
        _ = self.returncode

    def freeze(self) -> None:
        """SIGSTOP to the process and everything below it: it neither works nor dies, its sockets stay open."""
        self.send(signal.SIGSTOP)
        for process in self.children():
            _quietly(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to the process and everything below it."""
        for process in self.children():
            _quietly(process, signal.SIGCONT)
        self.send(signal.SIGCONT)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end and return the exit code. Raises: subprocess.TimeoutExpired: after ``timeout`` seconds."""
        self._popen.wait(timeout)
        code = self.returncode
        assert code is not None
        return code

    def output(self, last_bytes: int = 64_000) -> str:
        """The end of what the process has printed so far."""
        data = self.log.read_bytes() if self.log.exists() else b""
        return data[-last_bytes:].decode(errors="replace")


def base_environment() -> dict[str, str]:
    """What any program needs from the caller's environment, and nothing that configures Switchyard or a server."""
    wanted = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in wanted if name in os.environ} | {"HOME": os.environ.get("HOME", "/")}


def inherited_environment() -> dict[str, str]:
    """A copy of the caller's environment, for what a thread starts.

    pytest writes to the environment while it runs, which moves it in memory: a process that is started at that moment with the original
    fails to (``Bad address``).
    """
    return {name: value for name in tuple(os.environ) if (value := os.environ.get(name)) is not None}


def unprivileged_user() -> str | None:
    """Whom to run servers as that refuse root: None unless the tests run as root."""
    if os.geteuid() != 0:
        return None
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return name
    raise RuntimeError("the tests run as root and found no unprivileged user (postgres or nobody) to run Postgres as")


def private_directory(name: str, owner: str | None = None) -> Path:
    """A new directory for one server's data, removed when the run ends.

    It lies under ``var/rig`` of the checkout, or in the system's temporary directory when ``owner`` cannot reach that.
    """
    parent = ROOT / "var" / "rig"
    if owner is not None and not all(folder.stat().st_mode & 0o001 for folder in (ROOT, *ROOT.parents)):
        parent = Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    if owner is not None:
        shutil.chown(directory, owner, _group_of(owner))
    GUARD.tell(f"={directory}")
    return directory


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _quietly(process: psutil.Process, number: int) -> None:
    """Signal a process that may have ended since it was listed."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
