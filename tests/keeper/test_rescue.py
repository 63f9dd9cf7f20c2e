"""When lost jobs may be taken back: not before the living have had a lease's time to say that they live."""

from __future__ import annotations

from time import monotonic

import pytest

from keeper import rescue as module
from keeper.rescue import rescue
from ledger.database import Database
from ledger.sql import SQL
from tests.ledger.factory import add, age_lease, claim, fetch


@pytest.fixture
def ledger(database_url):
    database = Database(database_url)
    with database.dedicated("test") as connection:
        yield connection


@pytest.fixture
def lost(ledger):
    """A job of a worker that died without a word."""
    id_ = add(ledger)
    claim(ledger, id_, holder="dead")
    age_lease(ledger, id_)
    return id_


def uptime(ledger):
    return ledger.execute(SQL["settled_uptime"]).fetchone()[0]


def test_a_lost_job_is_taken_back(ledger, lost):
    (taken,) = rescue(ledger, lease=0.001, max_lost=3, connected_again_at=None)

    assert (taken.id, taken.guilty) == (lost, False)
    assert fetch(ledger, lost, "state") == "pending"


def test_nothing_is_taken_back_until_postgres_has_been_up_for_a_lease(ledger, lost):
    assert rescue(ledger, lease=uptime(ledger) + 60, max_lost=3, connected_again_at=None) == []
    assert fetch(ledger, lost, "state") == "running"


def test_nothing_is_taken_back_within_a_lease_of_this_keepers_own_return(ledger, lost):
    # As long as this server has been up for, so that only the return decides.
    lease = uptime(ledger)

    assert rescue(ledger, lease=lease, max_lost=3, connected_again_at=monotonic()) == []
    assert rescue(ledger, lease=lease, max_lost=3, connected_again_at=monotonic() - lease - 0.1)


def test_a_healthy_fleet_costs_one_statement(ledger, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "settled", lambda *arguments: asked.append(arguments))

    assert rescue(ledger, lease=1.0, max_lost=3, connected_again_at=None) == []
    assert asked == []
