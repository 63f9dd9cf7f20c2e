"""The keeper while Postgres is away: it says so once, tries now and then whatever presses it, and goes on where it was."""

from __future__ import annotations

from itertools import pairwise
from time import monotonic

import pytest

import migrations
from keeper import loop
from keeper.duty import Duty
from keeper.loop import Keeper
from ledger.database import Database
from middleware.log_context import configure_structlog
from settings import load
from tests.keeper.conftest import Broker, Node
from tests.ledger.factory import add, fetch
from tests.rig.postgres import PrivatePostgres
from tests.rig.waiting import wait_until


class Watched(Database):
    """Notes when the keeper tries to connect, and what it does just before."""

    def __init__(self, url):
        super().__init__(url)
        self.tries = []
        self.before = lambda: None

    def dedicated(self, name, **options):
        self.before()
        self.tries.append(monotonic())
        return super().dedicated(name, **options)


@pytest.fixture
def server():
    server = PrivatePostgres()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def said(caplog):
    """What the keeper and its outage have said so far."""
    configure_structlog()
    caplog.set_level("INFO")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith(("keeper", "runtime.outage"))]


def test_an_outage_is_two_lines_and_a_few_tries_and_what_became_due_is_relayed(server, monkeypatch, said):
    turns = []
    # However long a slow machine takes, nobody is reminded.
    monkeypatch.setattr("runtime.outage.REMIND", 3_600.0)
    monkeypatch.setattr(loop, "DUTIES", (Duty("always overdue", lambda _: 0.0, lambda connection, keeping: turns.append(1)),))
    migrations.upgrade(server.url)
    database = Watched(server.url)
    keeper = Keeper(Broker())
    keeper.start(Node(load(database_url=server.url), database))

    def press():
        keeper._alarm._ring()
        keeper.wake(-1.0)

    try:
        wait_until(lambda: turns, message="it works")
        with Database(server.url).dedicated("test") as connection:
            due = add(connection, delay=1.0)

        # A ring that came with the connection's last words, and a process of ours that goes on telling what is due.
        database.before = press
        server.stop()
        wait_until(lambda: len(database.tries) >= 5, message="it tries")
        database.before = lambda: None
        turns.clear()
        server.start()

        wait_until(lambda: turns, message="the duties go on")
        with Database(server.url).dedicated("test") as connection:
            wait_until(lambda: fetch(connection, due, "state") == "pending", message="what became due meanwhile is relayed")
        pauses = [later - earlier for earlier, later in pairwise(database.tries[1:5])]
        assert all(pause >= loop.RETRY_MIN * 2**n for n, pause in enumerate(pauses, start=1)), pauses
        waiting, going_on = wait_until(lambda: len(said()) >= 2 and said())
        assert "waiting, will go on by itself" in waiting
        assert "going on" in going_on
    finally:
        keeper.stop()
