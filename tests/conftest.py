"""Fixtures that every test may use: servers, a database of its own, settings, brokers by name, real worker processes.

Servers are started in the background as soon as it is known which of them the tests of a unit (``tests/rig/parallel.py``) need, and
only those; with ``pytest -n`` each process has its own. Nothing of the caller's environment reaches a test but the URLs of the three
servers, and no ``.env`` file is read.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
import pytest

import brokers
from settings import Settings
from tests.rig.parallel import by_units, unit_of
from tests.rig.postgres import Databases, find_postgres
from tests.rig.processes import GUARD
from tests.rig.rabbitmq import find_rabbitmq, remove_queues
from tests.rig.redis import find_redis, remove_keys
from tests.rig.service import Service
from tests.rig.workers import Workers

#: First part of every Redis key and RabbitMQ queue name of this run.
RUN = f"sytest{uuid.uuid4().hex[:8]}"

_FINDERS: dict[str, Callable[[], Service]] = {"postgres": find_postgres, "redis": find_redis, "rabbitmq": find_rabbitmq}
_failed = pytest.StashKey[bool]()


class Services:
    """The servers of this run, found at most once each, side by side."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(len(_FINDERS), thread_name_prefix="rig")
        self._found: dict[str, Future[Service]] = {}

    def start(self, name: str) -> Future[Service]:
        """Begin to find a server, in the background."""
        if name not in self._found:
            self._found[name] = self._pool.submit(_FINDERS[name])
        return self._found[name]

    def get(self, name: str) -> Service:
        """The server, once it answers. Raises: NoServer."""
        return self.start(name).result()

    def lines(self) -> list[str]:
        """Where the servers came from, for the summary."""
        done = {name: future for name, future in self._found.items() if future.done()}
        return [f"{name}: {'not found' if future.exception() else future.result().source}" for name, future in done.items()]

    def close(self) -> None:
        """Stop what was started."""
        self._pool.shutdown(wait=True)
        for future in self._found.values():
            if future.exception() is None:
                future.result().close()


# The same examples in every run, so that a failure is the change's and not the day's; no deadline, since machines are shared.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Cut the tests off from the caller's settings, except for the URLs of servers."""
    for name in Settings.model_fields:
        if name not in ("database_url", "redis_url", "rabbitmq_url"):
            os.environ.pop(name.upper(), None)
    Settings.model_config["env_file"] = None
    config.stash[_services] = Services()
    config.stash[_elsewhere] = []
    config.stash[_prepared] = set()
    # Itself, before a test's output is captured.
    config.stash[_stderr] = os.dup(2)


_services = pytest.StashKey[Services]()
#: Where the servers of other processes came from, one line each.
_elsewhere = pytest.StashKey[list[str]]()
_prepared = pytest.StashKey[set[str]]()
_stderr = pytest.StashKey[int]()


