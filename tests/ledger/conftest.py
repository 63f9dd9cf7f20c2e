"""Connections to a ledger of the test's own, and how many examples the state machine tries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from ledger.database import BoundedConnection, Database
from tests.ledger.blocking import Two
from tests.ledger.factory import clear
from tests.rig.postgres import Databases

#: LEDGER_EXAMPLES=2000 LEDGER_STEPS=50 for a long run with fresh seeds; the suite repeats the same short one.
_EXAMPLES = os.environ.get("LEDGER_EXAMPLES")

settings.register_profile(
    "ledger",
    max_examples=int(_EXAMPLES or 100),
    stateful_step_count=int(os.environ.get("LEDGER_STEPS", 30)),
    derandomize=_EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="package")
def ledger_url(databases: Databases) -> Iterator[str]:
    """One migrated database for the tests of this folder; ``ledger`` empties it first."""
    url = databases.create()
    yield url
    databases.drop(url)


@pytest.fixture
def connect(ledger_url: str) -> Iterator[Callable[[], BoundedConnection]]:
    """Opens further connections of the kind that workers' threads live on."""
    database = Database(ledger_url)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(database.dedicated("test"))


@pytest.fixture
def ledger(connect: Callable[[], BoundedConnection]) -> BoundedConnection:
    """A connection to an empty ledger."""
    connection = connect()
    clear(connection)
    connection.execute("DELETE FROM switchyard.worker")
    connection.execute("DELETE FROM switchyard.route")
    connection.execute("DELETE FROM switchyard.declaration")
    return connection


@pytest.fixture(scope="module", params=["read committed", "repeatable read"])
def place(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Database]:
    """A ledger, and one in a database whose default isolation is another than ours."""
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE \"{owner.info.dbname}\" SET default_transaction_isolation = '{request.param}'".encode())
    database = Database(url)
    yield database
    database.close()
    databases.drop(url)


@pytest.fixture
def two(place: Database) -> Iterator[Two]:
    """Two sessions that meet in it, and one that looks on."""
    with ExitStack() as stack:
        two = Two(*(stack.enter_context(place.dedicated("test")) for _ in range(3)))
        clear(two.onlooker)
        yield two
