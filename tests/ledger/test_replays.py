"""Replays: of one and of many, at a pace, against rivals, of keys that are in use, and of steps."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from ledger import batches, control, dead, rekeying, write
from ledger.dead import DeadFilter
from ledger.records import JobControl, NewBatch
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import (
    add,
    add_in,
    claim,
    completed,
    die,
    failed,
    fetch,
    name_of,
    new_job,
    relay_due,
    row,
)
from tests.rig.waiting import wait_until

EVERYTHING = DeadFilter()


def test_a_replay_resets_what_belongs_to_the_generation_before(ledger):
    id_ = die(ledger)
    ledger.execute(
        "UPDATE switchyard.job SET cancel_requested_at = now(), reserved_at = now(), reserved_version = 1, blocked_on = 'k', line = 1.5"
    )

    job = rekeying.lock_ended(ledger, name_of(ledger, id_))
    changed = {"payload": '{"args": [1], "kwargs": {}}', "keys": None, "period": None}
    assert dead.replay_changed(ledger, job, name_of(ledger, id_), queue="other", **changed)

    stored = row(ledger, id_)
    assert (stored["queue"], stored["payload"], stored["generation"]) == ("other", {"args": [1], "kwargs": {}}, 2)
    reset = ("cancel_requested_at", "reserved_at", "reserved_version", "blocked_on", "line", "fingerprint", "dead_reason")
    assert [stored[name] for name in reset] == [None] * len(reset)


def dead_ids(ledger, count):
    """So many dead rows, quickly, in the order in which they died."""
    write.enqueue_many(ledger, [new_job(max_age=60_000.0) for _ in range(count)])
    ledger.execute(
        "UPDATE switchyard.job SET state = 'dead', dead_reason = 'x', next_publish_at = NULL,"
        " finished_at = clock_timestamp() - make_interval(secs => 1 + (SELECT max(id) FROM switchyard.job) - id) WHERE state = 'pending'"
    )
    return [
        row[0] for row in ledger.execute("SELECT id FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at").fetchall()
    ]


@pytest.mark.parametrize("size", [10_000, 300])
def test_a_thousand_at_500_a_second_are_due_in_two_seconds_whatever_the_chunks(ledger, size):
    ids = dead_ids(ledger, 1_000)
    replayed, base = 0, None
    for chunk in dead.chunks(ledger, EVERYTHING, size=size):
        done = dead.replay_rows(ledger, chunk, interval=1 / 500, ahead=replayed / 500, base=base)
        replayed, base = replayed + done.replayed, done.base

    due = ledger.execute("SELECT id, run_at, next_publish_at, expires_at, state FROM switchyard.job ORDER BY run_at").fetchall()
    assert [row[0] for row in due] == ids
    assert {after[1] - before[1] for before, after in pairwise(due)} == {timedelta(milliseconds=2)}
    assert (replayed, done.last_due, due[0][1]) == (1_000, due[-1][1], base)
    assert all(row[1] == row[2] and row[3] == row[1] + timedelta(minutes=1) for row in due)
    assert [row[4] for row in due] == ["pending"] + ["scheduled"] * 999
    # The relay hands out what is due and nothing else: 500 in the first second, and the first one of the next.
    half = relay_due(ledger, now=base + timedelta(seconds=1), limit=2_000)
    assert {job.id for job in half} == set(ids[:501])
    assert len(relay_due(ledger, now=done.last_due, limit=2_000)) == 499


@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_what_waits_for_its_turn_is_not_claimed_before_by_any_trigger(ledger, broker):
    ids = dead_ids(ledger, 3)
    ledger.execute("UPDATE switchyard.job SET broker = %s", [broker])
    dead.replay_rows(ledger, ids, interval=60.0)

    by_id = write.claim_by_id(ledger, ids, actors=["work"], worker="w", token=name_of(ledger, ids[0]), lease=30.0)
    by_queue = write.claim_next(ledger, "default", 10, actors=["work"], worker="w", token=name_of(ledger, ids[1]), lease=30.0)

    assert [job.id for job in by_id + by_queue] == ids[:1]


def test_a_limit_and_a_filter_bound_a_replay(ledger):
    ids = dead_ids(ledger, 7)

    found = list(dead.chunks(ledger, EVERYTHING, size=3, limit=5))

    assert found == [ids[:3], ids[3:5]]
    assert list(dead.chunks(ledger, DeadFilter(actor="nobody"), size=3)) == []


def test_what_dies_again_while_the_others_are_replayed_is_not_replayed_again(ledger):
    ids = [die(ledger) for _ in range(3)]
    met = []

    for chunk in dead.chunks(ledger, EVERYTHING, size=1):
        met += chunk
        dead.replay_rows(ledger, chunk)
        by = claim(ledger, *chunk)
        write.finish(ledger, [failed(id_, by, state=State.DEAD) for id_ in chunk])
        assert len(met) <= 3

    assert met == ids


def test_rows_that_were_replayed_meanwhile_are_left_alone(ledger):
    ids = dead_ids(ledger, 3)
    write.replay(ledger, name_of(ledger, ids[1]))
    before = row(ledger, ids[1])

    assert dead.replay_rows(ledger, ids).replayed == 2

    assert row(ledger, ids[1]) == before
    assert dead.replay_rows(ledger, ids) == (0, None, None)


@pytest.fixture
def keyed(ledger):
    """Dead jobs of one key, and a job that has it now."""
    return lambda key: add(ledger, control=JobControl(unique_key=key))


def finish_dead(ledger, id_):
    by = claim(ledger, id_)
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])
    return id_


def test_a_replay_whose_key_is_in_use_is_refused_with_the_holder(ledger, keyed):
    id_ = finish_dead(ledger, keyed("k"))
    holder = keyed("k")
    before = row(ledger, id_)

    with ledger.transaction():
        assert not dead.replay(ledger, name_of(ledger, id_))

    assert row(ledger, id_) == before
    assert dead.key_holder(ledger, name_of(ledger, id_)) == name_of(ledger, holder)
    by = claim(ledger, holder)
    write.finish(ledger, [completed(holder, by)])
    assert dead.key_holder(ledger, name_of(ledger, id_)) is None
    assert dead.replay(ledger, name_of(ledger, id_))


def test_of_many_with_one_key_the_first_is_replayed_and_none_whose_key_is_in_use(ledger, keyed):
    first, second = (finish_dead(ledger, keyed("a")) for _ in range(2))
    held = finish_dead(ledger, keyed("b"))
    keyed("b")
    free = finish_dead(ledger, add(ledger))

    done = dead.replay_rows(ledger, [first, second, held, free], interval=1.0)

    assert done.replayed == 2
    assert [fetch(ledger, id_, "state") for id_ in (first, second, held, free)] == ["pending", "dead", "dead", "scheduled"]


def test_a_key_that_is_taken_while_its_job_is_replayed_is_seen_at_the_next_look(ledger, keyed, connect):
    id_, other = finish_dead(ledger, keyed("k")), finish_dead(ledger, add(ledger))
    rival = connect()

    with rival.transaction():
        add_rival = new_job(control=JobControl(unique_key="k"))
        write.enqueue_many(rival, [add_rival])
        replay = Meanwhile(lambda: dead.replay_rows(ledger, [id_, other]))
        wait_for_lock(connect(), ledger.info.backend_pid)

    assert replay.result().replayed == 1
    assert [fetch(ledger, one, "state") for one in (id_, other)] == ["dead", "pending"]


def test_of_two_replays_at_once_one_does_it(ledger, connect):
    ids = dead_ids(ledger, 3)
    first, onlooker = connect(), connect()

    with first.transaction():
        assert dead.replay_rows(first, ids[:2]).replayed == 2
        # What another one has in hand is passed by in chunks, and waited for by itself.
        assert dead.replay_rows(ledger, ids).replayed == 1
        alone = Meanwhile(lambda: dead.replay(ledger, name_of(onlooker, ids[0])))
        wait_for_lock(onlooker, ledger.info.backend_pid)

    assert alone.result() is False
    assert {fetch(ledger, id_, "generation") for id_ in ids} == {2}


def test_a_replay_that_dies_before_its_commit_leaves_everything_dead(ledger, connect):
    ids = dead_ids(ledger, 3)
    before = [row(ledger, id_) for id_ in ids]
    caller = connect()

    caller.execute("BEGIN")
    assert dead.replay_rows(caller, ids, interval=1.0).replayed == 3
    backend = caller.info.backend_pid
    caller.close()
    # Its locks go with it, a moment later.
    wait_until(lambda: not ledger.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]).fetchall())

    assert [row(ledger, id_) for id_ in ids] == before
    assert dead.replay_rows(ledger, ids, interval=1.0).replayed == 3


def step_after(ledger, upstream):
    """A step that waits for a job's completion."""
    control = JobControl(upstream_id=name_of(ledger, upstream), wait_reason="upstream")
    return add(ledger, control=control, options='{"piped": true}')


