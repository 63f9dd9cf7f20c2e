"""What could leave a batch open for ever: it never began, has no jobs, or they were all cancelled or removed; and two at once."""

from __future__ import annotations

import pytest

from errors import BatchClosed
from ledger import batches, control, dead
from ledger.batch import get_batch, list_batches
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add, add_in, fetch
from tests.ledger.workflow_rows import add_batch, add_members, add_step, callback, end, name_of, replay, sent


def cancel_all(ledger, first, ids):
    assert control.cancel(ledger, name_of(ledger, first)) is State.CANCELLED


def cancel_each(ledger, first, ids):
    assert [control.cancel(ledger, name_of(ledger, id_)) for id_ in ids] == [State.CANCELLED] * len(ids)


def cancel_by_filter(ledger, first, ids):
    assert control.cancel_rows(ledger, ids, list(State)).cancelled == len(ids)


def flush(ledger, first, ids):
    assert control.flush(ledger, ["default"]) == 1 + len(ids)


def discard_the_dead(ledger, first, ids):
    end(ledger, first, state=State.DEAD)
    assert dead.discard(ledger, name_of(ledger, first))


def stop_the_running(ledger, first, ids):
    end(ledger, first, state=State.CANCELLED)


WAYS = [cancel_all, cancel_each, cancel_by_filter, flush, discard_the_dead, stop_the_running]


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_never_began_ends_when_its_jobs_are_cancelled(ledger, way):
    first = add(ledger)
    name = name_of(ledger, first)
    batch = add_batch(ledger, total=2, waits_for=name)
    ids = [add_step(ledger, first, batch=batch) for _ in range(2)]
    assert not batches.close(ledger, [batch])

    way(ledger, first, ids)
    assert batches.close(ledger, [batch])

    assert not batches.close(ledger, [batch])
    found = get_batch(ledger, batch)
    assert (found.state, found.counts[State.CANCELLED], found.waits_for) == ("failed", 2, name)
    assert sent(ledger) == ["complete"]
    assert [b.id for b in list_batches(ledger, state="failed")] == [batch]
    assert list_batches(ledger, state="waiting") == []
    with pytest.raises(BatchClosed, match="it is complete"):
        batches.hold_open(ledger, batch)


def test_a_batch_of_which_one_job_still_waits_to_begin_does_not_end(ledger):
    first = add(ledger)
    batch = add_batch(ledger, total=2, waits_for=name_of(ledger, first))
    one, _ = [add_step(ledger, first, batch=batch) for _ in range(2)]
    cancel_each(ledger, first, [one])

    assert not batches.close(ledger, [batch])

    assert (get_batch(ledger, batch).state, sent(ledger)) == ("waiting", [])


def test_a_batch_that_never_began_succeeds_when_everything_is_replayed(ledger):
    first = add(ledger)
    batch = add_batch(ledger, total=2, waits_for=name_of(ledger, first), followed=True)
    ids = [add_step(ledger, first, batch=batch, piped=False) for _ in range(2)]
    after = add_step(ledger, batch)
    cancel_all(ledger, first, ids)
    batches.close(ledger, [batch])
    assert (sent(ledger), fetch(ledger, after, "state")) == (["complete"], "cancelled")

    for id_ in (after, *ids, first):
        replay(ledger, id_)
    assert not batches.close(ledger, [batch])
    end(ledger, first)
    end(ledger, *ids)
    assert batches.close(ledger, [batch])

    assert (sent(ledger), get_batch(ledger, batch).state) == (["complete", "success"], "succeeded")
    assert (fetch(ledger, after, "state"), fetch(ledger, after, "payload")["args"]) == ("pending", [[None, None]])


def test_a_batch_around_one_that_never_began_ends_with_it(ledger):
    first = add(ledger)
    outer = add_batch(ledger, waits_for=name_of(ledger, first))
    inner = add_batch(
        ledger, total=1, waits_for=name_of(ledger, first), parent_id=outer, root_id=outer, on_complete=callback("inner")
    )
    step = add_step(ledger, first, batch=inner)
    assert not batches.close(ledger, [inner, outer])

    cancel_each(ledger, first, [step])
    assert batches.close(ledger, [inner])

    assert sent(ledger, ("inner", "complete")) == ["inner", "complete"]
    assert [get_batch(ledger, id_).state for id_ in (inner, outer)] == ["failed", "failed"]


def test_a_batch_without_jobs_ends_when_the_step_before_it_is_cancelled(ledger):
    first = add(ledger)
    batch = add_batch(ledger, waits_for=name_of(ledger, first), followed=True)
    after = add_step(ledger, batch)
    assert not batches.close(ledger, [batch])
    cancel_all(ledger, first, [])
    assert fetch(ledger, after, "state") == "cancelled"

    assert batches.close(ledger, [batch])
    assert (sent(ledger), get_batch(ledger, batch).state) == (["complete"], "failed")
    replay(ledger, after)
    replay(ledger, first)
    end(ledger, first)
    assert batches.close(ledger, [batch])

    assert (sent(ledger), fetch(ledger, after, "payload")["args"]) == (["complete", "success"], [[]])


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.RETRYING, State.DEAD])
def test_a_batch_without_jobs_waits_for_a_step_that_may_come(ledger, state):
    first = add_in(ledger, state)
    batch = add_batch(ledger, waits_for=name_of(ledger, first))

    assert not batches.close(ledger, [batch])

    assert (get_batch(ledger, batch).state, sent(ledger)) == ("waiting", [])


