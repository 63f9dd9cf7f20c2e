"""What the three servers share: a private server that faults may hit, a service that was found, and the failure when none was."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.rig.ports import free_port
from tests.rig.processes import Child, private_directory
from tests.rig.waiting import wait_until


class Unavailable(Exception):
    """One way to get a server does not work on this machine; the text says why."""


class NoServer(RuntimeError):
    """No way to get a server works on this machine."""

    def __init__(self, server: str, variable: str, tried: list[str], advice: str) -> None:
        lines = "".join(f"\n  - {reason}" for reason in tried)
        super().__init__(f"the tests need {server} and found none:{lines}\n{advice}, or set {variable}.")


class PrivateServer(ABC):
    """A server of our own on a private port with private data, that a test may kill, freeze and start again.

    ``start`` after ``stop`` or ``kill`` uses the same port and data, so that clients reconnect to what they knew.
    """

    #: The name in messages and of the data directory.
    name: str
    #: Seconds that a start may take on a slow machine.
    start_timeout = 120.0
    #: The signal that ends the server in order.
    stop_signal = signal.SIGTERM

    def __init__(self, *, user: str | None = None) -> None:
        self.user = user
        self.port = free_port()
        self.directory: Path = private_directory(self.name, user)
        self.log = self.directory / f"{self.name}.log"
        self.child: Child | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The server's URL, valid also while it is down."""

    @abstractmethod
    def _spawn(self) -> Child:
        """Start the process and return at once."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server answers a client."""

    @property
    def running(self) -> bool:
        """Whether the process exists (frozen ones do)."""
        return self.child is not None and self.child.running

    def start(self) -> None:
        """Start the server and return when it answers."""
        if self.running:
            return
        self.child = child = self._spawn()
        wait_until(
            lambda: self.ready() or not child.running,
            self.start_timeout,
            lambda: f"{self.name} starts; its log ends with:\n{child.output(4_000)}",
            interval=0.05,
        )
        if not child.running:
            raise Unavailable(f"{self.name} ended with code {child.returncode}; its log ends with:\n{child.output(4_000)}")

    def stop(self, timeout: float = 30.0) -> None:
        """Stop the server in order; kill it if that takes longer than ``timeout`` seconds."""
        if self.child is None:
            return
        self.child.thaw()
        self.child.send(self.stop_signal)
        try:
            self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.child.kill()
        self.child = None

    def kill(self) -> None:
        """kill -9: what was not on disk is lost."""
        if self.child is not None:
            self.child.kill()
            self.child = None

    def restart(self) -> None:
        """Stop in order and start again on the same port and data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self.child is not None, f"{self.name} does not run"
        self.child.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.child is not None, f"{self.name} does not run"
        self.child.thaw()


@dataclass(frozen=True)
class Service:
    """A server that tests may use: where it is, where it came from, and how to let go of it."""

    url: str
    #: Where it came from, for people: "REDIS_URL", "/usr/bin/redis-server, private, port 17001".
    source: str
    close: Callable[[], None]
    #: True when the rig started it, so that nothing in it is anybody else's.
    private: bool = False


def first_available(server: str, variable: str, ways: list[Callable[[], Service]], advice: str) -> Service:
    """Try the ways in order and return the first service that can be had. Raises: NoServer: none, with every reason."""
    tried = []
    for way in ways:
        try:
            return way()
        except Unavailable as reason:
            tried.append(str(reason))
    raise NoServer(server, variable, tried, advice)


def run_private(server: PrivateServer, binary: str) -> Service:
    """Start a private server as a service for the session."""
    try:
        server.start()
    except BaseException:
        server.kill()
        raise
    return Service(url=server.url, source=f"{binary}, private, port {server.port}", close=server.stop, private=True)
