"""The test stand of a load test: a database and names of its own, sender and worker processes, and everything removed at the end.

Only servers on this machine are used, and of those only the database ``switchyard_loadtest_<pid>`` and Redis keys and RabbitMQ queues
that begin with ``switchyard_loadtest_<pid>``. Whatever goes wrong, the processes are ended and the names removed on the way out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic
from typing import IO, Any, Final
from urllib.parse import urlsplit, urlunsplit

import pika
import psutil
import psycopg
import redis
from psycopg import sql

import migrations
import settings as _settings_module
from settings import Settings, child_environment

ROOT: Final = Path(__file__).resolve().parent.parent
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1", "")
#: The queue of the load tests' actors.
QUEUE: Final = "default"
#: How long a worker may take to leave after SIGTERM, in seconds.
LEAVE_TIMEOUT: Final = 20.0


class LoadtestFailed(Exception):
    """The run did not do what it has to do; its figures mean nothing."""


class Stand:
    """Where one load test takes place."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._environment = child_environment(settings) | {"PYTHONPATH": str(ROOT)}
        self.database = psycopg.connect(settings.database_url.get_secret_value(), autocommit=True)
        self.redis = redis.Redis.from_url(settings.redis_url.get_secret_value())

    def send(self, way: str, jobs: int, *, nap: float | None, timeout: float, pause: float = 0.0) -> dict[str, float]:
        """Send jobs from a process of its own, see ``loadtest.send``. Returns its times in seconds."""
        command = [sys.executable, "-m", "loadtest.send", way, "--jobs", str(jobs)]
        command += ["--pause", str(pause)]
        command += [] if nap is None else ["--nap", str(nap)]
        done = subprocess.run(
            command, env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise LoadtestFailed(f"sending failed: {done.stderr.strip()[-2_000:]}")
        times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return times

    def query(self, statement: str, *parameters: object) -> tuple[Any, ...]:
        """The first row of a query on the ledger."""
        row = self.database.execute(statement.encode(), parameters).fetchone()
        return () if row is None else tuple(row)

    def commits(self, seconds: float = 0.5) -> float:
        """How many single rows of a job's size this server commits per second for one plain psycopg connection: the bound of ``send``."""
        # No temporary table: those write nothing that a commit would have to wait for.
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS probe (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text)"
        )
        count, started = 0, monotonic()
        while monotonic() - started < seconds:
            self.database.execute("INSERT INTO probe (payload) VALUES (%s)", ["x" * 250])
            count += 1
        return count / (monotonic() - started)

    def empty(self) -> None:
        """Remove every job, so that each round meets the same table."""
        self.database.execute(
            "TRUNCATE switchyard.job, switchyard.attempt, switchyard.job_log, switchyard.job_step, switchyard.batch"
        )

    def worker(
        self, module: str, *, processes: int, threads: int, broker: str | None = None
    ) -> AbstractContextManager[WorkerProcesses]:
        """A real ``dramatiq`` command, stopped with SIGTERM at the end. Raises: LoadtestFailed: it did not leave in good order.

        Parameters:
            broker: its BROKER; default: the stand's.
        """
        environment = {} if broker is None else {"BROKER": broker}
        return self._running([sys.executable, "-m", "dramatiq", module, "-p", str(processes), "-t", str(threads)], environment)

    def keeper(self) -> AbstractContextManager[WorkerProcesses]:
        """``switchyard keeper``, stopped in the same way."""
        return self._running([sys.executable, "-c", "from cli import main; main()", "keeper"], {})

    @contextmanager
    def _running(self, command: list[str], environment: dict[str, str]) -> Iterator[WorkerProcesses]:
        with TemporaryFile("w+") as log:
            process = subprocess.Popen(
                command, env=self._environment | environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
            worker = WorkerProcesses(process, log)
            try:
                yield worker
                worker.stop()
            finally:
                worker.kill()

    def close(self) -> None:
        """Close the connections."""
        self.database.close()
        self.redis.close()


class WorkerProcesses:
    """One ``dramatiq`` command and the processes that it forked."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[str]) -> None:
        self._process = process
        self._log = log
        self._terminated = False

    def check(self) -> None:
        """Raises: LoadtestFailed: the command has ended."""
        if self._process.poll() is not None:
            raise LoadtestFailed(f"the worker ended with exit code {self._process.returncode}:\n{self._tail()}")

    def cpu_seconds(self) -> float:
        """Processor time of the command and its processes so far."""
        found = 0.0
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            for process in (parent, *parent.children(recursive=True)):
                times = process.cpu_times()
                found += times.user + times.system
        return found

    def memory(self) -> float:
        """Resident memory of the command and its processes, in megabytes."""
        found = 0
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            for process in (parent, *parent.children(recursive=True)):
                found += process.memory_info().rss
        return found / 2**20

    def terminate(self) -> None:
        """SIGTERM, as a supervisor sends it: once, since a second one would end the grace of what runs. Returns at once."""
        if not self._terminated:
            self._terminated = True
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, and wait. Raises: LoadtestFailed: it does not leave, or with an error."""
        self.terminate()
        try:
            code = self._process.wait(LEAVE_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise LoadtestFailed(f"the worker did not leave within {LEAVE_TIMEOUT:g} s of SIGTERM:\n{self._tail()}") from None
        if code:
            raise LoadtestFailed(f"the worker left with exit code {code}:\n{self._tail()}")

    def kill(self) -> None:
        """End whatever of it is still there."""
        if self._process.poll() is None:
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            self._process.wait()

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3_000:]


@contextmanager
def stand(broker: str, **fields: Any) -> Iterator[Stand]:
    """A stand for one broker: a new, migrated database, and names that nobody else uses.

    Parameters:
        fields: settings that differ from the environment's.

    Raises:
        LoadtestFailed: a server that the settings name is not on this machine.
    """
    given = _settings_module.load(broker=broker, **fields)
    name = f"switchyard_loadtest_{os.getpid()}"
    server = given.database_url.get_secret_value()
    for url in (server, given.redis_url.get_secret_value(), given.rabbitmq_url.get_secret_value()):
        if urlsplit(url).hostname not in (*LOOPBACK, None):
            raise LoadtestFailed(f"load tests run against servers of this machine alone, not against {urlsplit(url).hostname}")
    database = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    _on_server(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        migrations.upgrade(database)
        settings = _settings_module.load(**fields | {"broker": broker, "database_url": database, "broker_prefix": name})
        made = Stand(settings)
        try:
            yield made
        finally:
            made.close()
            for clean in _CLEANERS.values():
                clean(settings)
    finally:
        _on_server(server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _on_server(url: str, statement: sql.Composed) -> None:
    """Run a statement beside the databases: in ``postgres``, since the one that the URL names may not exist."""
    with psycopg.connect(urlunsplit(urlsplit(url)._replace(path="/postgres")), autocommit=True) as connection:
        connection.execute(statement)


def _clean_redis(settings: Settings) -> None:
    client = redis.Redis.from_url(settings.redis_url.get_secret_value())
    with suppress(redis.RedisError):
        keys = list(client.scan_iter(f"{settings.broker_prefix}*", count=1_000))
        if keys:
            client.delete(*keys)
    client.close()


def _clean_rabbitmq(settings: Settings) -> None:
    with suppress(pika.exceptions.AMQPError, OSError):
        connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
        connection.channel().queue_delete(f"{settings.broker_prefix}.{QUEUE}.p10")
        connection.close()


_CLEANERS: Final[dict[str, Callable[[Settings], None]]] = {"redis": _clean_redis, "rabbitmq": _clean_rabbitmq}
