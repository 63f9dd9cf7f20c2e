"""The ways out of running: guarded by the token, repeated without harm, and recorded in the history."""

from __future__ import annotations

import psycopg
import pytest

from ledger import write
from ledger.records import Finish
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import (
    add,
    add_in,
    age_lease,
    claim,
    completed,
    failed,
    fetch,
    history,
    relay_due,
    released,
    row,
    token,
)


def outcome(id_, by, state, outcome_, **fields):
    return failed(id_, by, state=state, outcome=outcome_, **fields)


def test_a_job_that_ended_well_is_completed_with_its_result(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)

    assert write.finish(ledger, [completed(id_, by, '{"a": [1, null]}')]) == {id_}

    stored = row(ledger, id_)
    assert (stored["state"], stored["result"]) == ("completed", {"a": [1, None]})
    assert (stored["token"], str(stored["last_token"])) == (None, by)
    assert 0.4 < (stored["finished_at"] - stored["started_at"]).total_seconds() < 1
    assert history(ledger, id_) == []


def test_a_failure_waits_for_its_retry(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)

    assert write.finish(ledger, [failed(id_, by, delay=100.0)]) == {id_}

    stored = row(ledger, id_)
    assert (stored["state"], stored["failures"], stored["attempt"], stored["error_type"]) == ("retrying", 1, 1, "ValueError")
    assert abs((stored["next_publish_at"] - stored["run_at"]).total_seconds()) < 0.1
    assert 95 < write.next_due(ledger) <= 100
    assert history(ledger, id_) == [(1, 1, "failed")]


def test_the_last_failure_is_a_dead_letter(ledger):
    id_ = add_in(ledger, State.DEAD)

    stored = row(ledger, id_)
    assert (stored["dead_reason"], stored["error"], stored["next_publish_at"]) == ("max_retries", "no", None)
    assert stored["finished_at"] is not None
    assert history(ledger, id_) == [(1, 1, "failed")]


def test_a_success_after_failures_keeps_them_in_the_history_alone(ledger):
    id_ = add(ledger)
    write.finish(ledger, [failed(id_, claim(ledger, id_), delay=0.0)])
    relay_due(ledger)
    by = claim(ledger, id_)

    write.finish(ledger, [completed(id_, by)])

    stored = row(ledger, id_)
    assert (stored["attempt"], stored["failures"], stored["error"], stored["error_type"]) == (2, 1, None, None)
    assert history(ledger, id_) == [(1, 1, "failed")]


@pytest.mark.parametrize(
    ("state", "how", "counted"),
    [
        (State.PENDING, "released", 0),
        (State.SCHEDULED, "snoozed", 0),
        (State.CANCELLED, "cancelled", 0),
        (State.RETRYING, "failed", 1),
    ],
)
def test_only_a_failure_counts_as_one(ledger, state, how, counted):
    id_ = add(ledger)
    by = claim(ledger, id_)

    write.finish(ledger, [outcome(id_, by, state, how)])

    stored = row(ledger, id_)
    assert (stored["state"], stored["failures"], stored["lost"]) == (state, counted, 0)
    assert history(ledger, id_) == [(1, 1, how)]


def test_a_batch_of_every_kind_is_one_commit(ledger):
    ids = [add(ledger) for _ in range(5)]
    by = claim(ledger, *ids)
    ends = [
        failed(ids[4], by),
        completed(ids[0], by),
        outcome(ids[1], by, State.DEAD, "failed", dead_reason="permanent"),
        released(ids[2], by),
        outcome(ids[3], by, State.CANCELLED, "cancelled"),
    ]

    assert write.finish(ledger, ends) == set(ids)

    assert [fetch(ledger, id_, "state") for id_ in ids] == ["completed", "dead", "pending", "cancelled", "retrying"]


def test_a_batch_with_one_row_that_cannot_be_stored_writes_nothing(ledger):
    good, bad = add(ledger), add(ledger)
    by = claim(ledger, good, bad)

    with pytest.raises(psycopg.DataError):
        write.finish(ledger, [completed(good, by), completed(bad, by, "no json")])
    with pytest.raises(psycopg.DataError):
        write.finish(ledger, [completed(good, by), failed(bad, by, error="\x00")])

    assert fetch(ledger, good, "state") == fetch(ledger, bad, "state") == "running"


def test_an_end_without_its_outcome_is_refused(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)
    end = Finish(id=id_, token=by, state=State.CANCELLED, started=0.0, finished=0.0)

    with pytest.raises(psycopg.errors.NotNullViolation):
        write.finish(ledger, [end])

    assert fetch(ledger, id_, "state") == "running"


ENDS = [
    pytest.param(completed, id="completed"),
    pytest.param(failed, id="retrying"),
    pytest.param(lambda id_, by: failed(id_, by, state=State.DEAD), id="dead"),
    pytest.param(released, id="released"),
]


@pytest.mark.parametrize("end", ENDS)
def test_a_wrong_token_writes_nothing(ledger, end):
    id_ = add(ledger)
    claim(ledger, id_)
    before = row(ledger, id_)

    assert write.finish(ledger, [end(id_, token())]) == set()

    assert row(ledger, id_) == before
    assert history(ledger, id_) == []


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("state", [state for state in State if state is not State.RUNNING])
def test_what_does_not_run_cannot_be_finished(ledger, state, end):
    id_ = add_in(ledger, state)
    before, past = row(ledger, id_), history(ledger, id_)
    by = str(before["last_token"] or token())

    assert write.finish(ledger, [end(id_, by)]) == set()

    assert row(ledger, id_) == before
    assert history(ledger, id_) == past


