"""Batches whose last job ended where nobody looked: by a rescue, an expiry, a cancellation, or right before its worker died."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from keeper import batches as duty
from keeper import look, retention
from keeper.duty import Keeping
from ledger import batches, control, write
from ledger.batch import get_batch
from ledger.records import NewBatch
from ledger.sql import SQL
from ledger.states import State
from settings import Settings
from tests.keeper.conftest import Broker, Node
from tests.ledger.factory import add, age_lease, claim, completed, fetch
from tests.ledger.workflow_rows import add_batch, add_members, add_step, end, sent

DAY = 86_400.0


@pytest.fixture
def keeping(database, settings):
    return Keeping(Node(settings, database), Broker())


def sweep(ledger, keeping):
    ledger.execute("UPDATE switchyard.duty SET due_at = clock_timestamp()")
    look.sweep(ledger, keeping)
    return duty.sweep(ledger, keeping)


def days(ledger, count):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0] + timedelta(days=count)


def rescued(ledger, id_):
    ledger.execute("UPDATE switchyard.job SET max_lost = 1 WHERE id = %s", [id_])
    by = claim(ledger, id_)
    assert write.record_start(ledger, id_, by, 30.0)
    age_lease(ledger, id_)
    write.rescue_worker(ledger, "w1", alive=True, max_lost=3)


def expired(ledger, id_):
    ledger.execute("UPDATE switchyard.job SET max_age = 1, expires_at = clock_timestamp() - interval '1 s' WHERE id = %s", [id_])
    ledger.execute(SQL["expire"], {"now": None, "limit": 10}).fetchall()


def cancelled(ledger, id_):
    assert control.cancel(ledger, str(fetch(ledger, id_, "message_id")))


def finished(ledger, id_):
    write.finish(ledger, [completed(id_, claim(ledger, id_))])


@pytest.mark.parametrize(
    ("ending", "state", "callbacks"),
    [
        (rescued, "dead", ["complete", "death"]),
        (expired, "dead", ["complete", "death"]),
        (cancelled, "cancelled", ["complete"]),
        (finished, "completed", ["complete", "success"]),
    ],
)
def test_however_the_last_job_ended_the_batch_ends_at_the_next_sweep(ledger, keeping, ending, state, callbacks):
    batch = add_batch(ledger, total=1)
    (id_,) = add_members(ledger, batch)
    sweep(ledger, keeping)
    assert sent(ledger) == []
    ending(ledger, id_)
    assert fetch(ledger, id_, "state") == state

    sweep(ledger, keeping)
    sweep(ledger, keeping)

    assert sorted(sent(ledger)) == callbacks


def test_a_batch_that_never_began_ends_at_the_next_sweep(ledger, keeping):
    (first,) = add_members(ledger, str(uuid4()))
    batch = add_batch(ledger, total=1, waits_for=str(fetch(ledger, first, "message_id")))
    add_step(ledger, first, batch=batch)
    sweep(ledger, keeping)
    sweep(ledger, keeping)
    assert (keeping.seen.batches, sent(ledger)) == (True, [])
    cancelled(ledger, first)

    sweep(ledger, keeping)

    assert (get_batch(ledger, batch).state, sent(ledger)) == ("failed", ["complete"])
    look.sweep(ledger, keeping)
    assert not keeping.seen.batches


def test_a_sweep_pages_through_those_that_wait_and_those_that_have_begun(ledger, keeping, monkeypatch):
    monkeypatch.setattr(duty, "PAGE", 2)
    (first,) = add_members(ledger, str(uuid4()))
    waits_for = str(fetch(ledger, first, "message_id"))
    ids = [add_batch(ledger, waits_for=waits_for if number % 2 else None) for number in range(5)]
    cancelled(ledger, first)
    sweep(ledger, keeping)

    assert [sweep(ledger, keeping) for _ in range(3)] == [duty.SOON, duty.SOON, None]

    states = ["succeeded", "failed", "succeeded", "failed", "succeeded"]
    assert [get_batch(ledger, id_).state for id_ in ids] == states


def test_a_sweep_goes_through_the_batches_page_by_page_and_begins_again(ledger, keeping, monkeypatch):
    monkeypatch.setattr(duty, "PAGE", 2)
    ids = [add_batch(ledger) for _ in range(5)]
    # The very first turn makes the duty's row, for the next one to find.
    assert sweep(ledger, keeping) is None

    pauses = [sweep(ledger, keeping) for _ in range(3)]

    assert pauses == [duty.SOON, duty.SOON, None]
    assert {get_batch(ledger, id_).state for id_ in ids} == {"succeeded"}
    late = add_batch(ledger)
    sweep(ledger, keeping)
    assert get_batch(ledger, late).state == "succeeded"


def test_without_open_batches_nothing_is_asked(ledger, keeping):
    look.sweep(ledger, keeping)

    assert not keeping.seen.batches
    assert duty.sweep(ledger, keeping) is None
    assert ledger.execute("SELECT count(*) FROM switchyard.duty WHERE name = 'batches'").fetchone() == (0,)


def prune(ledger, day):
    moment = days(ledger, day)
    retention.prune(ledger, Settings(), now=moment)
    batches.prune(ledger, keep=7 * DAY, limit=10, now=moment)


def left(ledger):
    return [id_ for (id_,) in ledger.execute("SELECT id FROM switchyard.job WHERE batch_id IS NOT NULL ORDER BY id").fetchall()]


def test_jobs_of_an_open_batch_are_kept_and_those_of_one_that_succeeded_go(ledger):
    opened, over = add_batch(ledger, total=2), add_batch(ledger, total=1, on_complete=None, on_success=None)
    kept = add_members(ledger, opened, 2)
    gone = add_members(ledger, over)
    end(ledger, kept[0], *gone)
    batches.close(ledger, [opened, over])

    prune(ledger, 8)

    assert left(ledger) == kept
    assert ledger.execute("SELECT id::text FROM switchyard.batch").fetchall() == [(opened,)]


def test_what_a_failed_batch_has_completed_is_kept_for_as_long_as_its_dead(ledger):
    batch = add_batch(ledger, total=2, on_complete=None, on_death=None)
    done, dead = add_members(ledger, batch, 2)
    end(ledger, done)
    end(ledger, dead, state=State.DEAD)
    batches.close(ledger, [batch])

    prune(ledger, 89)
    assert left(ledger) == [done, dead]
    prune(ledger, 91)

    assert left(ledger) == []
    assert ledger.execute("SELECT count(*) FROM switchyard.batch").fetchone() == (0,)


def test_jobs_of_a_batch_that_succeeded_are_kept_while_the_one_around_it_is_open(ledger):
    outer = add_batch(ledger, total=1)
    inner = add_batch(ledger, total=1, parent_id=outer, root_id=outer, on_complete=None, on_success=None)
    add_members(ledger, outer)
    (deep,) = add_members(ledger, inner)
    end(ledger, deep)
    batches.close(ledger, [inner])
    assert get_batch(ledger, inner).state == "succeeded"

    prune(ledger, 8)

    assert deep in left(ledger)


def test_a_dead_step_is_kept_while_others_wait_for_it(ledger):
    batch = add_batch(ledger, total=0)
    batches.make(ledger, [NewBatch(id=batch, root_id=batch)])
    (first,) = add_members(ledger, batch)
    step = add_step(ledger, first)
    ledger.execute("UPDATE switchyard.job SET batch_id = NULL WHERE id = %s", [first])
    end(ledger, first, state=State.DEAD)

    retention.prune(ledger, Settings(), now=days(ledger, 1_000))
    assert fetch(ledger, first, "state") == "dead"
    cancelled(ledger, step)
    retention.prune(ledger, Settings(), now=days(ledger, 1_000))

    assert ledger.execute("SELECT count(*) FROM switchyard.job").fetchone() == (0,)


def test_jobs_of_a_failed_batch_are_kept_while_a_step_waits_for_one_around_it(ledger):
    outer = add_batch(ledger, followed=True)
    inner = add_batch(ledger, total=2, parent_id=outer, root_id=outer)
    done, dead = add_members(ledger, inner, 2)
    step = add_step(ledger, outer)
    end(ledger, done)
    end(ledger, dead, state=State.DEAD)
    batches.close(ledger, [inner])

    prune(ledger, 1_000)
    kept = [row[0] for row in ledger.execute("SELECT id FROM switchyard.job WHERE id = ANY(%s)", [[done, dead]]).fetchall()]
    assert write.replay(ledger, str(fetch(ledger, dead, "message_id")))
    end(ledger, dead)
    batches.close(ledger, [inner])

    assert (kept, fetch(ledger, step, "state")) == ([done, dead], "pending")


def test_a_batch_that_waits_for_long_keeps_its_callbacks(ledger):
    (first,) = add_members(ledger, str(uuid4()))
    batch = add_batch(ledger, waits_for=str(fetch(ledger, first, "message_id")))

    prune(ledger, 30)
    end(ledger, first)
    batches.close(ledger, [batch])

    assert sent(ledger) == ["complete", "success"]


def test_a_dead_step_is_kept_while_others_wait_for_what_waits_for_it(ledger):
    first = add(ledger)
    empty = add_batch(ledger, waits_for=str(fetch(ledger, first, "message_id")), followed=True)
    step = add_step(ledger, empty)
    end(ledger, first, state=State.DEAD)

    prune(ledger, 1_000)
    assert write.replay(ledger, str(fetch(ledger, first, "message_id")))
    end(ledger, first)
    batches.close(ledger, [empty])

    assert fetch(ledger, step, "payload")["args"] == [[]]


def test_jobs_of_a_failed_batch_are_kept_while_a_step_waits_behind_an_empty_one(ledger):
    failing = add_batch(ledger, total=1, followed=True)
    (lost,) = add_members(ledger, failing)
    empty = add_batch(ledger, waits_for=failing, followed=True)
    step = add_step(ledger, empty)
    end(ledger, lost, state=State.DEAD)
    batches.close(ledger, [failing])

    prune(ledger, 1_000)
    assert write.replay(ledger, str(fetch(ledger, lost, "message_id")))
    end(ledger, lost)
    batches.close(ledger, [failing])
    batches.close(ledger, [empty])

    assert fetch(ledger, step, "payload")["args"] == [[]]
