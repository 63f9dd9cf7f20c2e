"""Retention meets a replay: it keeps the whole of what the replay relies on, or the replay is refused; whoever comes first.

Retention looks, holds what may go, and looks again. ``between`` has something happen after the first look; ``after_the_hold`` starts a call
there which provably waits for what is held.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from keeper import retention
from ledger import batches, control, dead
from ledger.batch import get_batch
from ledger.batches import was_pruned
from ledger.states import State
from settings import Settings
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add_in, claim, fetch, name_of
from tests.ledger.workflow_rows import add_batch, add_members, add_step, end

LONG = 1_000


def days(ledger, count):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0] + timedelta(days=count)


def prune(ledger, day=LONG):
    return retention.prune(ledger, Settings(), now=days(ledger, day))[0]


def exist(ledger, *ids):
    return [
        id_ for (id_,) in ledger.execute("SELECT id FROM switchyard.job WHERE id = ANY(%s) ORDER BY id", [list(ids)]).fetchall()
    ]


def again(ledger, id_):
    return dead.replay(ledger, name_of(ledger, id_))


@pytest.fixture
def walk(database):
    """Retention's own connection."""
    with database.dedicated("walk") as connection:
        yield connection


@pytest.fixture
def between(monkeypatch):
    """Has a call made once, between the first look and the hold."""
    real = retention._hold

    def arrange(call):
        calls = [call]

        def hold(connection, found):
            while calls:
                calls.pop()()
            return real(connection, found)

        monkeypatch.setattr(retention, "_hold", hold)

    return arrange


@pytest.fixture
def after_the_hold(monkeypatch, database):
    """Has a call begun when all is held, on a connection of its own; it waits. What it came to is known after the walk."""
    real = retention._hold
    begun = []

    def arrange(call):
        def hold(connection, found):
            held = real(connection, found)
            other = database.dedicated("replay")
            begun.append((Meanwhile(lambda: call(other)), other))
            with database.dedicated("onlooker") as onlooker:
                wait_for_lock(onlooker, other.info.backend_pid)
            return held

        monkeypatch.setattr(retention, "_hold", hold)
        return lambda: begun[0][0].result()

    yield arrange
    for meanwhile, other in begun:
        meanwhile.result()
        other.close()


def failed_workflow(ledger):
    """A batch of which one job is dead and two are completed, and that is complete."""
    batch = add_batch(ledger, total=3, on_complete=None, on_death=None, on_success=None)
    done, lost, too = add_members(ledger, batch, 3)
    end(ledger, done, too)
    end(ledger, lost, state=State.DEAD)
    batches.close(ledger, [batch])
    return batch, done, lost, too


def cancelled_step(ledger, upstream):
    step = add_step(ledger, upstream)
    assert control.cancel(ledger, name_of(ledger, step)) is State.CANCELLED
    return step


def test_a_step_that_is_replayed_after_the_look_keeps_the_job_that_it_waits_for(ledger, walk, between):
    first = add_in(ledger, State.DEAD)
    step = cancelled_step(ledger, first)
    between(lambda: again(ledger, step))

    assert prune(walk) == 0

    assert exist(ledger, first, step) == [first, step]
    assert again(ledger, first)
    end(ledger, first, result="7")
    assert fetch(ledger, step, "payload")["args"] == [7]


def test_a_step_that_is_replayed_after_the_look_keeps_what_it_waits_for_from_afar(ledger, walk, between):
    first = add_in(ledger, State.DEAD)
    second = cancelled_step(ledger, first)
    third = cancelled_step(ledger, second)
    between(lambda: again(ledger, third))

    assert prune(walk) == 0
    assert exist(ledger, first, second, third) == [first, second, third]


def test_a_step_that_is_replayed_after_the_look_keeps_the_batch_that_it_waits_for(ledger, walk, between):
    batch, *members = failed_workflow(ledger)
    step = cancelled_step(ledger, batch)
    between(lambda: again(ledger, step))

    assert prune(walk) == 0

    assert exist(ledger, *members) == members
    assert not was_pruned(ledger, name_of(ledger, members[0]))


def test_a_job_of_a_batch_that_is_replayed_after_the_look_keeps_the_others(ledger, walk, between):
    batch, *members = failed_workflow(ledger)
    between(lambda: again(ledger, members[1]))

    assert prune(walk) == 0
    assert prune(walk) == 0

    assert exist(ledger, *members) == members
    end(ledger, members[1])
    batches.close(ledger, [batch])
    assert get_batch(ledger, batch).state == "succeeded"


def test_a_replay_that_is_not_committed_is_passed_by_with_its_whole_workflow(ledger, walk, database):
    _, *members = failed_workflow(ledger)
    other = add_in(ledger, State.DEAD)

    with database.dedicated("replay") as replaying, replaying.transaction():
        assert again(replaying, members[1])
        assert prune(walk) == 1

    assert exist(ledger, *members, other) == members


