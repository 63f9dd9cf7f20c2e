"""The flusher: nothing handed over is dropped, one bad row harms no other, and a lost reply is no second write."""

from __future__ import annotations

import threading

import psycopg
import pytest

from ledger import write
from runtime import flusher as module
from runtime.flusher import Flusher
from tests.ledger.factory import completed, failed, new_job
from tests.rig.waiting import wait_until


@pytest.fixture
def flusher(desk):
    flusher = Flusher(desk.database, desk.held, desk.counters)
    flusher.start()
    yield flusher
    flusher.stop(2.0)


def settle(desk, flusher, claim, **fields):
    assert desk.held.finish(claim)
    flusher.put(claim, completed(claim.job.id, claim.token, **fields))


def test_ends_are_written_in_batches(desk, flusher, monkeypatch):
    sizes = []
    real = write.finish
    monkeypatch.setattr(write, "finish", lambda c, f: sizes.append(len(f)) or real(c, f))

    for claim in desk.claim(100):
        settle(desk, flusher, claim)

    wait_until(lambda: desk.states() == ["completed"] * 100)
    assert len(sizes) < 50
    wait_until(lambda: not desk.held.all(), message="no claim is held any more")


def test_a_row_that_cannot_be_stored_stands_alone_in_the_end(desk, flusher):
    claims = desk.claim(21)
    for place, claim in enumerate(claims):
        settle(desk, flusher, claim, result='{"not json' if place == 7 else "1")

    wait_until(lambda: "running" not in desk.states())

    assert desk.states() == ["completed"] * 7 + ["dead"] + ["completed"] * 13
    assert desk.rows("SELECT dead_reason FROM switchyard.job WHERE state = 'dead'") == [("result_unstorable",)]


def test_a_limited_row_that_cannot_be_stored_frees_its_slot_all_the_same(desk, flusher, monkeypatch):
    written = []
    real = write.finish
    monkeypatch.setattr(write, "finish", lambda c, f: written.extend((end.state.value, end.limited) for end in f) or real(c, f))
    (claim,) = desk.claim(1)
    claim.job = claim.job._replace(limited=True)

    settle(desk, flusher, claim, result='{"not json')

    wait_until(lambda: desk.states() == ["dead"])
    assert written == [("completed", True), ("dead", True)]


def test_a_follower_whose_id_is_taken_does_not_keep_the_end_from_being_written(desk, flusher):
    first, other = desk.claim(2)
    taken = desk.rows("SELECT message_id::text FROM switchyard.job ORDER BY id")[1][0]
    assert desk.held.finish(first)
    end = completed(first.job.id, first.token)
    end.children.append(new_job(message_id=taken, payload='{"args": [1], "kwargs": {}}'))
    flusher.put(first, end)
    settle(desk, flusher, other)

    wait_until(lambda: desk.states() == ["completed"] * 2)
    assert flusher.alive


def test_a_reply_that_was_lost_is_recognised_and_not_written_again(desk, flusher, monkeypatch):
    real, broken = write.finish, []

    def finish(connection, finishes):
        done = real(connection, finishes)
        if not broken:
            broken.append(True)
            raise psycopg.OperationalError("the connection is lost after the commit")
        return done

    monkeypatch.setattr(write, "finish", finish)
    claims = desk.claim(5)
    for claim in claims[:4]:
        settle(desk, flusher, claim)
    assert desk.held.finish(claims[4])
    flusher.put(claims[4], failed(claims[4].job.id, claims[4].token))

    wait_until(lambda: not desk.held.settling)
    assert desk.states() == ["completed"] * 4 + ["retrying"]
    assert desk.counters.snapshot().get("fenced", 0) == 0
    assert desk.rows("SELECT count(*) FROM switchyard.attempt") == [(1,)]


@pytest.mark.parametrize("error", [psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure])
def test_a_deadlock_is_repeated(desk, flusher, monkeypatch, error):
    real, failures = write.finish, [error("victim"), error("victim")]

    def finish(connection, finishes):
        if failures:
            raise failures.pop()
        return real(connection, finishes)

    monkeypatch.setattr(write, "finish", finish)
    for claim in desk.claim(3):
        settle(desk, flusher, claim)

    wait_until(lambda: desk.states() == ["completed"] * 3)


def test_a_backend_that_is_killed_costs_nothing(desk, flusher):
    for round_ in range(3):
        for claim in desk.claim(20):
            settle(desk, flusher, claim)
        desk.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard flusher'")
        wait_until(lambda round_=round_: desk.states() == ["completed"] * 20 * (round_ + 1), 30)
    assert desk.counters.snapshot().get("fenced", 0) == 0


def test_the_end_of_a_claim_that_was_lost_is_refused_and_counted(desk, flusher):
    ours, theirs = desk.claim(2)
    desk.rows("UPDATE switchyard.job SET token = gen_random_uuid(), worker = 'other' WHERE id = %s RETURNING 1", theirs.job.id)

    settle(desk, flusher, theirs, result='"late"')
    settle(desk, flusher, ours)

    wait_until(lambda: not desk.held.settling)
    assert desk.states() == ["completed", "running"]
    assert desk.counters.snapshot()["fenced"] == 1


def test_threads_wait_when_too_much_is_held_and_go_on_when_postgres_is_back(desk, flusher, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    away = threading.Event()
    real = write.finish

    def finish(connection, finishes):
        if not away.is_set():
            raise psycopg.OperationalError("away")
        return real(connection, finishes)

    monkeypatch.setattr(write, "finish", finish)
    claims = desk.claim(12)
    thread = threading.Thread(target=lambda: [settle(desk, flusher, claim) for claim in claims])
    thread.start()
    wait_until(lambda: len(desk.held.settling) == 6)

    thread.join(0.3)
    assert thread.is_alive()
    assert len(desk.held.settling) == 6
    away.set()

    thread.join(30)
    wait_until(lambda: desk.states() == ["completed"] * 12)


def test_stopping_writes_what_is_left_and_gives_up_in_time(desk, monkeypatch):
    flusher = Flusher(desk.database, desk.held, desk.counters)
    flusher.start()
    for claim in desk.claim(50):
        settle(desk, flusher, claim)
    assert flusher.stop(60.0)
    assert desk.states() == ["completed"] * 50

    def away(connection, finishes):
        raise psycopg.OperationalError("away")

    late = Flusher(desk.database, desk.held, desk.counters)
    late.start()
    monkeypatch.setattr(write, "finish", away)
    (claim,) = desk.claim(1)
    settle(desk, late, claim)
    late.stop(0.2)
    assert not late.alive
    assert desk.counters.snapshot()["results_given_up"] == 1
