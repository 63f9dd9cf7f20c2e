"""RabbitMQ for the tests: where it comes from, and a private node for faults.

A node takes some five seconds to start, so the session starts it in the background, and only when a selected test needs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pika
from pika.exceptions import AMQPError

from tests.rig.containers import run_container
from tests.rig.ports import free_port, listening
from tests.rig.processes import Child, base_environment, inherited_environment
from tests.rig.service import PrivateServer, Service, Unavailable, first_available, run_private
from tests.rig.waiting import wait_until

_ADVICE = "Install rabbitmq-server (`apt-get install rabbitmq-server`, `brew install rabbitmq`), start a Docker engine"


def _resource(queue: str) -> str:
    """A queue's name in the terms of RabbitMQ's own tables."""
    return f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'


class PrivateRabbit(PrivateServer):
    """A RabbitMQ node of our own: own name, ports, data, cookie, own epmd, so that no other node on the machine notices it."""

    name = "rabbitmq"
    start_timeout = 120.0

    def __init__(self, binary: Path | None = None, *, config: tuple[str, ...] = ()) -> None:
        """``binary``: the rabbitmq-server script; ``config``: more lines for rabbitmq.conf."""
        found = binary or find_binary()
        if found is None:
            raise Unavailable("no rabbitmq-server program on the machine")
        self.binary = found
        self.config = config
        super().__init__()
        self._epmd: Child | None = None
        self._epmd_port = free_port()
        self._distribution_port = free_port()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def ready(self) -> bool:
        return listening(self.port) and _answers(self.url)

    def ctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run rabbitmqctl against this node and return what it printed. Raises: CalledProcessError."""
        program = self.binary.with_name("rabbitmqctl")
        done = subprocess.run(
            [str(program), "--quiet", *arguments], env=self._environment(), cwd=self.directory, check=True,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        return done.stdout

    def write_down(self) -> None:
        """Have the node write to disk what queues there are: it keeps a new one in memory for some two seconds, and a kill within them
        takes the queue away with every confirmed message in it."""
        self.ctl("eval", "mnesia:sync_log().")

    def take_away(self, queue: str) -> None:
        """Have the node take a durable queue for one that lies on a node of its cluster which is down: known, and not to be reached."""
        self.ctl("eval", f"mnesia:dirty_delete(rabbit_queue, {_resource(queue)}).")

    def bring_back(self, queue: str) -> None:
        """Have that queue be reached again, as when its node returns."""
        self.ctl(
            "eval", f"[mnesia:dirty_write(rabbit_queue, Q) || Q <- mnesia:dirty_read(rabbit_durable_queue, {_resource(queue)})]."
        )

    def stop(self, timeout: float = 30.0) -> None:
        super().stop(timeout)
        self._stop_epmd()

    def kill(self) -> None:
        super().kill()
        self._stop_epmd()

    def _spawn(self) -> Child:
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port}", "log.console.level = warning", *self.config]
        (self.directory / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq-env.conf").touch()
        self._start_epmd()
        return Child([str(self.binary)], log=self.log, env=self._environment(), cwd=self.directory)

    def _start_epmd(self) -> None:
        """Started here, because a node that finds none starts one as a daemon, which would outlive the tests."""
        program = shutil.which("epmd") or next((str(path) for path in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), "epmd")
        arguments = [program, "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = epmd = Child(arguments, log=self.directory / "epmd.log", env=base_environment())
        wait_until(lambda: listening(self._epmd_port) or not epmd.running, 60, "epmd listens")
        if not epmd.running:
            raise Unavailable(f"epmd ended with code {epmd.returncode}; its log ends with:\n{epmd.output(4_000)}")

    def _stop_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None

    def _environment(self) -> dict[str, str]:
        return base_environment() | {
            "HOME": str(self.directory),  # for the Erlang cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"switchyard{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.directory / "node.pid"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
        }


def find_rabbitmq() -> Service:
    """A RabbitMQ for this run, from the first place that has one. Raises: NoServer."""
    ways = [_from_environment, _from_binary, _from_standard_port, _from_container, _from_apt]
    return first_available("RabbitMQ", "RABBITMQ_URL", ways, _ADVICE)


def find_binary() -> Path | None:
    """The machine's rabbitmq-server script, or None.

    The one inside the package comes first: the one that Debian puts on the PATH insists on a user of its own.
    """
    candidates = [Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), Path("/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server")]
    candidates += [Path(found).resolve() for found in [shutil.which("rabbitmq-server")] if found]
    return next((path for path in candidates if path.exists()), None)


def remove_queues(url: str, queues: Iterable[str]) -> None:
    """Remove queues of ours by name; those that do not exist are no error."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)
    finally:
        connection.close()


def _answers(url: str) -> bool:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = 3
    parameters.blocked_connection_timeout = 3
    try:
        pika.BlockingConnection(parameters).close()
    except (AMQPError, OSError):
        return False
    return True


def _from_environment() -> Service:
    url = os.environ.get("RABBITMQ_URL")
    if not url:
        raise Unavailable("RABBITMQ_URL is not set")
    # A URL that was given is meant: when it does not answer, the tests fail instead of using another server unasked.
    if not _answers(url):
        raise RuntimeError("the server at RABBITMQ_URL does not answer")
    return _in_own_vhost(url, "RABBITMQ_URL")


def _from_binary() -> Service:
    binary = find_binary()
    if binary is None:
        raise Unavailable("no rabbitmq-server program on the machine")
    return run_private(PrivateRabbit(binary), str(binary))


def _from_standard_port() -> Service:
    url = "amqp://guest:guest@127.0.0.1:5672/%2F"
    if not listening(5672) or not _answers(url):
        raise Unavailable("no RabbitMQ on port 5672 that takes guest/guest")
    return _in_own_vhost(url, "already running on port 5672")


def _from_container() -> Service:
    return run_container("rabbitmq:4-alpine", 5672, lambda host, port: f"amqp://guest:guest@{host}:{port}/%2F", _answers)


def _from_apt() -> Service:
    """Install Debian's package, as root or with a sudo that asks no password, and run a private node of it."""
    if shutil.which("apt-get") is None:
        raise Unavailable("no apt-get to install it with")
    prefix: list[str] = []
    if os.geteuid() != 0:
        prefix = ["sudo", "-n"]
        if shutil.which("sudo") is None or _run_quietly([*prefix, "true"]).returncode != 0:
            raise Unavailable("no right to apt-get install it (neither root nor a sudo without password)")
    # RUNLEVEL=1: install it without starting the machine's own node.
    command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    install = [*command, "install", "-y", "--no-install-recommends", "rabbitmq-server"]
    done = _run_quietly(install)
    if done.returncode != 0:
        _run_quietly([*command, "update"])
        done = _run_quietly(install)
    if done.returncode != 0:
        raise Unavailable(f"apt-get install rabbitmq-server failed: {done.stderr.strip()[-500:]}")
    return _from_binary()


def _run_quietly(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, env=inherited_environment()
    )


def _in_own_vhost(url: str, source: str) -> Service:
    """A vhost of our own on somebody's server, where its management API makes one; else the URL's vhost and a queue prefix."""
    name = f"switchyard-test-{uuid.uuid4().hex[:12]}"
    user = unquote(urlsplit(url).username or "guest")
    permissions = json.dumps({"configure": ".*", "write": ".*", "read": ".*"})
    try:
        _manage(url, "PUT", f"vhosts/{name}")
        _manage(url, "PUT", f"permissions/{name}/{quote(user, safe='')}", permissions)
    except (urllib.error.URLError, OSError):
        return Service(url=url, source=f"{source} (no management API: queues with a prefix)", close=lambda: None)
    own = urlsplit(url)._replace(path=f"/{name}").geturl()
    close = partial(_manage, url, "DELETE", f"vhosts/{name}")
    return Service(url=own, source=f"{source}, vhost {name}", close=close, private=True)


def _manage(url: str, method: str, path: str, body: str | None = None) -> None:
    """One call to the management API on its standard port."""
    parts = urlsplit(url)
    credentials = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
    request = urllib.request.Request(
        f"http://{parts.hostname}:15672/api/{path}",
        data=None if body is None else body.encode(),
        method=method,
        headers={"Authorization": "Basic " + b64encode(credentials.encode()).decode(), "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=5).close()
