"""Workflows in the ledger: what a step gets and when, how a batch ends, and what two who look at it at once make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from errors import BatchClosed, BatchNotFound
from ledger import batches, control, dead, write
from ledger.batch import get_batch, list_batches
from ledger.database import Database
from ledger.records import Finish, JobControl, NewBatch
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add, claim, clear, completed, failed, fetch, new_job, row
from tests.ledger.test_races import Two

#: Long after every clock of a test.
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def callback(name: str) -> list[dict[str, object]]:
    """What a batch keeps of a callback."""
    return write.controlled_rows([new_job(actor=name, grace=0.0)])


def add_batch(ledger, *, total: int = 0, **fields) -> str:
    """A batch, without its jobs."""
    id_ = str(uuid4())
    given = {"on_complete": callback("complete"), "on_success": callback("success"), "on_death": callback("death")}
    batches.make(ledger, [NewBatch(**({"id": id_, "root_id": id_, "total": total} | given | fields))])
    return id_


def add_members(ledger, batch: str, count: int = 1, **fields) -> list[int]:
    """Jobs of a batch."""
    return [add(ledger, control=JobControl(batch_id=batch), **fields) for _ in range(count)]


def add_step(
    ledger, upstream: str | int, *, batch: str | None = None, piped: bool = True, followed: bool = False, **fields
) -> int:
    """A step that waits for a job, by its row's id, or for a batch."""
    waits_for = str(fetch(ledger, upstream, "message_id")) if isinstance(upstream, int) else upstream
    options = {"piped": True} if piped else {}
    options |= fields.pop("options", {}) | ({"followed": True} if followed else {})
    control = JobControl(upstream_id=waits_for, wait_reason="upstream", batch_id=batch)
    return add(ledger, control=control, options=json.dumps(options), **fields)


def end(ledger, *ids: int, state: State = State.COMPLETED, result: str = "null") -> None:
    """Run jobs, each to its end, and hand on what they returned."""
    for id_ in ids:
        by = claim(ledger, id_)
        ending = completed(id_, by, result) if state is State.COMPLETED else failed(id_, by, state=state)
        if state is State.CANCELLED:
            ending.outcome = "cancelled"
        ending.upstream, ending.handed = str(fetch(ledger, id_, "message_id")), result
        assert write.finish(ledger, [ending]) == {id_}


def replay(ledger, id_: int) -> None:
    assert write.replay(ledger, str(fetch(ledger, id_, "message_id")))


def sent(ledger, actors: tuple[str, ...] = ("complete", "success", "death")) -> list[str]:
    """The callbacks that were sent, in that order."""
    rows = ledger.execute("SELECT actor FROM switchyard.job WHERE actor = ANY(%s) ORDER BY id", [list(actors)]).fetchall()
    return [actor for (actor,) in rows]


@pytest.fixture
def ledger(ledger):
    ledger.execute("DELETE FROM switchyard.batch")
    return ledger


# Steps.


@pytest.mark.parametrize(
    ("payload", "result", "fed"),
    [
        ('{"args":[],"kwargs":{}}', "3", '{"args":[3],"kwargs":{}}'),
        ('{"args": [1, "]"] , "kwargs": {"b": 1.10}}', '{"z":1,"a":2}', '{"args":[1, "]",{"z":1,"a":2}],"kwargs":{"b": 1.10}}'),
        ('{"args":[[]],"kwargs":{}}', "null", '{"args":[[],null],"kwargs":{}}'),
        ('{"args":[12345678901234567890.10],"kwargs":{}}', '"\\u00fc"', '{"args":[12345678901234567890.10,"\\u00fc"],"kwargs":{}}'),
    ],
)  # fmt: skip
def test_a_step_gets_the_result_as_the_text_that_it_is(ledger, payload, result, fed):
    first = add(ledger)
    step = add_step(ledger, first, payload=payload)
    ignoring = add_step(ledger, first, payload=payload, piped=False)

    end(ledger, first, result=result)

    texts = dict(ledger.execute("SELECT id, payload::text FROM switchyard.job").fetchall())
    assert (texts[step], texts[ignoring]) == (fed, payload)


def test_a_step_that_waits_is_unreachable_until_it_is_fed_and_then_due(ledger):
    first = add(ledger)
    step, late = add_step(ledger, first, max_age=60_000.0), add_step(ledger, first, options={"delay": 90_000})
    waiting = ledger.execute(
        "SELECT state, wait_reason, run_at = 'infinity', next_publish_at, expires_at FROM switchyard.job WHERE id <> %s", [first]
    ).fetchall()
    assert waiting == [("scheduled", "upstream", True, None, None)] * 2

    end(ledger, first)

    fed, scheduled = row(ledger, step), row(ledger, late)
    assert (fed["state"], fed["wait_reason"], fed["wait_since"], fed["upstream_id"]) == ("pending", None, None, None)
    assert abs(fed["next_publish_at"] - fed["run_at"]) < timedelta(milliseconds=5)
    assert abs(fed["expires_at"] - fed["run_at"] - timedelta(minutes=1)) < timedelta(milliseconds=5)
    assert scheduled["state"] == "scheduled"
    assert scheduled["run_at"] - fed["run_at"] > timedelta(seconds=89)


def test_an_end_that_is_refused_feeds_nothing(ledger):
    first = add(ledger)
    step = add_step(ledger, first)
    claim(ledger, first)
    ending = completed(first, str(uuid4()))
    ending.upstream = str(fetch(ledger, first, "message_id"))

    assert write.finish(ledger, [ending]) == set()

    assert fetch(ledger, step, "wait_reason") == "upstream"


