"""The rig: private servers for a whole run, and for each scenario a database, a prefix, workers, producers, proxies and a recorder.

Nothing here is shared with anybody: the servers listen on private ports and keep their data in private directories, so that a scenario may
kill, freeze, flush and fill them. Worker processes are tended: one that ended is replaced, as a supervisor would.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import psycopg

import migrations
from brokers import make_transport
from errors import SwitchyardError
from runtime.triggers import PublishFailed
from settings import Settings, variables
from tests.faults.checker import Case, Verdict, check
from tests.faults.jobs import TABLES
from tests.faults.proxy import Proxy
from tests.faults.recorder import Event, Reader, Recorder
from tests.rig.postgres import Databases, PrivatePostgres
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.redis import PrivateRedis
from tests.rig.service import PrivateServer
from tests.rig.waiting import Timeout, wait_until
from tests.rig.workers import Worker

LEASE, SWEEP = 2.0, 0.5
#: Times that a worker may be lost with a job before the job is dead: beyond what any scenario kills, but for the one about poison.
MAX_LOST = 50
QUEUES = ("default", "poison")
_ACTIVE = "SELECT count(*) FROM switchyard.job WHERE state IN ('scheduled', 'pending', 'retrying', 'running')"


class Servers:
    """The three servers of a run, each started when it is first asked for."""

    def __init__(self) -> None:
        self._started: dict[str, PrivateServer] = {}
        self._databases: Databases | None = None

    @property
    def postgres(self) -> PrivatePostgres:
        """The ledger's server."""
        found: PrivatePostgres = self._get(PrivatePostgres)
        return found

    @property
    def redis(self) -> PrivateRedis:
        """A Redis that forgets everything when it stops."""
        found: PrivateRedis = self._get(PrivateRedis)
        return found

    @property
    def rabbitmq(self) -> PrivateRabbit:
        """A RabbitMQ node."""
        found: PrivateRabbit = self._get(PrivateRabbit)
        return found

    @property
    def databases(self) -> Databases:
        """Makes migrated databases."""
        if self._databases is None:
            self._databases = Databases(self.postgres.url, migrations.upgrade)
        return self._databases

    def named(self, name: str) -> Any:
        """The server that is a broker's."""
        return getattr(self, name)

    def _get(self, kind: type[Any]) -> Any:
        if kind.name not in self._started:
            server = kind()
            self._started[kind.name] = server
            server.start()
        return self._started[kind.name]

    def mend(self) -> None:
        """Have every server up again, whatever the last scenario left."""
        for server in self._started.values():
            if server.child is not None:
                server.thaw()
            server.start()

    def close(self) -> None:
        """Stop them all and remove their data."""
        for server in self._started.values():
            server.stop()
            shutil.rmtree(server.directory, ignore_errors=True)


class Links:
    """The way of one process to its servers, through proxies of its own."""

    def __init__(self, rig: Rig) -> None:
        postgres = urlsplit(rig.database_url)
        self.postgres = Proxy(postgres.port or 5432)
        self.broker = self.postgres if rig.broker == "postgres" else Proxy(rig.servers.named(rig.broker).port)
        self.environment = {"DATABASE_URL": _through(rig.database_url, self.postgres)}
        if rig.broker != "postgres":
            name = f"{rig.broker.upper()}_URL"
            self.environment[name] = _through(variables(rig.settings)[name], self.broker)

    def close(self) -> None:
        """End both."""
        self.postgres.close()
        self.broker.close()


