"""Who may be taken for dead: nobody, until heartbeats have come for a lease without a pause in which a lease could have ended."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from keeper import rescue as module
from keeper.rescue import SILENCE, rescue, settled
from ledger import write
from ledger.sql import SQL
from tests.ledger.factory import add, age_lease, claim, fetch, worker_row

LEASE = 2.0


@pytest.fixture
def lost(ledger):
    """A job of a worker that died without a word."""
    id_ = add(ledger)
    claim(ledger, id_, holder="dead")
    age_lease(ledger, id_)
    return id_


def beat(ledger, name="one"):
    write.beat(ledger, worker_row(name, lease=LEASE))


def later(ledger, seconds):
    """As if the heartbeats so far had come so much earlier."""
    ledger.execute(
        "UPDATE switchyard.duty SET due_at = due_at - make_interval(secs => %s), position = position - (%s * 1000)::bigint"
        " WHERE name = 'in touch'",
        [seconds, seconds],
    )


def in_touch(ledger):
    found = module.in_touch(ledger, LEASE)
    assert found is not None
    return found[0]


def test_heartbeats_are_in_touch_from_the_first_of_an_unbroken_row_on(ledger):
    assert module.in_touch(ledger, LEASE) is None
    beat(ledger)
    for name in ("one", "two", "one", "two", "one"):
        later(ledger, LEASE / 3)
        beat(ledger, name)

    assert 5 * LEASE / 3 <= in_touch(ledger) < 5 * LEASE / 3 + 1


def test_a_pause_in_which_a_lease_could_have_ended_begins_a_new_row(ledger):
    beat(ledger)
    for _ in range(5):
        later(ledger, LEASE / 3)
        beat(ledger)
    later(ledger, 2 * LEASE / 3)

    assert in_touch(ledger) is None
    beat(ledger)
    assert in_touch(ledger) < 1


def test_a_server_whose_clock_is_behind_begins_a_new_row_at_once(ledger):
    beat(ledger)
    later(ledger, -3_600)

    assert in_touch(ledger) is None
    beat(ledger)
    assert 0 <= in_touch(ledger) < 1


def test_a_keeper_that_is_new_takes_nothing_back_before_the_living_have_had_a_lease(ledger, lost):
    uptime = ledger.execute(SQL["settled_uptime"]).fetchone()[0]
    lease = min(LEASE, uptime)
    # Postgres stood still, or a standby took over that was up all the while: these are the first words since.
    beat(ledger)
    later(ledger, 10 * LEASE)
    beat(ledger, "two")

    assert rescue(ledger, lease=lease, max_lost=3, connected_again_at=None, memory={}) == []
    assert fetch(ledger, lost, "state") == "running"

    for _ in range(4):
        later(ledger, LEASE / 3)
        beat(ledger, "two")
    (taken,) = rescue(ledger, lease=lease, max_lost=3, connected_again_at=None, memory={})
    assert (taken.id, taken.guilty) == (lost, False)


@pytest.fixture
def clock(monkeypatch):
    """What time it is for the keeper."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


def test_where_nobody_lives_a_keeper_takes_back_what_is_lost_after_a_lease_of_its_own(ledger, lost, clock):
    beat(ledger)
    later(ledger, 10 * LEASE)
    memory = {}

    for look in count():
        taken = rescue(ledger, lease=0.04, max_lost=3, connected_again_at=None, memory=memory)
        if taken:
            break
        clock.now += 0.02
        assert look < 10
    assert look == 4
    assert fetch(ledger, lost, "state") == "pending"


def test_the_time_in_which_postgres_gave_no_answer_is_no_silence_of_the_workers(ledger, clock):
    beat(ledger)
    later(ledger, 10 * LEASE)
    memory = {}

    for passed in (0.0, 0.06, 3_600.0):
        clock.now += passed
        assert not settled(ledger, 0.04, None, memory)
    assert memory[SILENCE] == (0.0, clock.now)
