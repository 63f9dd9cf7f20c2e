"""Two connections meet at one key, in both orders: whoever comes second waits for the first, and then sees what it did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ledger import control, dead, limits, rekeying, write
from ledger.control import Change
from ledger.database import BoundedConnection, Database
from ledger.records import JobControl
from ledger.rekeying import Keys
from ledger.states import State
from tests.ledger.blocking import Meanwhile, Two, wait_for_lock
from tests.ledger.factory import age_lease, completed, new_job, token
from tests.ledger.limiting import add_limited, admit, at_once, fetch, forget, rows
from tests.rig.waiting import wait_until

SLOT = {"concurrency_key": "work"}


@pytest.fixture(scope="module")
def place(databases) -> Iterator[Database]:
    url = databases.create()
    database = Database(url)
    yield database
    database.close()
    databases.drop(url)


@pytest.fixture
def two(place) -> Iterator[Two]:
    with ExitStack() as stack:
        two = Two(*(stack.enter_context(place.dedicated("test")) for _ in range(3)))
        forget(two.onlooker)
        limits.declare_rules(two.onlooker, [at_once(1)])
        yield two


def ids_of(connection: BoundedConnection, **fields) -> list[int]:
    return [job.id for job in admit(connection, **fields).jobs]


def end(connection: BoundedConnection, id_: int, by: str) -> set[int]:
    entry = completed(id_, by)
    entry.limited = True
    return write.finish(connection, [entry])


def running_one(two: Two) -> tuple[int, str]:
    (first,) = add_limited(two.onlooker, 1, control=SLOT)
    by = token()
    assert ids_of(two.onlooker, token=by) == [first]
    return first, by


def test_an_end_that_meets_a_claim_waits_and_wakes_who_that_claim_sent_into_the_line(two):
    first, by = running_one(two)
    (second,) = add_limited(two.onlooker, 1, control=SLOT)

    claimed, ended = two.waits_for(lambda: ids_of(two.first), lambda: end(two.second, first, by))

    assert (claimed, ended) == ([], {first})
    assert fetch(two.onlooker, second, "state") == "pending"
    assert ids_of(two.onlooker) == [second]


def test_a_claim_that_meets_an_end_waits_and_finds_the_slot_free(two):
    first, by = running_one(two)
    (second,) = add_limited(two.onlooker, 1, control=SLOT)

    ended, claimed = two.waits_for(lambda: end(two.first, first, by), lambda: ids_of(two.second))

    assert (ended, claimed) == ({first}, [second])


def test_a_newcomer_that_meets_a_wake_joins_the_line(two):
    first, by = running_one(two)
    (second,) = add_limited(two.onlooker, 1, control=SLOT)
    admit(two.onlooker)
    (newcomer,) = add_limited(two.onlooker, 1, control=SLOT)

    # The woken row is locked by the wake's transaction until it commits, so this claim sees the newcomer alone.
    _, claimed = two.waits_for(lambda: end(two.first, first, by), lambda: ids_of(two.second))

    assert claimed == []
    assert fetch(two.onlooker, newcomer, "blocked_on") == "work"
    assert ids_of(two.onlooker) == [second]


def test_a_rescue_that_meets_a_claim_wakes_who_that_claim_sent_into_the_line(two):
    first, _ = running_one(two)
    age_lease(two.onlooker, first)
    (second,) = add_limited(two.onlooker, 1, control=SLOT)

    claimed, rescued = two.waits_for(
        lambda: ids_of(two.first), lambda: [job.id for job in write.rescue_worker(two.second, "w1", alive=False, max_lost=3)]
    )

    assert (claimed, rescued) == ([], [first])
    assert fetch(two.onlooker, second, "state") == "pending"


def test_two_claims_of_one_slot_give_it_to_one(two):
    add_limited(two.onlooker, 1, control=SLOT)
    (other,) = add_limited(two.onlooker, 1, control=SLOT)

    # The first looks at one job alone, so that the second has another to look at.
    first, second = two.waits_for(lambda: ids_of(two.first, examine=1), lambda: ids_of(two.second))

    assert (len(first), second) == (1, [])
    assert fetch(two.onlooker, other, "state") == "scheduled"


def test_a_turn_that_is_cancelled_while_a_claim_takes_it_is_not_given_twice(two):
    first, by = running_one(two)
    (second, third) = add_limited(two.onlooker, 2, control=SLOT)
    admit(two.onlooker)
    end(two.onlooker, first, by)
    name = str(fetch(two.onlooker, second, "message_id"))

    claimed, state = two.waits_for(lambda: ids_of(two.first), lambda: control.cancel(two.second, name))

    assert claimed == [second]
    assert state == "running"
    assert rows(two.onlooker, "state", f"id = {third}") == [("scheduled",)]


@pytest.mark.parametrize("many", [False, True])
def test_a_cancellation_that_waits_for_a_step_holds_no_key(two, many):
    turn, by = running_one(two)
    write.release_unstarted(two.onlooker, [(turn, by)])
    name = str(fetch(two.onlooker, turn, "message_id"))
    waits = JobControl(upstream_id=name, wait_reason="upstream")
    step = write.enqueue(two.onlooker, new_job(control=waits)).id
    assert fetch(two.onlooker, turn, "blocked_on") == "work"

    with two.second.transaction():
        two.second.execute("SELECT id FROM switchyard.job WHERE id = %s FOR UPDATE", [step])
        cancelling = Meanwhile(
            lambda: control.cancel_rows(two.first, [turn], [State.PENDING]) if many else control.cancel(two.first, name)
        )
        wait_for_lock(two.onlooker, two.first.info.backend_pid)
        limits.free_slots(two.second, [turn])
    cancelling.result()

    assert rows(two.onlooker, "state") == [("cancelled",), ("cancelled",)]


def test_who_passes_a_turn_on_takes_no_key_that_it_does_not_hold(two):
    """Keys are taken in one order. That of a limit which is gone is not among them, and would come last, whatever its place."""
    limits.declare_rules(two.onlooker, [limits.Rule("queue", "default", 1), limits.Rule("rate", "work", 1, 3_600.0, 1)])
    first, second = add_limited(two.onlooker, 2, control={"rate_key": "work", "rate_cost": 1})
    by = token()
    assert ids_of(two.onlooker, token=by) == [first]
    end(two.onlooker, first, by)
    assert (fetch(two.onlooker, second, "state"), fetch(two.onlooker, second, "blocked_on")) == ("pending", "queue:default")
    two.onlooker.execute("DELETE FROM switchyard.rule WHERE kind = 'queue'")

    with two.second.transaction():
        held = two.second.execute("SELECT key FROM switchyard.gate WHERE key = 'queue:default' FOR UPDATE").fetchall()
        deciding = Meanwhile(lambda: ids_of(two.first))
        wait_until(lambda: deciding.done, 10, "it waits for nobody")

    assert (held, deciding.result()) == ([("queue:default",)], [])
    assert (fetch(two.onlooker, second, "wait_reason"), fetch(two.onlooker, second, "blocked_on")) == ("rate_limit", None)


def test_a_slot_is_freed_once_whoever_says_so(two):
    first, by = running_one(two)
    add_limited(two.onlooker, 3, control=SLOT)
    admit(two.onlooker)

    ended, again = two.waits_for(lambda: end(two.first, first, by), lambda: end(two.second, first, by))

    assert (ended, again) == ({first}, set())
    assert len(rows(two.onlooker, "id", "state = 'pending'")) == 1
    limits.wake_missed(two.onlooker)
    limits.free_slots(two.onlooker, [first])
    assert len(rows(two.onlooker, "id", "state = 'pending'")) == 1


def test_claims_of_many_keys_in_any_order_do_not_wait_for_each_other_in_a_circle(two, place):
    import threading

    for number in range(120):
        add_limited(two.onlooker, 1, control={"concurrency_key": f"work:{number % 10}", "rate_key": f"work:{number % 7}"})
    limits.declare_rules(two.onlooker, [limits.Rule("rate", "work", 10_000, 1.0, 10_000)])
    ran: list[int] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with place.dedicated("test") as own:
                for _ in range(400):
                    by = token()
                    jobs = admit(own, idle=2, examine=7, token=by).jobs
                    ran.extend(job.id for job in jobs)
                    for job in jobs:
                        end(own, job.id, by)
                    if not jobs and len(ran) >= 120:
                        return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert sorted(ran) == sorted(set(ran))
    assert len(ran) == 120


def edit_of(connection, id_):
    """An edit of the arguments, as ``control.edit`` makes it: the row is locked first. Whether it was done."""
    name = str(fetch(connection, id_, "message_id"))

    def edit() -> bool:
        with connection.transaction():
            waiting = rekeying.lock_waiting(connection, name)
            change = Change(payload='{"args": ["b"], "kwargs": {}}', keys=Keys(concurrency_key="work:b"))
            return waiting is not None and control.edit(connection, id_, change)

    return edit


def stored(connection, id_):
    return tuple(fetch(connection, id_, name) for name in ("state", "concurrency_key", "payload"))


def test_a_claim_passes_a_job_by_that_is_being_edited_and_takes_it_as_it_is_then(two):
    (id_,) = add_limited(two.first, control=SLOT)

    edited, claimed = two.passes_by(edit_of(two.first, id_), lambda: [job.id for job in admit(two.second).jobs])

    assert (edited, claimed) == (True, [])
    (job,) = admit(two.second).jobs
    assert (job.payload["args"], stored(two.second, id_)[:2]) == (["b"], ("running", "work:b"))


def test_an_edit_that_comes_after_a_claim_changes_neither_arguments_nor_keys(two):
    (id_,) = add_limited(two.first, control=SLOT)
    before = stored(two.first, id_)

    claimed, edited = two.waits_for(lambda: [job.id for job in admit(two.first).jobs], edit_of(two.second, id_))

    assert (claimed, edited) == ([id_], False)
    assert stored(two.first, id_) == ("running", *before[1:])


def test_of_two_edits_the_second_builds_on_the_first(two):
    (id_,) = add_limited(two.first, control=SLOT)
    name = str(fetch(two.first, id_, "message_id"))

    edited, seen = two.waits_for(edit_of(two.first, id_), lambda: rekeying.lock_waiting(two.second, name))

    assert (edited, seen.payload["args"], seen.concurrency_key) == (True, ["b"], "work:b")


def test_a_decision_takes_the_clock_when_it_has_the_key_and_not_before(two):
    limits.declare_rules(two.onlooker, [limits.Rule("rate", "work", 2, 1.0, 1)])
    first, second = add_limited(two.onlooker, 2, control={"rate_key": "work", "rate_cost": 1})
    two.onlooker.execute("INSERT INTO switchyard.gate (kind, key, name) VALUES ('rate', 'work', 'work')")

    with two.second.transaction():
        two.second.execute("SELECT key FROM switchyard.gate FOR UPDATE")
        deciding = Meanwhile(lambda: ids_of(two.first, examine=1))
        wait_for_lock(two.onlooker, two.first.info.backend_pid)
        # Longer than one job keeps the next one waiting.
        two.second.execute("SELECT pg_sleep(0.7)")

    assert deciding.result() == [first]
    # It starts now and not when it began to wait, so the next one is half a second off.
    assert ids_of(two.onlooker) == []
    assert fetch(two.onlooker, second, "wait_reason") == "rate_limit"


def test_of_two_replays_with_other_arguments_one_is_done_and_the_other_finds_none_to_replay(two):
    (id_,) = add_limited(two.onlooker, control=SLOT)
    name = str(fetch(two.onlooker, id_, "message_id"))
    control.cancel(two.onlooker, name)

    def replay(connection, value):
        with connection.transaction():
            ended = rekeying.lock_ended(connection, name)
            payload = json.dumps({"args": [value], "kwargs": {}})
            keys = Keys(concurrency_key=f"work:{value}")
            return ended and dead.replay_changed(connection, ended, name, payload=payload, keys=keys, period=None)

    done, refused = two.waits_for(lambda: replay(two.first, "b"), lambda: replay(two.second, "c"))

    assert (done, refused) == (True, None)
    assert stored(two.first, id_) == ("pending", "work:b", {"args": ["b"], "kwargs": {}})
    assert fetch(two.first, id_, "generation") == 2