class Rig:
    """One scenario's system.

    Parameters:
        broker: what BROKER says.
        directory: where logs and the recorder's file go.
        seed: of everything that is left to chance here.
        overrides: settings of the processes.
    """

    def __init__(self, servers: Servers, broker: str, directory: Path, seed: int, **overrides: Any) -> None:
        self.servers = servers
        self.broker = broker
        self.directory = directory
        self.seed = seed
        self.random = random.Random(seed)
        directory.mkdir(parents=True, exist_ok=True)
        self.database_url = servers.databases.create()
        self.settings = self.make_settings(**overrides)
        with psycopg.connect(self.database_url) as connection:
            connection.execute(TABLES)
        self.recorder = Recorder(directory / "events.jsonl")
        self.reader = Reader(self.recorder.path)
        #: Workers that are tended, and those that only pass by.
        self.workers: list[Worker] = []
        self.passing: list[Worker] = []
        self.producers: list[Child] = []
        self.links: list[Links] = []
        #: How workers are started that take the place of those that died; None: nobody does.
        self.replacement: Callable[..., Worker] | None = self.hire
        #: More variables for the workers.
        self.more: dict[str, str] = {}
        self._connection: psycopg.Connection[Any] | None = None
        self._started = 0
        self._sent = 0
        self._began = monotonic()

    def make_settings(self, **overrides: Any) -> Settings:
        """The settings of this scenario's processes; ``brokers`` names the other broker that it uses, by its own."""
        partners = overrides.get("brokers", {})
        servers = {
            name: self.servers.named(name).url if name in (self.broker, partners.get(self.broker)) else unused
            for name, unused in (("redis", "redis://127.0.0.1:9/0"), ("rabbitmq", "amqp://guest:guest@127.0.0.1:9/%2F"))
        }
        given: dict[str, Any] = {
            "database_url": self.database_url, "broker": self.broker, "redis_url": servers["redis"],
            "rabbitmq_url": servers["rabbitmq"], "broker_prefix": f"f{self.seed % 10**6}-{self.directory.name}"[:40],
            "lease": LEASE, "sweep": SWEEP, "shutdown_grace": 2.0, "max_lost": MAX_LOST, "log_level": "INFO",
            "data_dir": self.directory / "data",
        }  # fmt: skip
        return Settings(**(given | {name: value for name, value in overrides.items() if name != "brokers"}))

    # Processes.

    def move(self, broker: str) -> None:
        """From here on BROKER has another value."""
        self.broker = broker
        self.settings = self.settings.model_copy(update={"broker": broker})

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a process of this scenario."""
        own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "FAULTS_LOG": str(self.recorder.path)}
        return base_environment() | variables(self.settings) | own | (more or {})

    def hire(
        self, *, threads: int = 4, failpoint: str = "", env: dict[str, str] | None = None, links: Links | None = None,
        command: tuple[str, ...] = (), ready: bool = True, passing: bool = False,
    ) -> Worker:  # fmt: skip
        """Start a worker process and wait until it works (``ready``).

        Parameters:
            failpoint: see ``failpoints``.
            links: reach the servers through these proxies.
            command: instead of ``dramatiq``; then nothing is added to it.
            passing: nobody takes its place when it has ended.
        """
        more = ({"FAILPOINT": failpoint} if failpoint else {}) | self.more | (links.environment if links else {}) | (env or {})
        dramatiq = ("-m", "dramatiq", "tests.faults.worker", "-p", "1", "-t", str(threads))
        self._started += 1
        log = self.directory / f"worker-{self._started}.log"
        worker = Worker([sys.executable, *(command or dramatiq)], log=log, env=self.environment(more), cwd=self.directory)
        (self.passing if passing else self.workers).append(worker)
        self.recorder.write("hired", worker=worker.pid, failpoint=failpoint)
        if ready:
            wait_until(
                lambda: self.is_ready(worker) or not worker.running, 60, lambda: f"a worker starts: {worker.output(4_000)}"
            )
        return worker

    def is_ready(self, worker: Worker) -> bool:
        """Whether a worker has registered itself in the ledger."""
        pids = self.pids(worker)
        return bool(pids) and bool(self.rows("SELECT 1 FROM switchyard.worker WHERE pid = ANY(%s)", pids))

    def pids(self, worker: Child) -> list[int]:
        """The processes of a worker."""
        return [child.pid for child in worker.children()]

    def produce(
        self, mix: str = "mixed", *, rate: float = 30.0, limit: int = 0, bulk: int = 1, fork: int = 0,
        env: dict[str, str] | None = None, links: Links | None = None,
    ) -> Child:  # fmt: skip
        """Start a producer; see ``producer`` for the arguments."""
        self._sent += 1
        arguments = {"mix": mix, "rate": rate, "limit": limit, "bulk": bulk, "fork": fork, "seed": self.seed + self._sent}
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        producer = Child(
            [sys.executable, "-m", "tests.faults.producer", *words],
            log=self.directory / f"producer-{self._sent}.log",
            env=self.environment((links.environment if links else {}) | ({"FAILPOINT": ""} if fork else {}) | (env or {})),
            cwd=self.directory,
        )
        self.producers.append(producer)
        return producer

    def send(self, mix: str, count: int, *, bulk: int = 100, env: dict[str, str] | None = None) -> None:
        """Send so many jobs and wait until they are sent."""
        producer = self.produce(mix, rate=0, limit=count, bulk=bulk, env=env)
        self.until(lambda: not producer.running, 120, lambda: f"{count} are sent: {producer.output(4_000)}")
        assert producer.returncode == 0, producer.output(4_000)

    def link(self) -> Links:
        """Proxies for one process, closed with the rig."""
        links = Links(self)
        self.links.append(links)
        return links

    def tend(self) -> None:
        """Put a new worker in the place of each that has ended."""
        for worker in [worker for worker in self.workers if not worker.running]:
            self.workers.remove(worker)
            if self.replacement is not None:
                self.replacement(ready=False)

    # Time.

    def go_on(self, seconds: float) -> None:
        """Let the system run, tended."""
        until = monotonic() + seconds
        self.until(lambda: monotonic() >= until, seconds + 60)

    def until(self, condition: Callable[[], Any], timeout: float, message: str | Callable[[], str] = "") -> Any:
        """Wait for a condition, tending the workers. Raises: Timeout."""

        def tended() -> Any:
            self.tend()
            return condition()

        return wait_until(tended, timeout, message, interval=0.05)

    # Faults.

    def fault(self, name: str, **fields: Any) -> None:
        """Note what is done to the system from here on."""
        self.recorder.write("fault", name=name, **fields)

    def healed(self, name: str) -> None:
        """Note that it is undone, and that the system has to recover from here on."""
        self.recorder.write("healed", name=name)

    @contextmanager
    def faulty(self, name: str, **fields: Any) -> Iterator[None]:
        """A fault that lasts as long as the block."""
        self.fault(name, **fields)
        yield
        self.healed(name)

    def kill(self, worker: Worker) -> None:
        """kill -9 to a worker with everything below it."""
        self.fault("kill", killed=self.pids(worker))
        worker.kill()

    # Looking.

    @property
    def events(self) -> list[Event]:
        """What was recorded so far."""
        return self.reader.look()

    def count(self, kind: str) -> int:
        """How many events of a kind were recorded so far."""
        self.reader.look()
        return self.reader.counts[kind]

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the ledger's server directly, whatever the proxies do; the connection is made anew after a restart."""
        try:
            return self._ask(statement, parameters)
        except psycopg.OperationalError:
            self._connection = None
            return self._ask(statement, parameters)

    def _ask(self, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.database_url, autocommit=True, connect_timeout=10)
        cursor = self._connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return dict(self.rows("SELECT state, count(*) FROM switchyard.job GROUP BY state"))

    def depth(self) -> int:
        """How many triggers wait in the broker."""
        transport = make_transport(self.broker, self.settings)
        try:
            return sum(transport.depth(list(QUEUES)).values())
        finally:
            transport.close()

    def flowing(self, more: int = 20, timeout: float = 60.0) -> None:
        """Wait until so many more executions have ended."""
        before = self.count("end")
        self.until(lambda: self.count("end") >= before + more, timeout, lambda: f"jobs flow: {self.states()}")

    # The end.

    def unhurt(self) -> None:
        """Undo whatever is still done to servers, connections and processes, so that everything can end."""
        self.servers.mend()
        for links in self.links:
            links.postgres.release()
            links.broker.release()
        for worker in [*self.workers, *self.passing]:
            worker.thaw()

    def stop_producers(self) -> None:
        """SIGTERM to every producer, and wait for them. Raises: AssertionError: one has failed."""
        for producer in self.producers:
            producer.terminate()
        for producer in self.producers:
            self.until(lambda producer=producer: not producer.running, 90, "the producers end")
            assert producer.returncode in (0, -signal.SIGKILL), producer.output(4_000)
        self.producers.clear()

    def settle(self, timeout: float) -> None:
        """Send nothing more, and wait until every job has ended and the broker is empty."""
        self.stop_producers()
        self.until(lambda: self.rows(_ACTIVE) == [(0,)], timeout, lambda: f"every job ends: {self.states()}")
        self.until(lambda: self._is_empty(), 30, "the broker is empty")

    def _is_empty(self) -> bool:
        try:
            return self.depth() == 0
        except (PublishFailed, SwitchyardError):
            return False

    def verdict(self, timeout: float = 90.0, *, ends: dict[str, str] | None = None) -> Verdict:
        """Let everything end, and hold it against the invariants."""
        complaint = None
        try:
            self.settle(timeout)
        except (Timeout, AssertionError) as error:
            complaint = str(error)
        verdict = check(self.case(), ends=ends)
        if complaint is not None and (not verdict.stuck or "every job ends" not in complaint):
            verdict.violations.append(f"I12: {complaint}")
        return verdict

    def case(self) -> Case:
        """What is known by now."""
        self.rows("SELECT 1")
        assert self._connection is not None
        return Case(self._connection, self.events, self.settings.max_lost)

    def logs(self) -> str:
        """The end of every process's output."""
        files = sorted(self.directory.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3_000:]}" for path in files)

    def close(self) -> None:
        """End every process of this scenario and drop its database; the directory stays for its caller to remove."""
        self.replacement = None
        for child in [*self.workers, *self.passing, *self.producers]:
            child.thaw()
            if child.running:
                child.kill()
        for links in self.links:
            links.close()
        self.recorder.close()
        if self._connection is not None:
            self._connection.close()
        self.servers.mend()
        self.servers.databases.drop(self.database_url)


def stopped(worker: Worker, timeout: float) -> float:
    """SIGTERM to a worker; the seconds until it has ended, or ``timeout``, after which it is killed."""
    began = monotonic()
    worker.terminate()
    try:
        worker.wait(timeout)
    except subprocess.TimeoutExpired:
        worker.kill()
    return monotonic() - began


def pause(seconds: float) -> None:
    """Let time pass while nothing may be tended (a scenario's clock, not a wait for a result)."""
    threading.Event().wait(seconds)


def _through(url: str, proxy: Proxy) -> str:
    """The URL with the proxy's port."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}").geturl()