def test_a_step_that_comes_when_the_job_it_waits_for_is_held_is_refused(ledger, walk, after_the_hold, monkeypatch):
    monkeypatch.setattr(retention, "LIMIT", 1)
    first = add_in(ledger, State.DEAD)
    step = cancelled_step(ledger, first)
    answer = after_the_hold(lambda other: again(other, step))

    assert prune(walk) == 1

    assert answer() is False
    assert (fetch(ledger, step, "state"), fetch(ledger, step, "generation")) == ("cancelled", 1)


def test_a_step_is_refused_when_what_it_waits_for_from_afar_is_held(ledger, walk, after_the_hold, monkeypatch):
    monkeypatch.setattr(retention, "LIMIT", 1)
    first = add_in(ledger, State.DEAD)
    third = cancelled_step(ledger, cancelled_step(ledger, first))
    answer = after_the_hold(lambda other: again(other, third))

    assert prune(walk) == 1

    assert answer() is False
    assert fetch(ledger, third, "state") == "cancelled"


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_job_of_a_batch_that_comes_when_others_are_held_is_refused(ledger, walk, after_the_hold, monkeypatch, one_by_one):
    monkeypatch.setattr(retention, "LIMIT", 1)
    _, done, lost, too = failed_workflow(ledger)
    answer = after_the_hold(lambda other: again(other, lost) if one_by_one else dead.replay_rows(other, [lost]).replayed)

    assert prune(walk) == 1

    assert not answer()
    assert exist(ledger, done, lost, too) == [lost, too]
    assert (fetch(ledger, lost, "state"), fetch(ledger, lost, "generation")) == ("dead", 1)
    assert was_pruned(ledger, name_of(ledger, lost))


def test_what_is_left_of_a_workflow_is_not_replayed_and_goes(ledger, walk, monkeypatch):
    _, done, lost, too = failed_workflow(ledger)
    ledger.execute("UPDATE switchyard.job SET finished_at = finished_at + interval '2000 days' WHERE id = %s", [lost])
    assert prune(walk) == 2
    free = add_in(ledger, State.DEAD)

    assert not again(ledger, lost)
    # In bulk it stays behind alone.
    assert dead.replay_rows(ledger, [lost, free]).replayed == 1
    assert [fetch(ledger, id_, "state") for id_ in (lost, free)] == ["dead", "pending"]
    assert exist(ledger, done, too) == []

    assert prune(walk, 3_000) == 1
    assert exist(ledger, lost) == []


def test_a_job_of_an_inner_batch_is_not_replayed_when_one_of_another_was_removed(ledger, walk):
    outer = add_batch(ledger, total=0, on_complete=None, on_death=None)
    inner = [add_batch(ledger, total=1, parent_id=outer, root_id=outer, on_complete=None, on_death=None) for _ in range(2)]
    (lost,), (too,) = (add_members(ledger, batch) for batch in inner)
    end(ledger, lost, too, state=State.DEAD)
    batches.close(ledger, inner)
    ledger.execute("UPDATE switchyard.job SET finished_at = finished_at + interval '2000 days' WHERE id = %s", [too])

    assert prune(walk) == 1

    assert exist(ledger, lost, too) == [too]
    assert not again(ledger, too)


def test_a_job_of_a_batch_is_replayed_as_before_when_another_was_discarded(ledger):
    _, _, lost, _ = failed_workflow(ledger)
    batch = str(fetch(ledger, lost, "batch_id"))
    (more,) = add_members(ledger, batch)
    end(ledger, more, state=State.DEAD)
    assert dead.discard(ledger, name_of(ledger, more))

    assert again(ledger, lost)


def test_an_inner_batch_that_succeeded_is_kept_while_a_job_beside_it_runs_again(ledger, walk):
    outer = add_batch(ledger, total=0, on_complete=None, on_death=None, on_success=None)
    inner = [
        add_batch(ledger, total=1, parent_id=outer, root_id=outer, on_complete=None, on_death=None, on_success=None)
        for _ in range(2)
    ]
    (done,), (lost,) = (add_members(ledger, batch) for batch in inner)
    end(ledger, done)
    end(ledger, lost, state=State.DEAD)
    batches.close(ledger, inner)
    assert again(ledger, lost)
    claim(ledger, lost)

    assert prune(walk) == 0

    assert exist(ledger, done, lost) == [done, lost]


def test_steps_in_bulk_whose_job_was_removed_stay_dead_and_the_others_go(ledger):
    first, other = add_in(ledger, State.DEAD), add_in(ledger, State.DEAD)
    stranded = add_step(ledger, first)
    dies = "UPDATE switchyard.job SET state = 'dead', dead_reason = 'x', finished_at = clock_timestamp(), wait_reason = NULL WHERE id = %s"
    ledger.execute(dies, [stranded])
    assert dead.discard(ledger, name_of(ledger, first))

    assert dead.replay_rows(ledger, [stranded, other]).replayed == 1

    assert [fetch(ledger, id_, "state") for id_ in (stranded, other)] == ["dead", "pending"]
