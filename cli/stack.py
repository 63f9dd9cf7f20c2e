"""Everything that jobs need on one machine: Postgres, perhaps Redis, worker processes; started in order, stopped in reverse.

A server whose URL is given, in the environment or ``.env``, is used as it is. What is not given is embedded: its files lie
below DATA_DIR, it runs as a child of ours, and it goes when we go.

    DATA_DIR/stack.lock    held by the stack of this folder; there is one at a time
    DATA_DIR/run           process ids, for what a killed run left behind
    DATA_DIR/log           what each process printed
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from psycopg.conninfo import conninfo_to_dict

from brokers import TRANSPORTS, make_transport, transport_class
from brokers.transport import TransportDown
from cli.embedded import own_prefix
from cli.migrating import migrate
from cli.postgres_server import EmbeddedPostgres
from cli.processes import POLL, Child, Guard, StackError, end_leftover, shown
from cli.redis_server import EmbeddedRedis
from cli.refusals import database_refusal
from cli.signals import Signals
from errors import LedgerUnavailable, SettingsError
from ledger import read
from ledger.database import Database
from settings import Settings, child_environment, load

#: Brokers that we bring along; the others have to be somewhere.
_EMBEDDED: Final = {"redis": EmbeddedRedis}
#: Small, since the stack shares the machine with whatever else its user does.
WORKER_PROCESSES: Final = 2
WORKER_THREADS: Final = 4
#: Seconds until all worker processes have to have sent a heartbeat.
_WORKERS_PATIENCE: Final = 45.0
#: Seconds a server gets to stop.
_SERVER_GRACE: Final = 15.0
#: Seconds that workers get beyond SHUTDOWN_GRACE, at the end of which they give their jobs back.
_BEYOND_GRACE: Final = 10.0
#: Seconds to wait for the guard of a killed stack: as long as it may take for one of each.
_LOCK_PATIENCE: Final = 20.0


#: How to remove what is called by a prefix from a broker.
_REMOVE: Final = {
    "redis": "redis-cli --scan --pattern '{prefix}*' | xargs redis-cli unlink",
    "rabbitmq": "rabbitmqctl --quiet list_queues name | grep '^{prefix}' | xargs -n 1 rabbitmqctl delete_queue",
}


class Stack:
    """One stack; a context manager that stops what was started, however the block ends.

    Parameters:
        signals: what may interrupt the start.
        actors: the modules with the actors.
        overrides: settings that win over the environment, by their lower-case names.

    Raises:
        SettingsError: a setting is wrong, or cannot be used with a stack.
    """

    def __init__(self, signals: Signals, actors: Sequence[str] = ("actors",), **overrides: Any) -> None:
        given = load(**overrides)
        if given.broker == "stub":
            raise SettingsError("BROKER", "stub has no workers; write postgres, redis or rabbitmq")
        self._given = given.model_fields_set
        self._signals = signals
        self._actors = list(actors)
        self._root = given.data_dir.absolute()
        self._lock: IO[str] | None = None
        self._guard: Guard | None = None
        self._children: list[Child] = []
        #: Settings that differ from the environment's: hand them to ``switchyard.configure``.
        self.overrides: dict[str, Any] = {**overrides, "data_dir": self._root}
        #: What runs where, for people: (name, description).
        self.places: list[tuple[str, str]] = []

    @property
    def settings(self) -> Settings:
        """The settings with everything that has been found out so far."""
        return load(**self.overrides)

    @property
    def embedded_database(self) -> bool:
        """Whether Postgres is ours."""
        return "database_url" not in self._given

    @property
    def title(self) -> str:
        """What is going to be started, for people."""
        broker = self.settings.broker
        return f"Postgres, {broker} and workers" if transport_class(broker).carries_triggers else "Postgres and workers"

    def stays(self) -> list[str]:
        """What a run leaves on servers that are not ours, for people."""
        settings = self.settings
        found = []
        if not self.embedded_database:
            # Without a name in the URL the database is the one that is called as the user.
            name = conninfo_to_dict(settings.database_url.get_secret_value()).get("dbname")
            database = f"your database {name}" if name else "your database"
            found.append(f"these jobs and what they wrote: in {database}, schemas switchyard and switchyard_jobs")
        if transport_class(settings.broker).carries_triggers and f"{settings.broker}_url" not in self.overrides:
            remove = _REMOVE[settings.broker].format(prefix=settings.broker_prefix)
            found.append(
                f"names that begin with {settings.broker_prefix}, with nothing of this run in them: in your {settings.broker}; they go by"
                f" {remove}"
            )
        return found

    def log(self, name: str) -> Path:
        """The file that a process of this stack logs to."""
        return self._root / "log" / f"{name}.log"

    def other_brokers(self) -> list[str]:
        """The brokers, beside the one in use, for which nothing has to be installed or set."""
        free = [name for name in TRANSPORTS if name in _EMBEDDED or not transport_class(name).carries_triggers]
        return [name for name in free if name != self.settings.broker]

    def exports(self) -> list[str]:
        """The variables that another shell needs, which are those that it would not read itself."""
        names = ["database_url", "broker", "redis_url", "rabbitmq_url", "broker_prefix", "data_dir"]
        return [name.upper() for name in names if name in self.overrides or name == "broker"]

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start servers, migrate, start workers, and wait until these are there.

        Raises:
            StackError: something cannot be started, or a server whose URL is given cannot be reached.
            SettingsError: the Postgres that was given does not answer, or not with this database.
        """
        self._take_lock()
        self._start_postgres()
        self._start_broker()
        self._migrate()
        self._start_workers()

    def require(self) -> None:
        """Make sure that every process still runs. Raises: StackError: one has ended."""
        # The last one started first: workers end when their servers do, so the server is the news.
        for child in self._children:
            if not child.stopped:
                child.require()

    def stop(self) -> list[str]:
        """Stop everything, workers first. Returns the names of what had to be killed; calling it again does nothing."""
        self._signals.stopping()
        killed = []
        while self._children:
            child = self._children.pop()
            if child.stopped:
                continue
            grace = self.settings.shutdown_grace + _BEYOND_GRACE if child.name == "worker" else _SERVER_GRACE
            if not child.stop(grace, lambda: self._signals.hurry):
                killed.append(child.name)
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        return killed

    # In order of the start.

    def _take_lock(self) -> None:
        try:
            for folder in (self._root, self._root / "run", self._root / "log"):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._root / "stack.lock").open("a+")
        except OSError as error:
            raise SettingsError("DATA_DIR", f"cannot use {self._root}: {error.strerror}") from error
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _locked(self._lock):
            self._lock.seek(0)
            owner = self._lock.read().strip()
            # While the owner lives, waiting is no use; when it was killed, its guard is about to finish.
            if time.monotonic() > deadline or (owner.isdigit() and _alive(int(owner))):
                raise StackError(f"a stack is running in {shown(self._root)} already (process {owner}): stop it first")
            time.sleep(POLL)
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        with self._signals.shielded():
            self._guard = Guard(self._lock.fileno())
        end_leftover("worker", self._root / "run", "-m cli worker ")

    def _start_postgres(self) -> None:
        if not self.embedded_database:
            self.places.append(("Postgres", "at your DATABASE_URL"))
            return
        server = EmbeddedPostgres(self._root / "postgres", self._launch, self._root / "run")
        self.overrides["database_url"] = server.start()
        self.places.append(("Postgres", f"embedded, version {server.version}, data in {shown(self._root / 'postgres')}"))

    def _start_broker(self) -> None:
        name = self.settings.broker
        if not transport_class(name).carries_triggers:
            self.places.append(("broker", f"{name}, the same database"))
            return
        url = f"{name}_url"
        if name in _EMBEDDED and url not in self._given:
            server = _EMBEDDED[name](self._root / name, self._launch, self._root / "run")
            self.overrides[url] = server.start(self.settings)
            self.places.append(("broker", f"{name}, embedded, data in {shown(self._root / name)}"))
            return
        if self.embedded_database and "broker_prefix" not in self._given:
            self.overrides["broker_prefix"] = own_prefix(self._root)
        transport = make_transport(name, self.settings)
        try:
            transport.depth(["default"])
        except TransportDown as error:
            source = "" if url in self._given else " (it is not set, so the default was tried)"
            reason = str(error).removeprefix(f"{name}: ").rstrip(".")
            raise StackError(f"{url.upper()}: {reason}{source}; BROKER={name} needs it") from error
        finally:
            transport.close()
        self.places.append(("broker", f"{name}, at {'your' if url in self._given else 'the default'} {url.upper()}"))

    def _migrate(self) -> None:
        settings = self.settings
        try:
            before, after = migrate(settings.database_url.get_secret_value(), pgbouncer=settings.pgbouncer)
        except LedgerUnavailable as error:
            if self.embedded_database:
                raise
            raise database_refusal(error, settings) from error
        if before != after:
            self.places.append(("ledger", f"migrated from {before or 'nothing'} to {after}"))

    def _start_workers(self) -> None:
        command = [sys.executable, "-m", "cli", "worker", *self._actors]
        command += ["--processes", str(WORKER_PROCESSES), "--threads", str(WORKER_THREADS)]
        worker = self._launch("worker", command, env=child_environment(self.settings))
        database = Database(self.settings.database_url.get_secret_value(), pool_size=1)
        deadline = time.monotonic() + _WORKERS_PATIENCE
        try:
            while sum(_in_group(found.pid, worker.pid) for found in database.run(read.workers)) < WORKER_PROCESSES:
                self.require()
                if time.monotonic() > deadline:
                    raise StackError(
                        f"the workers are not there after {_WORKERS_PATIENCE:.0f} s; the end of {shown(worker.log)}:\n"
                        + worker.last_words()
                    )
                time.sleep(POLL)
        finally:
            database.close()
        what = f"{WORKER_PROCESSES} processes, {WORKER_THREADS} threads each, log in {shown(worker.log)}"
        self.places.append(("workers", what))

    def _launch(self, name: str, argv: list[str], **options: Any) -> Child:
        """Start a process; unless told otherwise with none of the environment, which is nothing to a server and may be secret."""
        assert self._guard is not None
        options.setdefault("env", {"PATH": os.defpath, "LC_ALL": "C"})
        with self._signals.shielded():
            child = Child(name, argv, log=self.log(name), run=self._root / "run", guard=self._guard, **options)
            self._children.append(child)
        return child


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _in_group(pid: int, group: int) -> bool:
    """Whether a process on this machine belongs to a group; workers of other machines may have equal process ids."""
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False