@pytest.mark.parametrize("removed", [True, False])
def test_a_batch_without_jobs_ends_when_the_batch_before_it_cannot_succeed_any_more(ledger, removed):
    inner_of = add_batch(ledger, followed=True, on_complete=None, on_death=None)
    before = add_batch(ledger, total=1, parent_id=inner_of, root_id=inner_of, on_complete=None, on_death=None)
    batch = add_batch(ledger, waits_for=inner_of)
    (lost,) = add_members(ledger, before)
    end(ledger, lost, state=State.DEAD)
    batches.close(ledger, [before])
    assert not batches.close(ledger, [batch])

    if removed:
        assert dead.discard(ledger, name_of(ledger, lost))
    else:
        replay(ledger, lost)

    assert batches.close(ledger, [batch]) is removed
    assert sent(ledger) == (["complete"] if removed else [])


def test_batches_without_jobs_behind_one_that_never_began_end_one_after_the_other(ledger):
    first = add(ledger)
    one = add_batch(ledger, total=1, waits_for=name_of(ledger, first))
    two = add_batch(ledger, waits_for=one)
    three = add_batch(ledger, waits_for=two)
    step = add_step(ledger, first, batch=one)
    assert not batches.close(ledger, [one, two, three])
    cancel_all(ledger, first, [step])

    for batch in (one, two, three):
        assert batches.close(ledger, [batch])

    assert sent(ledger) == ["complete"] * 3


@pytest.mark.parametrize("many", [False, True])
def test_a_stock_group_whose_jobs_were_all_discarded_was_not_rolled_back(ledger, many):
    batch = add_batch(ledger, expected=3)
    ids = add_members(ledger, batch, 2)
    end(ledger, *ids, state=State.DEAD)
    assert batches.close(ledger, [batch])
    assert sent(ledger) == ["death"]

    if many:
        assert dead.discard_rows(ledger, ids) == 2
    else:
        assert all([dead.discard(ledger, name_of(ledger, id_)) for id_ in ids])

    assert batches.close(ledger, [batch])
    assert (sent(ledger), get_batch(ledger, batch).state) == (["death", "complete"], "failed")


def test_a_stock_group_that_still_has_a_job_waits_for_those_it_lacks(ledger):
    batch = add_batch(ledger, expected=3)
    kept, lost = add_members(ledger, batch, 2)
    end(ledger, kept)
    end(ledger, lost, state=State.DEAD)
    batches.close(ledger, [batch])

    assert dead.discard(ledger, name_of(ledger, lost))

    assert not batches.close(ledger, [batch])
    assert sent(ledger) == ["death"]


# Two at once.


def failed_batch(connection) -> tuple[str, int, int]:
    """A batch with a dead job, and a cancelled step that waited for it."""
    batch = add_batch(connection, total=1, followed=True)
    (lost,) = add_members(connection, batch)
    step = add_step(connection, batch)
    assert control.cancel(connection, name_of(connection, step))
    end(connection, lost, state=State.DEAD)
    batches.close(connection, [batch])
    return batch, lost, step


def test_a_step_replayed_while_a_job_of_what_it_waits_for_is_discarded_is_cancelled_again(two):
    _, lost, step = failed_batch(two.first)
    replaying, discarded = name_of(two.first, step), name_of(two.first, lost)

    done = two.waits_for(lambda: dead.replay(two.first, replaying), lambda: dead.discard(two.second, discarded))

    assert (done[0], done[1] is not None, fetch(two.first, step, "state")) == (True, True, "cancelled")


def test_a_step_whose_batch_loses_a_job_while_it_is_replayed_is_not(two):
    _, lost, step = failed_batch(two.first)
    replaying, discarded = name_of(two.first, step), name_of(two.first, lost)

    done = two.waits_for(lambda: dead.discard(two.first, discarded), lambda: dead.replay(two.second, replaying))

    assert (done[0] is not None, done[1], fetch(two.first, step, "state")) == (True, False, "cancelled")


def test_a_step_is_replayed_while_its_batch_ends_and_neither_waits_in_a_circle(two):
    batch, lost, step = failed_batch(two.first)
    replay(two.first, lost)
    end(two.first, lost)
    name = name_of(two.first, step)

    with two.first.transaction():
        two.first.execute(SQL["replay"], {"message_id": name, "queue": None, "payload": None})
        closing = Meanwhile(lambda: batches.close(two.second, [batch]))
        # It holds the batch, and waits for the step.
        wait_for_lock(two.onlooker, two.second.info.backend_pid)
        assert batches.wait_again(two.first, [name]) == set()

    assert closing.result()
    assert (fetch(two.first, step, "state"), fetch(two.first, step, "payload")["args"]) == ("pending", [[None]])


@pytest.mark.parametrize("how", ["together", "apart"])
def test_of_two_who_discard_the_last_jobs_of_a_stock_group_one_sees_that_it_is_empty(two, how):
    batch = add_batch(two.first, expected=3)
    one, other = add_members(two.first, batch, 2)
    end(two.first, one, other, state=State.DEAD)
    batches.close(two.first, [batch])
    names = name_of(two.first, one), name_of(two.first, other)

    if how == "together":
        two.waits_for(lambda: dead.discard(two.first, names[0]), lambda: dead.discard(two.second, names[1]))
    else:
        assert dead.discard(two.first, names[0])
        assert dead.discard(two.second, names[1])

    assert batches.close(two.first, [batch])
    assert sent(two.first) == ["death", "complete"]
