"""The relay's rounds: all that is due, at most a round's worth, and nothing at all while the broker is down."""

from __future__ import annotations

import pytest

from keeper import relay as module
from keeper.relay import relay
from ledger import write
from ledger.database import Database
from tests.ledger.factory import add


class Publisher:
    """Takes what it is offered; the test says whether its broker is down."""

    def __init__(self):
        self.offered = []
        self.down_after = None

    def is_open(self, broker):
        return self.down_after is not None and len(self.offered) >= self.down_after

    def refused(self, broker):
        return frozenset()

    def offer(self, broker, batch):
        self.offered += [trigger.job_id for trigger in batch]


@pytest.fixture
def ledger(database_url):
    database = Database(database_url)
    with database.dedicated("test") as connection:
        yield connection


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch):
    real = write.relay_due
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "ROUND", 30)
    monkeypatch.setattr(write, "relay_due", lambda connection, **fields: real(connection, **fields, limit=10))


def due(ledger, count):
    return [add(ledger, broker="redis", grace=0.0) for _ in range(count)]


def run(ledger, publisher):
    return relay(ledger, publisher, own="redis", carriers={"redis": True}, grace=30.0)


def test_everything_due_is_published_once(ledger):
    ids, publisher = due(ledger, 25), Publisher()

    assert run(ledger, publisher) == 25
    assert sorted(publisher.offered) == ids
    assert run(ledger, publisher) == 0


def test_a_round_is_bounded(ledger):
    ids, publisher = due(ledger, 45), Publisher()

    assert run(ledger, publisher) == 30
    assert run(ledger, publisher) == 15
    assert sorted(publisher.offered) == ids


def test_a_broker_that_goes_down_stops_the_round_and_leaves_the_rest_untouched(ledger):
    due(ledger, 25)
    publisher = Publisher()
    publisher.down_after = 10

    assert run(ledger, publisher) == 10
    assert ledger.execute("SELECT count(*) FROM switchyard.job WHERE next_publish_at <= clock_timestamp()").fetchone() == (15,)
