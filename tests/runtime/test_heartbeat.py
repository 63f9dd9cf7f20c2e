"""The heartbeat: leases live as long as their process does what it should, and the process learns what it has lost."""

from __future__ import annotations

from time import monotonic

import psycopg
import pytest

from ledger import write
from runtime.heartbeat import START_AFTER, TIME_LIMIT_GRACE, Heartbeat
from runtime.routes import Routes
from tests.ledger.factory import age_lease, worker_row


@pytest.fixture
def heartbeat(desk):
    heartbeat = Heartbeat(
        desk.database, desk.held, desk.counters, worker_row("me"), lambda: ["default"], Routes({"*": "postgres"})
    )
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

    assert lease_left(desk, running) > 15
    assert lease_left(desk, waiting) > 15
    assert running.deadline > monotonic() + 10
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
    hanging.started = monotonic() - 10.0 - 2 * TIME_LIMIT_GRACE - 1
    hanging.start_recorded = True
    age(desk, hanging, fine)

    heartbeat.beat()

    assert lease_left(desk, hanging) < 15
    assert lease_left(desk, fine) > 15


def test_the_start_of_a_body_that_hangs_is_recorded_before_it_is_left_to_its_lease(desk, heartbeat):
    (hanging,) = desk.claim(1)
    hanging.time_limit = 0.001
    hanging.started = monotonic() - 2 * TIME_LIMIT_GRACE - 1
    age(desk, hanging)

    heartbeat.beat()
    assert desk.rows("SELECT started_at IS NOT NULL FROM switchyard.job") == [(True,)]
    age(desk, hanging)
    heartbeat.beat()

    assert lease_left(desk, hanging) < 15


def test_a_process_paused_within_its_beat_extends_its_leases_before_it_says_that_it_lives(desk, heartbeat, monkeypatch):
    (claim,) = desk.claim(1)
    extend, says_it_lives, order = write.extend_leases, write.beat, []

    def extend_and_stop(connection, rows, lease):
        order.append("extend")
        ours = extend(connection, rows, lease)
        if len(order) == 1:
            age(desk, claim)
            monkeypatch.setattr("runtime.heartbeat.monotonic", lambda: monotonic() + 60)
        return ours

    def beat(connection, row):
        order.append("beat")
        says_it_lives(connection, row)

    monkeypatch.setattr(write, "extend_leases", extend_and_stop)
    monkeypatch.setattr(write, "beat", beat)

    heartbeat.beat()

    assert order == ["extend", "extend", "beat"]
    assert lease_left(desk, claim) > 25


def test_a_release_that_failed_is_tried_again_and_keeps_the_place_for_no_suspect(desk, heartbeat, monkeypatch):
    (old,) = desk.claim(1, start=False)
    old.received -= 11.0
    old.job = old.job._replace(suspect=True)
    desk.held.accept([old])
    release, calls = write.release_unstarted, []

    def fails_once(connection, claims):
        calls.append(claims)
        if len(calls) == 1:
            raise psycopg.OperationalError("the server went away")
        return release(connection, claims)

    monkeypatch.setattr(write, "release_unstarted", fails_once)
    with pytest.raises(psycopg.OperationalError):
        heartbeat.beat()
    assert not desk.held.start(old)

    heartbeat.beat()

    assert desk.states() == ["pending"]
    assert not desk.held.suspect_held


def test_a_row_that_is_locked_for_a_moment_is_not_lost(desk, heartbeat):
    (claim,) = desk.claim(1)
    with desk.database.connection() as other, other.transaction():
        other.execute("SELECT 1 FROM switchyard.job WHERE id = %s FOR UPDATE", [claim.job.id])

        heartbeat.beat()

    assert not claim.lost


def test_what_has_run_for_a_while_has_its_start_recorded_between_two_beats_and_nothing_else_costs_a_statement(
    desk, heartbeat, monkeypatch
):
    heartbeat.beat()
    (long,), (short,), _ = desk.claim(1), desk.claim(1), desk.claim(1, start=False)
    # However slow the machine is, neither is old before it is said to be.
    long.started = short.started = monotonic() + 3_600.0
    real, extended = write.extend_leases, []

    def extend_leases(connection, rows, lease):
        extended.append([row[0] for row in rows])
        return real(connection, rows, lease)

    monkeypatch.setattr(write, "extend_leases", extend_leases)
    heartbeat.record_starts()
    assert extended == []

    long.started = monotonic() - START_AFTER
    heartbeat.record_starts()
    heartbeat.record_starts()

    assert extended == [[long.job.id]]
    assert desk.rows("SELECT started_at IS NOT NULL FROM switchyard.job ORDER BY id") == [(True,), (False,), (False,)]


def test_a_start_is_not_recorded_while_the_next_beat_has_to_find_postgres_again(desk, heartbeat):
    (long,) = desk.claim(1)
    long.started -= START_AFTER

    heartbeat.record_starts()
    assert desk.rows("SELECT started_at FROM switchyard.job") == [(None,)]
    heartbeat.beat()

    assert desk.rows("SELECT started_at IS NOT NULL FROM switchyard.job") == [(True,)]


def test_stopping_signs_off(desk):
    heartbeat = Heartbeat(
        desk.database, desk.held, desk.counters, worker_row("gone"), lambda: ["default"], Routes({"*": "postgres"})
    )
    heartbeat.start()
    assert desk.rows("SELECT id FROM switchyard.worker") == [("gone",)]

    heartbeat.stop()

    assert not heartbeat.alive
    assert desk.rows("SELECT id FROM switchyard.worker") == []
