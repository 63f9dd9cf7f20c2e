"""One running system per broker, shared by all cases that do not mind each other; and fresh ones for those that do."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

import brokers
from settings import Settings
from tests.conformance.system import System
from tests.rig.postgres import Databases


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Function) -> None:
    """Let a case speak to its own system: several live in one process, and each was this process's Switchyard when it was made."""
    for value in item.funcargs.values():
        if isinstance(value, System):
            value.activate()


@pytest.fixture(scope="package", params=brokers.TRANSPORTS)
def broker_name(request: pytest.FixtureRequest) -> str:
    """Every case runs once per broker; of the folder's scope, so that those of one broker run together and their system ends with it."""
    name: str = request.param
    return name


@pytest.fixture(scope="package")
def make_settings(
    request: pytest.FixtureRequest, broker_name: str, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Settings]]:
    """Settings with a database and a prefix of their own: ``settings = make_settings(lease=2.0)``."""
    urls: dict[str, str] = {}
    if broker_name != "postgres":
        urls[f"{broker_name}_url"] = request.getfixturevalue(f"{broker_name}_url")
    made: list[str] = []

    def make(**fields: object) -> Settings:
        made.append(databases.create())
        defaults: dict[str, object] = {
            "database_url": made[-1], "broker": broker_name, "broker_prefix": f"sytest{uuid.uuid4().hex[:10]}",
            "lease": 2.0, "sweep": 0.5, "data_dir": tmp_path_factory.mktemp("data"),
        }  # fmt: skip
        return Settings(**(defaults | urls | fields))

    yield make
    for url in made:
        databases.drop(url)


@pytest.fixture(scope="package")
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """The settings of the shared system."""
    return make_settings()


@pytest.fixture(scope="package")
def shared_system(settings: Settings) -> Iterator[System]:
    """The running system; use ``system``."""
    system = System(settings)
    consumed = {queue for queue in system.broker.queues if queue != "parked"}
    system.start(queues=consumed)
    yield system
    system.close()


@pytest.fixture
def system(shared_system: System) -> System:
    """A running system that other cases of this broker have used and will use: look at jobs of your own only."""
    return shared_system


@pytest.fixture
def fresh(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., System]]:
    """Systems of the test's own, not started yet: ``system = fresh(max_lost=1)``."""
    made: list[System] = []

    def make(**fields: object) -> System:
        made.append(System(make_settings(**fields)))
        return made[-1]

    yield make
    for system in reversed(made):
        system.close()


@pytest.fixture
def stranger(system: System) -> Iterator[System]:
    """A process that knows no actors, as the command line, beside it."""
    system.activate()
    other = System(system.settings, declare=lambda broker: SimpleNamespace())
    yield other
    other.database.close()
    system.activate()
