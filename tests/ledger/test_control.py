"""Cancelling, pausing and editing in the ledger: each statement, from each state."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from ledger import control, read, rekeying, write
from ledger.control import CancelCount, Change
from ledger.records import JobControl, NewJob
from ledger.states import ACTIVE, TERMINAL, WAITING, State
from tests.ledger.factory import (
    add,
    add_in,
    age_lease,
    claim,
    claim_next,
    completed,
    failed,
    fetch,
    history,
    new_job,
    relay_due,
    released,
    row,
)


def name_of(ledger, id_):
    return str(fetch(ledger, id_, "message_id"))


@pytest.mark.parametrize("state", State)
def test_cancelling_ends_what_waits_asks_what_runs_and_leaves_what_has_ended(ledger, state):
    id_ = add_in(ledger, state)
    before = row(ledger, id_)

    after = control.cancel(ledger, name_of(ledger, id_))

    stored = row(ledger, id_)
    if state in TERMINAL:
        assert (after, stored) == (None, before)
    elif state is State.RUNNING:
        assert (after, stored["state"], stored["finished_at"]) == (State.RUNNING, "running", None)
        assert stored["cancel_requested_at"] is not None
        assert control.cancel(ledger, name_of(ledger, id_)) is State.RUNNING
        assert fetch(ledger, id_, "cancel_requested_at") == stored["cancel_requested_at"]
    else:
        assert (after, stored["state"], stored["next_publish_at"]) == (State.CANCELLED, "cancelled", None)
        assert stored["finished_at"] is not None
        assert stored["cancel_requested_at"] is None


@pytest.mark.parametrize("how", ["retry", "dead", "snooze", "release", "unstarted", "rescue", "guilty"])
def test_a_job_that_was_asked_to_stop_ends_in_cancelled_whatever_becomes_of_it(ledger, how):
    id_ = add(ledger)
    by = claim(ledger, id_)
    control.cancel(ledger, name_of(ledger, id_))

    if how == "unstarted":
        assert write.release_unstarted(ledger, [(id_, by)]) == {id_}
    elif how in ("rescue", "guilty"):
        if how == "guilty":
            write.record_start(ledger, id_, by, 30.0)
        age_lease(ledger, id_)
        (rescued,) = write.rescue_worker(ledger, "w1", alive=how == "guilty", max_lost=1)
        assert (rescued.state, rescued.guilty) == (State.CANCELLED, how == "guilty")
    else:
        ends = {
            "retry": failed(id_, by),
            "dead": failed(id_, by, state=State.DEAD),
            "snooze": failed(id_, by, state=State.SCHEDULED, outcome="snoozed"),
            "release": released(id_, by),
        }
        assert write.finish(ledger, [ends[how]]) == {id_}

    stored = row(ledger, id_)
    assert (stored["state"], stored["next_publish_at"], stored["dead_reason"], stored["failures"]) == ("cancelled", None, None, 0)
    assert stored["finished_at"] is not None
    outcome = {"unstarted": [], "rescue": [(1, 1, "lost")], "guilty": [(1, 1, "lost")]}.get(how, [(1, 1, "cancelled")])
    assert history(ledger, id_) == outcome
    assert fetch(ledger, id_, "attempt") == (0 if how == "unstarted" else 1)


def test_success_is_success_and_a_replay_forgets_the_request(ledger):
    done, again = add(ledger), add(ledger)
    by = claim(ledger, done, again)
    for id_ in (done, again):
        control.cancel(ledger, name_of(ledger, id_))

    assert write.finish(ledger, [completed(done, by), failed(again, by)]) == {done, again}

    assert (fetch(ledger, done, "state"), fetch(ledger, again, "state")) == ("completed", "cancelled")
    assert write.replay(ledger, name_of(ledger, again))
    by = claim(ledger, again)
    write.finish(ledger, [failed(again, by)])
    assert fetch(ledger, again, "state") == "retrying"


def test_what_was_to_follow_a_failure_does_not_follow_a_cancellation(ledger):
    kept, cancelled = add(ledger), add(ledger)
    by = claim(ledger, kept, cancelled)
    control.cancel(ledger, name_of(ledger, cancelled))
    followers: dict[int, NewJob] = {kept: new_job(), cancelled: new_job()}

    write.finish(ledger, [failed(id_, by, children=[follower]) for id_, follower in followers.items()])

    assert read.get_job(ledger, followers[kept].message_id) is not None
    assert read.get_job(ledger, followers[cancelled].message_id) is None


def test_many_rows_are_cancelled_by_their_ids_if_they_are_still_in_these_states(ledger):
    ids = {state: add_in(ledger, state) for state in State}
    wanted = list(ids.values())

    assert control.cancel_rows(ledger, wanted, [State.PENDING, State.RUNNING]) == CancelCount(cancelled=1, asked=1)
    assert control.cancel_rows(ledger, wanted, list(State)) == CancelCount(cancelled=2, asked=1)
    assert control.cancel_rows(ledger, wanted, list(State)).total == 1

    ended = {state for state, id_ in ids.items() if fetch(ledger, id_, "state") != state}
    assert ended == WAITING


def test_orders_name_the_claims_of_one_worker_that_are_to_stop(ledger):
    ids = [add(ledger) for _ in range(3)]
    claim(ledger, *ids[:2], holder="me")
    claim(ledger, ids[2], holder="other")
    for id_ in (ids[0], ids[2]):
        control.cancel(ledger, name_of(ledger, id_))
    control.pause(ledger, "mail", "*")

    assert control.orders(ledger, "me", ids) == (frozenset({ids[0]}), (("mail", "*"),))


@pytest.mark.parametrize(
    ("queue", "actor", "rests"),
    [("*", "*", "abc"), ("default", "*", "ab"), ("*", "work", "ac"), ("default", "work", "a"), ("nothing", "*", "")],
)
def test_no_claim_takes_what_is_paused(ledger, queue, actor, rests):
    ids = {"a": add(ledger), "b": add(ledger, actor="other"), "c": add(ledger, queue="mail")}
    assert control.pause(ledger, queue, actor)
    assert not control.pause(ledger, queue, actor)
    everyone = {"actors": ["work", "other"], "worker": "w", "token": str(uuid4()), "lease": 30.0}

    ready = {name for name, _ in write.ready_queues(ledger, ["default", "mail"], ["work", "other"])}
    assert {name for name, why in write.why_not_claimed(ledger, list(ids.values())).items() if why.paused} == {
        ids[letter] for letter in rests
    }
    taken = {job.id for name in ("default", "mail") for job in claim_next(ledger, 9, queue=name, actors=["work", "other"])}
    assert taken == {id_ for letter, id_ in ids.items() if letter not in rests}
    assert ready == {fetch(ledger, id_, "queue") for id_ in taken}
    assert write.claim_by_id(ledger, list(ids.values()), **everyone) == []

    assert control.resume(ledger, queue, actor)
    assert {job.id for job in write.claim_by_id(ledger, list(ids.values()), **everyone)} == {ids[letter] for letter in rests}


def test_a_paused_suspect_is_claimed_by_nobody(ledger):
    id_ = add(ledger)
    claim(ledger, id_)
    age_lease(ledger, id_)
    write.rescue_worker(ledger, "w1", alive=False, max_lost=3)
    assert fetch(ledger, id_, "suspect")
    control.pause(ledger, "default", "*")

    assert claim_next(ledger, suspects=True) == []
    assert relay_due(ledger)[0].parked
    assert control.resume(ledger, "default", "*")
    assert control.unpark(ledger) == 1
    assert [job.id for job in claim_next(ledger, suspects=True)] == [id_]


def test_what_is_parked_is_counted_and_listed_once(ledger):
    ids = [add(ledger), add(ledger, broker="redis", grace=30.0)]
    control.pause(ledger, "default", "*")
    control.park_rows(ledger, ids)
    waiting = add(ledger, queue="other")

    assert read.counts(ledger).by_queue()["default"][State.PENDING] == 2
    assert [(depth.queue, depth.pending) for depth in read.queue_depths(ledger)] == [("default", 2), ("other", 1)]
    assert len(read.list_jobs(ledger, state="pending").jobs) == 3
    assert {job.wait_reason for job in read.list_jobs(ledger, state="pending", queue="default").jobs} == {"paused"}
    assert {id_ for id_, _ in read.matching(ledger, states=ACTIVE)} == {*ids, waiting}
    (pause,) = control.pauses(ledger)
    assert (pause.what, pause.waiting) == ("queue default", 2)


@pytest.mark.parametrize("state", State)
def test_editing_changes_what_waits_and_nothing_else(ledger, state):
    id_ = add_in(ledger, state)
    before = row(ledger, id_)

    locked = rekeying.lock_waiting(ledger, name_of(ledger, id_))
    done = control.edit(ledger, id_, Change(priority=7, payload='{"args": [1], "kwargs": {}}', tags=["x"]))

    assert (done, locked is not None) == (state in WAITING, state in WAITING)
    if done:
        stored = row(ledger, id_)
        assert (stored["priority"], stored["payload"], stored["tags"]) == (7, {"args": [1], "kwargs": {}}, ["x"])
        assert (stored["state"], stored["run_at"]) == (before["state"], before["run_at"])
        assert control.edit(ledger, id_, Change(tags=[]))
        assert fetch(ledger, id_, "tags") is None
    else:
        assert row(ledger, id_) == before


def test_a_published_trigger_is_published_again_with_its_new_priority_and_a_waiting_one_when_it_is_due(ledger):
    sent, later, kept = add(ledger, broker="redis", grace=30.0), add(ledger, broker="redis", delay=60.0), add(ledger)

    for id_ in (sent, later, kept):
        assert control.edit(ledger, id_, Change(priority=-5))

    assert [(job.id, job.priority) for job in relay_due(ledger, "redis")] == [(sent, -5)]
    assert control.edit(ledger, sent, Change(priority=-5))
    assert relay_due(ledger, "redis") == []
    assert fetch(ledger, kept, "next_publish_at") is None


@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_a_new_time_counts_for_what_waits_for_a_time_or_a_worker(ledger, broker):
    grace = None if broker == "postgres" else 30.0
    pending, scheduled = add(ledger, broker=broker, grace=grace), add(ledger, broker=broker, delay=3_600.0)
    paused = add(ledger, broker=broker, grace=grace, queue="resting")
    control.pause(ledger, "resting", "*")
    control.park_rows(ledger, [paused])

    for id_ in (pending, scheduled, paused):
        assert control.edit(ledger, id_, Change(delay=60.0))
        stored = row(ledger, id_)
        assert (stored["state"], stored["wait_reason"]) == ("scheduled", None)
        assert abs(stored["run_at"] - stored["next_publish_at"]) < timedelta(seconds=1)
    assert relay_due(ledger, broker) == []
    for id_ in (pending, scheduled, paused):
        assert control.edit(ledger, id_, Change(delay=0.0))
    assert {(job.id, job.parked) for job in relay_due(ledger, broker)} == {(pending, False), (scheduled, False), (paused, True)}


def test_what_waits_for_something_else_than_a_time_is_given_none(ledger):
    id_ = add(ledger, delay=60.0)
    ledger.execute(
        "UPDATE switchyard.job SET wait_reason = 'upstream', next_publish_at = NULL, run_at = 'infinity' WHERE id = %s", [id_]
    )

    assert not control.edit(ledger, id_, Change(delay=0.0))
    assert control.edit(ledger, id_, Change(priority=1))

    stored = ledger.execute("SELECT priority, next_publish_at, wait_reason, run_at = 'infinity' FROM switchyard.job").fetchone()
    assert stored == (1, None, "upstream", True)


@pytest.mark.parametrize("how", ["many", "release", "rescue"])
def test_steps_that_wait_for_a_job_are_cancelled_with_it(ledger, how):
    first, second = new_job(), new_job()
    id_ = write.enqueue(ledger, first).id
    step = new_job(control=JobControl(upstream_id=first.message_id, wait_reason="upstream"))
    last = new_job(control=JobControl(upstream_id=step.message_id, wait_reason="upstream"))
    write.enqueue_many(ledger, [second, step, last])

    if how == "many":
        assert control.cancel_rows(ledger, [id_], list(ACTIVE)) == CancelCount(cancelled=3, asked=0)
    else:
        by = claim(ledger, id_)
        control.cancel(ledger, first.message_id)
        if how == "release":
            write.release_unstarted(ledger, [(id_, by)])
        else:
            age_lease(ledger, id_)
            write.rescue_worker(ledger, "w1", alive=False, max_lost=3)

    states = dict(ledger.execute("SELECT message_id::text, state FROM switchyard.job").fetchall())
    assert states == {
        first.message_id: "cancelled", step.message_id: "cancelled", last.message_id: "cancelled", second.message_id: "pending",
    }  # fmt: skip