def test_an_end_whose_step_cannot_be_fed_is_no_end(ledger):
    first = add(ledger)
    step, by = add_step(ledger, first), claim(ledger, first)
    ending = completed(first, by, "1")
    ending.upstream, ending.handed = str(fetch(ledger, first, "message_id")), "no JSON"

    with pytest.raises(psycopg.DataError):
        write.finish(ledger, [ending])

    assert (fetch(ledger, first, "state"), fetch(ledger, step, "wait_reason")) == ("running", "upstream")


def test_arguments_that_became_too_long_are_a_dead_step(ledger, monkeypatch):
    monkeypatch.setattr(batches, "MAX_FED_BYTES", 50)
    first = add(ledger)
    step = add_step(ledger, first)

    end(ledger, first, result=json.dumps("x" * 60))

    dead = row(ledger, step)
    assert (dead["state"], dead["dead_reason"], dead["error_type"]) == ("dead", "permanent", "PayloadError")
    assert "more than 50 bytes" in dead["error"]


def test_a_step_that_dies_leaves_the_rest_waiting_until_its_replay_completes(ledger):
    first = add(ledger)
    second = add_step(ledger, first)
    third = add_step(ledger, second)
    end(ledger, first)
    end(ledger, second, state=State.DEAD)
    assert fetch(ledger, third, "wait_reason") == "upstream"

    replay(ledger, second)
    end(ledger, second)

    assert fetch(ledger, third, "state") == "pending"


def test_a_cancelled_step_takes_along_what_waits_for_it_near_and_far(ledger):
    first = add(ledger)
    group = add_batch(ledger, total=1, waits_for=str(fetch(ledger, first, "message_id")), followed=True)
    inside = add_step(ledger, first, batch=group)
    behind = add_step(ledger, group)
    far = add_step(ledger, behind)

    end(ledger, first, state=State.CANCELLED)

    assert [fetch(ledger, id_, "state") for id_ in (inside, behind, far)] == ["cancelled"] * 3
    replay(ledger, far)
    assert (fetch(ledger, far, "state"), fetch(ledger, far, "wait_reason")) == ("scheduled", "upstream")


def test_a_step_that_is_skipped_takes_along_what_waits_for_it_although_nobody_noted_that_something_does(ledger):
    first, other = add(ledger), add(ledger)
    step, by = add_step(ledger, first), claim(ledger, first, other)
    skipped = failed(first, by, state=State.CANCELLED, outcome="cancelled", error_type="SkipMessage")

    assert write.finish(ledger, [skipped, failed(other, by)]) == {first, other}

    assert [fetch(ledger, id_, "state") for id_ in (first, step, other)] == ["cancelled", "cancelled", "retrying"]


def test_a_step_fed_while_it_is_cancelled_has_its_result_when_it_is_replayed(ledger):
    first = add(ledger)
    step = add_step(ledger, first)
    assert control.cancel(ledger, str(fetch(ledger, step, "message_id")))

    end(ledger, first, result="5")
    assert fetch(ledger, step, "state") == "cancelled"
    replay(ledger, step)

    assert (fetch(ledger, step, "state"), fetch(ledger, step, "payload")["args"]) == ("pending", [5])


# Batches.


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


@pytest.fixture(scope="module", params=["read committed", "repeatable read"])
def place(request, databases) -> Iterator[Database]:
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE \"{owner.info.dbname}\" SET default_transaction_isolation = '{request.param}'".encode())
    database = Database(url)
    yield database
    database.close()
    databases.drop(url)


@pytest.fixture
def two(place) -> Iterator[Two]:
    with ExitStack() as stack:
        two = Two(*(stack.enter_context(place.dedicated("test")) for _ in range(3)))
        clear(two.onlooker)
        two.onlooker.execute("DELETE FROM switchyard.batch")
        yield two


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


def handing(connection, id_: int, by: str) -> Finish:
    ending = completed(id_, by, "1")
    ending.upstream, ending.handed = str(fetch(connection, id_, "message_id")), "1"
    return ending


def test_a_step_cancelled_while_it_is_fed_is_not_cancelled_away(two):
    first = add(two.first)
    step, by = add_step(two.first, first), claim(two.first, first)
    name = str(fetch(two.first, step, "message_id"))
    ending = handing(two.first, first, by)

    done = two.waits_for(lambda: write.finish(two.first, [ending]), lambda: control.cancel(two.second, name))

    assert done == ({first}, State.CANCELLED)
    assert (fetch(two.first, step, "state"), fetch(two.first, step, "upstream_id")) == ("cancelled", None)


def test_a_step_fed_while_it_is_cancelled_keeps_its_result(two):
    first = add(two.first)
    step, by = add_step(two.first, first), claim(two.first, first)
    name = str(fetch(two.first, step, "message_id"))
    ending = handing(two.first, first, by)

    done = two.waits_for(lambda: control.cancel(two.first, name), lambda: write.finish(two.second, [ending]))

    assert done == (State.CANCELLED, {first})
    assert (fetch(two.first, step, "state"), fetch(two.first, step, "payload")["args"]) == ("cancelled", [1])


def test_a_step_replayed_while_what_it_waits_for_ends_runs_with_its_result(two):
    first = add(two.first)
    step, by = add_step(two.first, first), claim(two.first, first)
    name = str(fetch(two.first, step, "message_id"))
    assert control.cancel(two.first, name)
    ending = handing(two.first, first, by)

    two.waits_for(lambda: write.replay(two.first, name), lambda: write.finish(two.second, [ending]))

    assert (fetch(two.first, step, "state"), fetch(two.first, step, "payload")["args"]) == ("pending", [1])
