"""Batches in the ledger: how one ends, what is sent for it, and what two who look at it at once make of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from errors import BatchClosed, BatchNotFound
from ledger import batches, dead, write
from ledger.batch import get_batch, list_batches
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add, claim, completed, failed, fetch
from tests.ledger.workflow_rows import add_batch, add_members, add_step, end, replay, sent

#: Long after every clock of a test.
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def test_a_batch_ends_when_its_last_job_has(ledger):
    batch = add_batch(ledger, total=2)
    one, two = add_members(ledger, batch, 2)
    end(ledger, one)
    assert not batches.close(ledger, [batch])
    assert get_batch(ledger, batch).state == "open"

    end(ledger, two)
    assert batches.close(ledger, [batch])

    assert not batches.close(ledger, [batch])
    assert sent(ledger) == ["complete", "success"]
    assert (get_batch(ledger, batch).state, get_batch(ledger, batch).percent) == ("succeeded", 100.0)


@pytest.mark.parametrize("state", [State.SCHEDULED, State.PENDING, State.RUNNING, State.RETRYING])
def test_a_batch_with_an_active_job_does_not_end(ledger, state):
    batch = add_batch(ledger, total=2)
    done, active = add_members(ledger, batch, 2)
    end(ledger, done)
    if state is State.SCHEDULED:
        ledger.execute("UPDATE switchyard.job SET state = 'scheduled', next_publish_at = now() WHERE id = %s", [active])
    elif state is not State.PENDING:
        by = claim(ledger, active)
        if state is State.RETRYING:
            write.finish(ledger, [failed(active, by)])

    assert not batches.close(ledger, [batch])

    assert (fetch(ledger, active, "state"), sent(ledger)) == (state, [])


def test_death_is_told_at_the_first_dead_and_once(ledger):
    batch = add_batch(ledger, total=3)
    one, two, three = add_members(ledger, batch, 3)
    end(ledger, one, state=State.DEAD)
    assert batches.close(ledger, [batch])
    end(ledger, two, state=State.DEAD)
    assert not batches.close(ledger, [batch])
    end(ledger, three)
    assert batches.close(ledger, [batch])

    replay(ledger, one)
    replay(ledger, two)
    end(ledger, one)
    assert not batches.close(ledger, [batch])
    end(ledger, two)

    assert batches.close(ledger, [batch])
    assert sent(ledger) == ["death", "complete", "success"]


def test_a_batch_that_waits_for_a_step_neither_ends_nor_succeeds(ledger):
    first = add(ledger)
    batch = add_batch(ledger, total=0, waits_for=str(fetch(ledger, first, "message_id")), followed=True)
    after = add_step(ledger, batch)
    assert not batches.close(ledger, [batch])
    assert get_batch(ledger, batch).state == "waiting"

    end(ledger, first)
    assert batches.close(ledger, [batch])

    assert fetch(ledger, after, "payload")["args"] == [[]]


def test_steps_behind_a_dead_one_keep_no_batch_open(ledger):
    batch = add_batch(ledger, total=2)
    (first,) = add_members(ledger, batch)
    add_step(ledger, first, batch=batch)
    end(ledger, first, state=State.DEAD)

    assert batches.close(ledger, [batch])

    assert sent(ledger) == ["complete", "death"] or sent(ledger) == ["death", "complete"]
    assert get_batch(ledger, batch).state == "failed"


def test_a_batch_around_others_ends_with_the_last_of_them(ledger):
    outer = add_batch(ledger, total=1)
    inner = add_batch(ledger, total=1, root_id=outer, parent_id=outer, on_complete=None, on_success=None, on_death=None)
    (own,), (deep,) = add_members(ledger, outer), add_members(ledger, inner)
    end(ledger, own)
    assert not batches.close(ledger, [outer])
    end(ledger, deep, state=State.DEAD)
    batches.close(ledger, [inner])
    assert sorted(sent(ledger)) == ["complete", "death"]

    replay(ledger, deep)
    end(ledger, deep)
    batches.close(ledger, [inner])

    assert sorted(sent(ledger)) == ["complete", "death", "success"]
    assert get_batch(ledger, outer).batches[0].state == "succeeded"


def test_a_batch_around_one_that_did_not_succeed_does_not_either(ledger):
    outer = add_batch(ledger, total=1)
    inner = add_batch(ledger, total=1, root_id=outer, parent_id=outer, on_complete=None, on_success=None, on_death=None)
    (own,), (deep,) = add_members(ledger, outer), add_members(ledger, inner)
    end(ledger, own)
    end(ledger, deep, state=State.CANCELLED)

    batches.close(ledger, [inner])

    assert sent(ledger) == ["complete"]


def test_results_stand_in_the_order_sent_with_those_of_inner_batches_in_their_places(ledger):
    outer = add_batch(ledger, followed=True)
    after = add_step(ledger, outer, payload='{"args":[],"kwargs":{}}')
    ids = add_members(ledger, outer, 2)
    inner = [add_batch(ledger, parent_id=outer, root_id=outer, place=place) for place in (0, 1, 1, 2)]
    ledger.execute("UPDATE switchyard.batch SET total = 2 WHERE id = %s", [outer])
    (deep,) = add_members(ledger, inner[1])
    ledger.execute("UPDATE switchyard.batch SET total = 1 WHERE id = %s", [inner[1]])
    for number, id_ in enumerate((*ids, deep)):
        end(ledger, id_, result=f"{number}")

    batches.close(ledger, inner)

    assert fetch(ledger, after, "payload")["args"] == [[[], 0, [2], [], 1, []]]


def test_a_dead_job_that_was_discarded_is_no_success(ledger):
    batch = add_batch(ledger, total=2)
    one, two = add_members(ledger, batch, 2)
    end(ledger, one)
    end(ledger, two, state=State.DEAD)
    ledger.execute("DELETE FROM switchyard.job WHERE id = %s", [two])

    batches.close(ledger, [batch])

    assert sent(ledger) == ["complete"]


@pytest.mark.parametrize("many", [False, True])
def test_what_waits_for_a_batch_whose_dead_job_is_discarded_is_cancelled(ledger, many):
    outer = add_batch(ledger)
    inner = add_batch(ledger, total=2, parent_id=outer, root_id=outer)
    done, lost = add_members(ledger, inner, 2)
    behind_inner, behind_outer = add_step(ledger, inner), add_step(ledger, outer)
    last, other = add_step(ledger, behind_outer), add_step(ledger, add_batch(ledger, total=1))
    end(ledger, done)
    end(ledger, lost, state=State.DEAD)

    if many:
        assert dead.discard_rows(ledger, [lost]) == 1
    else:
        assert dead.discard(ledger, str(fetch(ledger, lost, "message_id"))) == ("work", "default", "dead", "max_retries")

    assert [fetch(ledger, id_, "state") for id_ in (behind_inner, behind_outer, last)] == ["cancelled"] * 3
    assert fetch(ledger, other, "state") == "scheduled"


def test_a_stock_group_that_lacks_children_ends_after_an_hour(ledger):
    batch = add_batch(ledger, expected=3)
    end(ledger, *add_members(ledger, batch, 2))
    now = ledger.execute("SELECT clock_timestamp()").fetchone()[0]
    assert not batches.close(ledger, [batch], now=now + timedelta(minutes=59))

    assert batches.close(ledger, [batch], now=now + timedelta(minutes=61))

    assert (sent(ledger), get_batch(ledger, batch).state) == (["complete"], "failed")


def test_a_stock_group_that_was_rolled_back_ends_never_and_goes(ledger):
    batch = add_batch(ledger, expected=3)

    assert not batches.close(ledger, [batch], now=LATER)

    assert batches.prune(ledger, keep=60.0, limit=10, now=LATER) == 1
    assert sent(ledger) == []


def test_a_batch_that_waits_takes_no_more_jobs(ledger):
    batch = add_batch(ledger, total=1, waits_for=str(uuid4()))

    with pytest.raises(BatchClosed, match="it waits for a step before it"):
        batches.hold_open(ledger, batch)


def test_batches_are_listed_by_their_state(ledger):
    first = add(ledger)
    waiting = add_batch(ledger, total=1, waits_for=str(fetch(ledger, first, "message_id")))
    opened, failing, empty = add_batch(ledger, total=1), add_batch(ledger, total=1), add_batch(ledger)
    add_members(ledger, opened)
    end(ledger, *add_members(ledger, failing), state=State.DEAD)
    batches.close(ledger, [failing, empty])

    found = {state: [b.id for b in list_batches(ledger, state=state)] for state in ("waiting", "open", "failed", "succeeded")}

    assert found == {"waiting": [waiting], "open": [opened], "failed": [failing], "succeeded": [empty]}
    assert [b.id for b in list_batches(ledger)] == [empty, failing, opened, waiting]
    with pytest.raises(ValueError, match="'done' is unknown"):
        list_batches(ledger, state="done")
    with pytest.raises(ValueError, match="out of range"):
        list_batches(ledger, limit=0)
    with pytest.raises(BatchNotFound):
        get_batch(ledger, "nonsense")


# Two at once.


def test_of_two_who_end_a_batch_one_sends_its_callbacks(two):
    batch = add_batch(two.first, total=1)
    end(two.first, *add_members(two.first, batch))

    moved = two.waits_for(lambda: batches.close(two.first, [batch]), lambda: batches.close(two.second, [batch]))

    assert moved == (True, False)
    assert sent(two.first) == ["complete", "success"]


def test_of_two_last_jobs_at_once_the_later_end_is_the_batchs(two):
    batch = add_batch(two.first, total=2)
    one, other = add_members(two.first, batch, 2)
    tokens = claim(two.first, one), claim(two.first, other)

    with two.first.transaction():
        write.finish(two.first, [completed(one, tokens[0])])
        write.finish(two.second, [completed(other, tokens[1])])
        # Not yet to be seen from here.
        assert not batches.close(two.second, [batch])
    assert batches.close(two.first, [batch])

    assert sent(two.first) == ["complete", "success"]


def test_jobs_added_while_the_last_one_ends_keep_the_batch_open(two):
    batch = add_batch(two.first, total=1)
    (last,) = add_members(two.first, batch)
    end(two.first, last)

    with two.first.transaction():
        batches.hold_open(two.first, batch)
        (added,) = add_members(two.first, batch)
        batches.grow(two.first, batch, 1)
        closing = Meanwhile(lambda: batches.close(two.second, [batch]))
        wait_for_lock(two.onlooker, two.second.info.backend_pid)
    assert closing.result() is False
    assert (get_batch(two.first, batch).state, sent(two.first)) == ("open", [])

    end(two.first, added)
    assert batches.close(two.first, [batch])


def test_jobs_added_after_the_end_are_refused(two):
    batch = add_batch(two.first, total=1)
    end(two.first, *add_members(two.first, batch))

    with two.first.transaction():
        assert batches.close(two.first, [batch])
        adding = Meanwhile(lambda: batches.hold_open(two.second, batch))
        wait_for_lock(two.onlooker, two.second.info.backend_pid)
    with pytest.raises(BatchClosed):
        adding.result()
    with pytest.raises(BatchNotFound):
        batches.hold_open(two.second, str(uuid4()))
