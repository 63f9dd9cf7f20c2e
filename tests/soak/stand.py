"""A broker's stand: private servers, a database, a sender, and three fleets of ``switchyard worker``.

steady     two processes that nobody touches: what grows in them, grows
recycled   a process that is replaced after so many jobs, again and again, under one supervisor
rolled     a command that gets SIGTERM now and then, once its successor works; its keeper goes with it
"""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg

from settings import Settings, variables
from tests.faults.jobs import TABLES as FAULT_TABLES
from tests.faults.recorder import Reader, Recorder
from tests.faults.servers import Servers
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import wait_until
from tests.rig.workers import Worker
from tests.soak import jobs, probe

#: Threads of each worker process.
THREADS = 4
#: Processes of the steady fleet.
STEADY = 2


class Stand:
    """What is soaked.

    Parameters:
        directory: for logs and the recorder's file; every process works in it.
        keep: seconds that jobs are kept when they have ended.
        max_jobs: of a process of the recycled fleet.
        leak: see ``leaks``.
    """

    def __init__(self, servers: Servers, broker: str, directory: Path, *, keep: float, max_jobs: int, leak: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.servers = servers
        self.broker = broker
        self.directory = directory
        self.database_url = servers.databases.create()
        self.settings = self._settings(keep)
        self.connection = psycopg.connect(self.database_url, autocommit=True, application_name=probe.NAME)
        self.connection.execute((FAULT_TABLES + jobs.TABLES).encode())
        self.recorder = Recorder(directory / "events.jsonl")
        self.reader = Reader(self.recorder.path)
        self._leak = leak
        self._started = 0
        self.sender: Child | None = None
        self.steady = self.hire(processes=STEADY)
        self.recycled = self.hire("--max-jobs", str(max_jobs))
        self.rolled = self.hire()
        self.working(self.steady, STEADY)
        self.working(self.recycled)
        self.working(self.rolled)

    def _settings(self, keep: float) -> Settings:
        urls = {
            name: self.servers.named(name).url if name == self.broker else unused
            for name, unused in (("redis", "redis://127.0.0.1:9/0"), ("rabbitmq", "amqp://guest:guest@127.0.0.1:9/%2F"))
        }
        return Settings(
            database_url=self.database_url, broker=self.broker, redis_url=urls["redis"], rabbitmq_url=urls["rabbitmq"],
            broker_prefix=f"soak-{uuid4().hex[:8]}", sweep=1.0, shutdown_grace=5.0, send_timeout=30.0, log_level="INFO",
            retain_completed=keep, retain_cancelled=keep, retain_dead=2 * keep, idempotency_ttl=keep,
            data_dir=self.directory / "data",
        )  # fmt: skip

    @property
    def commands(self) -> list[Worker]:
        """The supervisors."""
        return [self.steady, self.recycled, self.rolled]

    def hire(self, *options: str, processes: int = 1) -> Worker:
        """Start ``switchyard worker`` with one fleet's processes."""
        command = ["-m", "cli", "worker", "tests.soak.worker", "-p", str(processes), "-t", str(THREADS), *options]
        self._started += 1
        log = self.directory / f"worker-{self._started}.log"
        environment = self._environment() | {"SOAK_LEAK": self._leak}
        return Worker([sys.executable, *command], log=log, env=environment, cwd=self.directory)

    def working(self, worker: Worker, processes: int = 1) -> None:
        """Wait until so many of a fleet's processes are in the ledger."""
        wait_until(
            lambda: self.registered(worker) >= processes or not worker.running, 120, lambda: worker.output(4_000), interval=0.2
        )
        assert worker.running, worker.output(4_000)

    def registered(self, worker: Worker) -> int:
        """How many of its processes have registered themselves."""
        pids = [child.pid for child in worker.workers()]
        row = self.connection.execute("SELECT count(*) FROM switchyard.worker WHERE pid = ANY(%s)", [pids]).fetchone()
        assert row is not None
        return int(row[0])

    def send(self, rate: float, seed: int) -> None:
        """Start the sender."""
        command = [sys.executable, "-m", "tests.soak.sender", "--rate", str(rate), "--seed", str(seed)]
        log = self.directory / "sender.log"
        self.sender = Child(command, log=log, env=self._environment(), cwd=self.directory)

    def roll(self) -> None:
        """Put a new command in the place of the rolled one: the new one works before the old one gets SIGTERM."""
        successor = self.hire()
        self.working(successor)
        self.rolled.stop()
        self.rolled = successor

    def _environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "SOAK_LOG": str(self.recorder.path)}
        return base_environment() | variables(self.settings) | own

    def named_processes(self) -> dict[str, int]:
        """The processes that live as long as the run, by name."""
        found = {"steady supervisor": self.steady.pid, "recycled supervisor": self.recycled.pid}
        found |= {f"steady worker {at}": child.pid for at, child in enumerate(self.steady.workers(), 1)}
        return found | ({"sender": self.sender.pid} if self.sender is not None and self.sender.running else {})

    def measure(self, *, slowly: bool = False) -> dict[str, float]:
        """Everything that is measured; ``slowly``: RabbitMQ too, which takes seconds."""
        found = {
            f"{name} {word}": value
            for name, pid in self.named_processes().items()
            for word, value in probe.of_process(pid).items()
        }
        found["fleets processes"] = float(sum(len(command.children()) for command in self.commands))
        found |= probe.of_postgres(self.connection)
        assert self.servers.postgres.child is not None
        found["postgres private"] = probe.private_memory(self.servers.postgres.child)
        if self.broker == "redis":
            found |= probe.of_redis(self.servers.redis.url)
        if self.broker == "rabbitmq" and slowly:
            found |= probe.of_rabbitmq(self.servers.rabbitmq)
        return found

    def dismiss_workers(self) -> list[str]:
        """SIGTERM to every fleet; complaints about those that did not end well."""
        codes = {name: getattr(self, name).stop(60) for name in ("steady", "recycled", "rolled")}
        return [f"the {name} fleet ended with code {code}" for name, code in codes.items() if code != 0]

    def orphans(self) -> list[str]:
        """Processes of this stand that still live, whoever is their parent by now."""
        found = []
        for process in psutil.process_iter(["cwd", "cmdline"]):
            if process.info["cwd"] == str(self.directory):
                found.append(f"process {process.pid}: {' '.join(process.info['cmdline'] or ())[:100]}")
        return found

    def close(self) -> None:
        """End what still runs, and drop the database."""
        for child in [*self.commands, *([self.sender] if self.sender is not None else [])]:
            if child.running:
                child.kill()
        self.recorder.close()
        self.connection.close()
        self.servers.databases.drop(self.database_url)