def test_a_throttled_replay_of_a_step_that_never_began_waits_for_what_it_waited_for(ledger):
    first = add_in(ledger, State.DEAD)
    second = step_after(ledger, first)
    dies = "UPDATE switchyard.job SET state = 'dead', dead_reason = 'x', finished_at = clock_timestamp(), wait_reason = NULL WHERE id = %s"
    ledger.execute(dies, [second])

    assert dead.replay_rows(ledger, [first, second], interval=1.0).replayed == 2

    assert (fetch(ledger, second, "state"), fetch(ledger, second, "wait_reason")) == ("scheduled", "upstream")
    assert fetch(ledger, second, "next_publish_at") is None
    ending = completed(first, claim(ledger, first))
    ending.upstream, ending.handed = name_of(ledger, first), "7"
    write.finish(ledger, [ending])
    assert (fetch(ledger, second, "state"), fetch(ledger, second, "payload")["args"]) == ("pending", [7])


def test_a_step_is_not_replayed_to_wait_for_a_job_that_was_removed(ledger):
    first = add_in(ledger, State.DEAD)
    step = step_after(ledger, first)
    dead.discard(ledger, name_of(ledger, first))

    assert not dead.replay(ledger, name_of(ledger, step))

    assert [fetch(ledger, step, name) for name in ("state", "generation", "wait_reason")] == ["cancelled", 1, None]


def test_a_step_is_not_replayed_to_wait_for_a_group_that_lost_a_job(ledger):
    outer, inner = str(uuid4()), str(uuid4())
    whole = [NewBatch(id=outer, root_id=outer, followed=True), NewBatch(id=inner, root_id=outer, parent_id=outer, total=1)]
    batches.make(ledger, whole)
    member = add(ledger, control=JobControl(batch_id=inner))
    step = add(ledger, control=JobControl(upstream_id=outer, wait_reason="upstream"))
    for id_ in (step, member):
        assert control.cancel(ledger, name_of(ledger, id_))
    assert dead.replay(ledger, name_of(ledger, step))
    assert fetch(ledger, step, "wait_reason") == "upstream"

    dead.discard(ledger, name_of(ledger, member))

    assert fetch(ledger, step, "state") == "cancelled"
    assert not dead.replay(ledger, name_of(ledger, step))
