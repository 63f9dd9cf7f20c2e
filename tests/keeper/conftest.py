"""A ledger to keep, and what the duties are given."""

from __future__ import annotations

import pytest

from ledger.database import Database
from runtime.counters import Counters
from runtime.routes import Routes
from settings import load
from tests.conformance.system import System
from tests.keeper.scheduling import declare_actors


class Node:
    """The process, as far as the duties need it."""

    def __init__(self, settings, database):
        self.settings = settings
        self.database = database
        self.counters = Counters()


class Publisher:
    """Takes what it is offered, in a broker that never fails."""

    def __init__(self):
        self.offered = []

    def is_open(self, broker):
        return False

    def refused(self, broker):
        return frozenset()

    def offer(self, broker, batch):
        self.offered += [trigger.job_id for trigger in batch]


class Broker:
    """The broker, as far as the duties need it: its triggers go nowhere."""

    def __init__(self, actors=("work",), queues=("default",)):
        self.publisher = Publisher()
        self.actors = dict.fromkeys(actors)
        self.queues = dict.fromkeys(queues)

        self.routes = Routes({"*": "postgres"})
        self.followed = []

    @property
    def carriers(self):
        return {"postgres": False, "redis": True, "rabbitmq": True}

    def follow_routes(self, left_behind):
        self.followed.append(list(left_behind))


@pytest.fixture
def database(database_url):
    return Database(database_url)


@pytest.fixture
def ledger(database):
    with database.dedicated("test") as connection:
        yield connection


@pytest.fixture
def node(database, database_url):
    return Node(load(database_url=database_url), database)


@pytest.fixture
def system(settings):
    """A system with schedules whose worker is not started: tests take the keeper's turns themselves."""
    system = System(settings, declare_actors)
    yield system
    system.close()


@pytest.fixture
def keeper(system):
    """A keeper's connection."""
    with system.database.dedicated("keeper") as connection:
        yield connection