@pytest.mark.parametrize("end", ENDS)
def test_race_7_a_commit_whose_reply_was_lost_is_recognised(ledger, end):
    id_ = add(ledger)
    entry = end(id_, claim(ledger, id_))
    write.finish(ledger, [entry])
    before, past = row(ledger, id_), history(ledger, id_)

    assert write.finish(ledger, [entry]) == set()
    assert write.own_commits(ledger, [entry]) == {id_}
    assert row(ledger, id_) == before
    assert history(ledger, id_) == past


def test_race_7_a_repeated_retry_does_not_touch_the_next_attempt(ledger):
    id_ = add(ledger)
    entry = failed(id_, claim(ledger, id_), delay=0.0)
    write.finish(ledger, [entry])
    relay_due(ledger)
    claim(ledger, id_, holder="w2")
    before = row(ledger, id_)

    assert write.finish(ledger, [entry]) == set()
    assert write.own_commits(ledger, [entry]) == {id_}
    assert row(ledger, id_) == before


def test_race_7_a_rescued_claim_is_no_commit_of_its_holder(ledger):
    id_ = add(ledger)
    entry = completed(id_, claim(ledger, id_, holder="gone"))
    age_lease(ledger, id_)
    assert write.rescue_worker(ledger, "gone", alive=False, max_lost=3)

    assert write.finish(ledger, [entry]) == set()
    assert write.own_commits(ledger, [entry]) == set()


def test_race_6_a_late_finish_is_accepted_while_nobody_rescued(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_, lease=-60.0)

    assert write.finish(ledger, [completed(id_, by)]) == {id_}


def test_race_6_finish_first_then_rescue(ledger, connect):
    id_ = add(ledger)
    by = claim(ledger, id_, lease=-60.0)
    rescuer = connect()
    ledger.execute("BEGIN")
    write.finish(ledger, [completed(id_, by)])

    assert write.rescue_worker(rescuer, "w1", alive=False, max_lost=3) == []

    ledger.execute("COMMIT")
    assert write.rescue_worker(rescuer, "w1", alive=False, max_lost=3) == []
    assert (fetch(ledger, id_, "state"), fetch(ledger, id_, "lost"), history(ledger, id_)) == ("completed", 0, [])


def test_race_6_rescue_first_then_finish(ledger, connect):
    id_ = add(ledger)
    by = claim(ledger, id_, lease=-60.0)
    rescuer = connect()
    rescuer.execute("BEGIN")
    assert write.rescue_worker(rescuer, "w1", alive=False, max_lost=3)
    meanwhile = Meanwhile(lambda: write.finish(ledger, [completed(id_, by)]))
    wait_for_lock(connect(), ledger.info.backend_pid)

    rescuer.execute("COMMIT")

    assert meanwhile.result() == set()
    assert (fetch(ledger, id_, "state"), fetch(ledger, id_, "result")) == ("pending", None)
    assert history(ledger, id_) == [(1, 1, "lost")]


def test_race_6_heartbeat_first_then_rescue(ledger, connect):
    id_ = add(ledger)
    by = claim(ledger, id_, lease=-60.0)
    rescuer = connect()
    ledger.execute("BEGIN")
    assert write.extend_leases(ledger, [(id_, by, None)], 30.0) == {id_}

    assert write.rescue_worker(rescuer, "w1", alive=False, max_lost=3) == []

    ledger.execute("COMMIT")
    assert write.rescue_worker(rescuer, "w1", alive=False, max_lost=3) == []
    assert str(fetch(ledger, id_, "token")) == by


def test_race_6_rescue_first_then_heartbeat(ledger, connect):
    id_ = add(ledger)
    by = claim(ledger, id_, lease=-60.0)
    rescuer = connect()
    rescuer.execute("BEGIN")
    assert write.rescue_worker(rescuer, "w1", alive=False, max_lost=3)

    # The row is locked and the rescue may still be rolled back: until it commits, the claim is ours.
    assert write.extend_leases(ledger, [(id_, by, None)], 30.0) == {id_}
    rescuer.execute("COMMIT")
    assert write.extend_leases(ledger, [(id_, by, None)], 30.0) == set()
    assert fetch(ledger, id_, "state") == "pending"


def test_a_worker_back_from_the_dead_cannot_overwrite_the_newer_result(ledger):
    id_ = add(ledger)
    zombie = completed(id_, claim(ledger, id_, holder="zombie"), '"old"')
    age_lease(ledger, id_)
    write.rescue_worker(ledger, "zombie", alive=False, max_lost=3)
    newer = claim(ledger, id_, holder="w2", suspects=True)

    assert write.finish(ledger, [zombie]) == set()
    write.finish(ledger, [completed(id_, newer, '"new"')])
    assert write.finish(ledger, [zombie]) == set()

    assert fetch(ledger, id_, "result") == "new"


def test_a_mixed_batch_locks_its_rows_in_one_order_too(ledger, connect):
    fails, ends = add(ledger), add(ledger)
    by = claim(ledger, fails, ends)
    other, third = connect(), connect()
    ledger.execute("BEGIN")
    ledger.execute("SELECT 1 FROM switchyard.job WHERE id = %s FOR UPDATE", [fails])

    meanwhile = Meanwhile(lambda: write.finish(other, [completed(ends, by), failed(fails, by, delay=1.0)]))
    wait_for_lock(connect(), other.info.backend_pid)
    free = third.execute("SELECT id FROM switchyard.job ORDER BY id FOR UPDATE SKIP LOCKED").fetchall()
    ledger.execute("COMMIT")

    # It waits for the first of its rows, so it does not hold the second one yet.
    assert free == [(ends,)]
    assert meanwhile.result() == {fails, ends}