def _watch(item: pytest.Item, seconds: float) -> None:
    """End this process, with all stacks, unless it gets on in time: for what no signal ends, since C code keeps the interpreter."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_stderr])


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Have a test watched beyond its time limit."""
    _watch(item, settings.timeout + 60)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Have the fixtures' ends watched too: a test that has failed is under no time limit any more."""
    _watch(item, 300)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Hand the tests to the processes of ``pytest -n`` a unit at a time."""
    return by_units(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Before a unit's first test: start the servers that its tests ask for. After each: watch no more."""
    config, unit = item.config, unit_of(item.nodeid)
    if unit not in config.stash[_prepared]:
        config.stash[_prepared].add(unit)
        for name in {name for other in item.session.items if unit_of(other.nodeid) == unit for name in _wanted(other)}:
            config.stash[_services].start(name)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop the servers, then let the guard end whatever else is left; a process of ``pytest -n`` tells where its servers came from."""
    services = session.config.stash[_services]
    services.close()
    GUARD.dismiss()
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["servers"] = [f"{line} ({os.environ['PYTEST_XDIST_WORKER']})" for line in services.lines()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process of ``pytest -n`` told; one that crashed told nothing."""
    node.config.stash[_elsewhere] += getattr(node, "workeroutput", {}).get("servers", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say where each server came from."""
    for line in sorted(config.stash[_services].lines() + config.stash[_elsewhere]):
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test itself failed, for fixtures that show logs then; and make what it printed fit to travel."""
    report = yield
    # With -n it goes to the printing process as UTF-8, which has no lone surrogates; one of them ends the whole run.
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    if report.failed:
        item.stash[_failed] = True
    return report


def _wanted(item: pytest.Item) -> set[str]:
    """The servers that a test needs, by its fixtures and its broker."""
    fixtures = set(getattr(item, "fixturenames", ()))
    wanted = {name for name in ("postgres", "redis", "rabbitmq") if f"{name}_url" in fixtures}
    if fixtures & {"database_url", "empty_database_url", "settings"}:
        wanted.add("postgres")
    broker = getattr(item, "callspec", None) and item.callspec.params.get("broker_name")  # type: ignore[attr-defined]
    if broker in _FINDERS and "settings" in fixtures:
        wanted.add(broker)
    return wanted


@pytest.fixture(scope="session")
def postgres_url(pytestconfig: pytest.Config) -> str:
    """A Postgres server, as the URL of a database from which others may be created."""
    return pytestconfig.stash[_services].get("postgres").url


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A Redis server. Somebody else's data may be in it: use keys that begin with ``settings.broker_prefix`` only."""
    service = pytestconfig.stash[_services].get("redis")
    yield service.url
    if not service.private:
        remove_keys(service.url, RUN)


@pytest.fixture(scope="session")
def rabbitmq_url(pytestconfig: pytest.Config) -> str:
    """A RabbitMQ vhost. Somebody else's queues may be in it: use names that begin with ``settings.broker_prefix`` only."""
    return pytestconfig.stash[_services].get("rabbitmq").url


@pytest.fixture(scope="session")
def databases(postgres_url: str) -> Iterator[Databases]:
    """Makes databases: migrated ones are clones of a template that is migrated once."""
    import migrations

    found = Databases(postgres_url, migrations.upgrade)
    yield found
    found.close()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated database of this test's own, dropped after it."""
    url = databases.create()
    yield url
    databases.drop(url)


@pytest.fixture
def bare_url(database_url: str) -> Iterator[str]:
    """The URL of this test's database for a user who has no right there but to log in; both are gone after it."""
    name = f"bare_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'bare'")
        parts = urlsplit(database_url)
        yield urlunsplit(parts._replace(netloc=f"{name}:bare@{parts.netloc.rpartition('@')[2]}"))
        owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of this test's own without any tables."""
    url = databases.create(migrated=False)
    yield url
    databases.drop(url)


@pytest.fixture(params=brokers.TRANSPORTS)
def broker_name(request: pytest.FixtureRequest) -> str:
    """Runs the test once per broker that there is."""
    name: str = request.param
    return name


_count = itertools.count(1)


@pytest.fixture
def broker_prefix() -> str:
    """A prefix for Redis keys and RabbitMQ queues that no other test uses."""
    return f"{RUN}-{next(_count)}"


@pytest.fixture
def settings(request: pytest.FixtureRequest, database_url: str, broker_prefix: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of this test's own: its database, its prefix, a lease of 2 s and a sweep of 0.5 s.

    The broker is the one of ``broker_name`` when the test uses that fixture, otherwise Postgres. Redis and RabbitMQ are only
    there for tests that run on them or ask for ``redis_url`` or ``rabbitmq_url``; the others get URLs where nobody listens.
    """
    broker = request.getfixturevalue("broker_name") if "broker_name" in request.fixturenames else "postgres"
    urls = {"redis": "redis://127.0.0.1:9/0", "rabbitmq": "amqp://guest:guest@127.0.0.1:9/%2F"}
    for name in urls:
        if broker == name or f"{name}_url" in request.fixturenames:
            urls[name] = request.getfixturevalue(f"{name}_url")
    yield Settings(
        database_url=database_url,
        broker=broker,
        redis_url=urls["redis"],
        rabbitmq_url=urls["rabbitmq"],
        broker_prefix=broker_prefix,
        lease=2.0,
        sweep=0.5,
        data_dir=tmp_path / "data",
    )
    if not urls["rabbitmq"].endswith(":9/%2F") and not request.config.stash[_services].get("rabbitmq").private:
        remove_queues(urls["rabbitmq"], _queue_names(database_url, broker_prefix))


def _queue_names(database_url: str, prefix: str) -> list[str]:
    """The RabbitMQ queues that a test may have declared: one per queue that its ledger knows, and that of the dead letters."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT DISTINCT queue FROM switchyard.job").fetchall()
    return [*(f"{prefix}.{queue}.p10" for (queue,) in rows), f"{prefix}.dead", f"{prefix}.ledgers"]


@pytest.fixture
def worker_process(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    """Starts real ``dramatiq`` workers with this test's settings: ``worker = worker_process("actors", threads=2)``.

    What still runs at the end is killed; when the test failed, every worker's log is in its report.
    """
    workers = Workers(settings, tmp_path)
    yield workers
    workers.close()
    if request.node.stash.get(_failed, False) and workers.started:
        request.node.add_report_section("teardown", "worker logs", workers.logs())
        print(workers.logs())
