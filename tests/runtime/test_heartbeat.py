"""The heartbeat: leases live as long as their process does what it should, and the process learns what it has lost."""

from __future__ import annotations

from time import monotonic

import pytest

from runtime.heartbeat import TIME_LIMIT_GRACE, Heartbeat
from tests.ledger.factory import age_lease, worker_row


@pytest.fixture
def heartbeat(desk):
    heartbeat = Heartbeat(desk.database, desk.held, desk.counters, worker_row("me"), lambda: ["default"])
    yield heartbeat
    heartbeat._disconnect()


def lease_left(desk, claim):
    (left,) = desk.rows(
        "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 FROM switchyard.job WHERE id = %s", claim.job.id
    )[0]
    return left


def age(desk, *claims):
    with desk.database.connection() as connection:
        age_lease(connection, *[claim.job.id for claim in claims], seconds=20.0)


def test_a_beat_extends_every_lease_and_records_starts(desk, heartbeat):
    (running,), (waiting,) = desk.claim(1), desk.claim(1, start=False)
    age(desk, running, waiting)
    running.deadline = waiting.deadline = 0.0

    heartbeat.beat()

    assert lease_left(desk, running) > 25
    assert lease_left(desk, waiting) > 25
    assert running.deadline > monotonic() + 20
    assert desk.rows("SELECT started_at IS NOT NULL FROM switchyard.job ORDER BY id") == [(True,), (False,)]
    assert desk.rows("SELECT id, running FROM switchyard.worker") == [("me", 1)]


def test_what_the_ledger_does_not_confirm_is_lost(desk, heartbeat):
    running, ours = desk.claim(2)
    (waiting,) = desk.claim(1, start=False)
    for claim in (running, waiting):
        desk.rows("UPDATE switchyard.job SET token = gen_random_uuid() WHERE id = %s RETURNING 1", claim.job.id)

    heartbeat.beat()

    assert (running.lost, waiting.lost, ours.lost) == (True, True, False)
    assert not desk.held.start(waiting)
    assert desk.counters.snapshot()["leases_lost"] == 2


def test_what_waits_for_a_whole_beat_is_given_back_at_no_cost(desk, heartbeat):
    (old,), (young,) = desk.claim(1, start=False), desk.claim(1, start=False)
    old.received -= 11.0

    heartbeat.beat()

    assert desk.states() == ["pending", "running"]
    assert desk.rows("SELECT attempt FROM switchyard.job ORDER BY id") == [(0,), (1,)]
    assert list(desk.held.unstarted) == [young]


def test_a_body_that_hangs_past_its_limit_is_left_to_its_lease(desk, heartbeat):
    hanging, fine = desk.claim(2)
    hanging.time_limit = fine.time_limit = 10.0
    hanging.started = monotonic() - 10.0 - TIME_LIMIT_GRACE - 1
    age(desk, hanging, fine)

    heartbeat.beat()

    assert lease_left(desk, hanging) < 15
    assert lease_left(desk, fine) > 25


def test_a_row_that_is_locked_for_a_moment_is_not_lost(desk, heartbeat):
    (claim,) = desk.claim(1)
    with desk.database.connection() as other, other.transaction():
        other.execute("SELECT 1 FROM switchyard.job WHERE id = %s FOR UPDATE", [claim.job.id])

        heartbeat.beat()

    assert not claim.lost


def test_stopping_signs_off(desk):
    heartbeat = Heartbeat(desk.database, desk.held, desk.counters, worker_row("gone"), lambda: ["default"])
    heartbeat.start()
    assert desk.rows("SELECT id FROM switchyard.worker") == [("gone",)]

    heartbeat.stop()

    assert not heartbeat.alive
    assert desk.rows("SELECT id FROM switchyard.worker") == []
