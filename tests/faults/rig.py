"""The rig: private servers for a whole run, and for each scenario a database, a prefix, workers, producers, proxies and a recorder.

Nothing here is shared with anybody: the servers listen on private ports and keep their data in private directories, so that a scenario may
kill, freeze, flush and fill them. Worker processes are tended: one that ended is replaced, as a supervisor would.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import psycopg

from brokers import make_transport
from errors import SwitchyardError
from runtime.triggers import PublishFailed
from settings import Settings, variables
from tests.faults.checker import Case, Verdict, check
from tests.faults.jobs import TABLES
from tests.faults.proxy import Proxy
from tests.faults.recorder import Event, Reader, Recorder
from tests.faults.servers import Servers
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import Timeout, wait_until
from tests.rig.workers import Worker

LEASE, SWEEP = 2.0, 0.5
#: Times that a worker may be lost with a job before the job is dead: beyond what any scenario kills, but for the one about poison.
MAX_LOST = 50
QUEUES = ("default", "aside", "poison", "slots")
#: Threads, open files and MB that a worker may need beyond those before the faults: what is opened at the first use. Files: the other
#: 8 connections of its pool, and two more to RabbitMQ of 4 files each (up to 18 were seen, after 2 faults as after 10), and a few to spare.
SLACK = (4, 24, 100)
_ENDED = "SELECT count(*) FROM switchyard.job WHERE finished_at IS NOT NULL"
_ACTIVE = "SELECT EXISTS (SELECT FROM switchyard.job WHERE state IN ('scheduled', 'pending', 'retrying', 'running'))"


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
        #: Whether a worker that ended is replaced by another one like it.
        self.tended = True
        self._likeness: dict[int, dict[str, Any]] = {}
        self._stream: tuple[Child, Links | None] | None = None
        #: What each worker process needed before the faults: threads, open files, MB of memory.
        self.baseline: dict[int, tuple[int, int, int]] = {}
        #: More variables for the workers.
        self.more: dict[str, str] = {}
        #: Jobs of scripts that judge their own, which the table counts too.
        self.elsewhere = 0
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
            "rabbitmq_url": servers["rabbitmq"], "broker_prefix": f"faults-{uuid4().hex[:8]}",
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
        self, *, threads: int = 8, failpoint: str = "", env: dict[str, str] | None = None, links: Links | None = None,
        command: tuple[str, ...] = (), ready: bool = True, passing: bool = False,
        queues: tuple[str, ...] = (),
    ) -> Worker:  # fmt: skip
        """Start a worker process and wait until it works (``ready``).

        Parameters:
            failpoint: see ``failpoints``.
            links: reach the servers through these proxies.
            command: instead of ``dramatiq``; then nothing is added to it.
            queues: serve only these.
            passing: nobody takes its place when it has ended.
        """
        more = ({"FAILPOINT": failpoint} if failpoint else {}) | self.more | (links.environment if links else {}) | (env or {})
        dramatiq = ("-m", "dramatiq", "tests.faults.worker", "-p", "1", "-t", str(threads))
        served = ("-Q", *queues) if queues else ()
        self._started += 1
        log = self.directory / f"worker-{self._started}.log"
        worker = Worker(
            [sys.executable, *(command or (*dramatiq, *served))], log=log, env=self.environment(more), cwd=self.directory
        )
        (self.passing if passing else self.workers).append(worker)
        self._likeness[worker.pid] = {"threads": threads, "env": env, "links": links, "queues": queues, "command": command}
        self.recorder.write("hired", worker=worker.pid, failpoint=failpoint)
        if ready:
            # A look goes through every process of the machine: not too often, or it slows down what it waits for.
            wait_until(
                lambda: self.is_ready(worker) or not worker.running,
                60,
                lambda: f"a worker starts: {worker.output(4_000)}",
                interval=0.2,
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

    def staff(self, count: int, *, linked: bool = False, env: dict[str, str] | None = None) -> list[Worker]:
        """So many workers: those that are there already, and new ones (behind proxies of their own, if ``linked``)."""
        found = [worker for worker in self.workers if worker.running and (self.links_of(worker) or not linked)]
        while len(found) < count:
            found.append(self.hire(links=self.link() if linked else None, env=env))
        return found[:count]

    def links_of(self, worker: Worker) -> Links | None:
        """The proxies that a worker uses, if it does."""
        links: Links | None = self._likeness[worker.pid]["links"]
        return links

    def stream(
        self, mix: str = "mixed", *, rate: float = 20.0, linked: bool = False, env: dict[str, str] | None = None
    ) -> Links | None:
        """A steady stream of jobs, flowing when this returns: the one that is there already, or a new one. Returns its proxies."""
        if self._stream is None or not self._stream[0].running or (linked and self._stream[1] is None):
            links = self.link() if linked else None
            self._stream = self.produce(mix, rate=rate, links=links, env=env), links
        self.flowing()
        return self._stream[1]

    def retire(self, producer: Child) -> None:
        """Have one producer end, after the send that it is at."""
        producer.terminate()
        self.until(lambda: not producer.running, 90, "a producer ends")
        self.producers.remove(producer)

    def send(self, mix: str, count: int, *, bulk: int = 100, env: dict[str, str] | None = None) -> None:
        """Send so many jobs and wait until they are sent."""
        producer = self.produce(mix, rate=0, limit=count, bulk=bulk, env=env)
        message = f"{count} are sent"
        self._while_it_goes_on(
            lambda: not producer.running, lambda: self.count("ok"), 120, lambda: f"{message}: {producer.output(4_000)}"
        )
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
            if self.tended:
                self.hire(**self._likeness[worker.pid], ready=False)

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

    def patiently(self, condition: Callable[[], Any], quiet: float, message: str | Callable[[], str] = "") -> Any:
        """Wait for a condition for as long as jobs end: it is given up when none has for ``quiet`` seconds. Raises: Timeout."""
        return self._while_it_goes_on(condition, lambda: self.rows(_ENDED), quiet, message)

    def _while_it_goes_on(
        self, condition: Callable[[], Any], progress: Callable[[], Any], quiet: float, message: str | Callable[[], str]
    ) -> Any:
        """Wait for a condition until ``progress`` has been the same for ``quiet`` seconds. Raises: Timeout."""
        while True:
            before = progress()
            try:
                return self.until(condition, quiet, message)
            except Timeout:
                if progress() == before:
                    raise

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

    def flowing(self, more: int = 20, timeout: float = 120.0) -> None:
        """Wait until so many more executions have ended."""
        before = self.count("end")
        self.until(lambda: self.count("end") >= before + more, timeout, lambda: f"jobs flow: {self.states()}")

    def needs(self) -> dict[int, tuple[int, int, int]]:
        """What each worker process needs now: threads, open files, MB of memory."""
        found = {}
        for process in [child for worker in self.workers for child in worker.children()]:
            with suppress(psutil.Error), process.oneshot():
                found[process.pid] = process.num_threads(), process.num_fds(), process.memory_info().rss // 2**20
        return found

    def grown(self) -> list[str]:
        """Worker processes that need much more than they did before the faults."""
        now = self.needs()
        return [
            f"process {pid}: threads, files, MB {before} before, {now[pid]} after"
            for pid, before in self.baseline.items()
            if pid in now and any(after > was + more for was, after, more in zip(before, now[pid], SLACK, strict=True))
        ]

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
            # Some are told before they listen.
            expected = (0, -signal.SIGTERM, -signal.SIGKILL)
            assert producer.returncode in expected, f"a producer ended with {producer.returncode}: {producer.output(4_000)}"
        self.producers.clear()

    def settle(self, quiet: float) -> None:
        """Send nothing more, and wait until every job has ended, for as long as any does, and the broker is empty."""
        self.stop_producers()
        self.patiently(lambda: self.rows(_ACTIVE) == [(False,)], quiet, lambda: f"every job ends: {self.states()}")
        self.until(lambda: self._is_empty(), 60, "the broker is empty")

    def _is_empty(self) -> bool:
        try:
            return self.depth() == 0
        except (PublishFailed, SwitchyardError):
            return False

    def verdict(self, quiet: float = 45.0, *, ends: dict[str, str] | None = None) -> Verdict:
        """Let everything end, and hold it against the invariants."""
        complaint = None
        try:
            self.settle(quiet)
        except (Timeout, AssertionError) as error:
            complaint = str(error)
            # What still moves cannot be judged.
            for child in [*self.workers, *self.passing, *self.producers]:
                child.freeze()
        with suppress(Timeout):
            self.until(lambda: not self.grown(), 15)
        verdict = check(self.case(), ends=ends)
        verdict.jobs += self.elsewhere
        verdict.complain("I11", "workers have grown", self.grown())
        if complaint is not None and (not verdict.stuck or "every job ends" not in complaint):
            verdict.violations.append(f"I12: {complaint}")
        return verdict

    def case(self) -> Case:
        """What is known by now."""
        self.rows("SELECT 1")
        assert self._connection is not None
        return Case(self._connection, self.reader.look, self.settings.max_lost)

    def logs(self) -> str:
        """The end of every process's output."""
        files = sorted(self.directory.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3_000:]}" for path in files)

    def close(self) -> None:
        """End every process of this scenario and drop its database; the directory stays for its caller to remove."""
        self.tended = False
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
