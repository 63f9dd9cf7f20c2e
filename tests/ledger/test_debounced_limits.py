"""A debounced send changes what its job counts as along with its arguments: in one transaction, and whoever it makes room for goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from errors import OptionError
from ledger import control, limits, rekeying, write
from ledger.control import Change
from ledger.database import Database
from ledger.records import JobControl, Unique
from ledger.rekeying import Keys
from ledger.states import State
from tests.ledger.blocking import Meanwhile, Two, wait_for_lock
from tests.ledger.factory import add, claim, completed, new_job
from tests.ledger.limiting import add_limited, admit, at_once, fetch, forget, rate


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
        yield two


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


def debounced(value, *, known=True, max_wait=None, delay=0.0, **limits):
    """A send of the actor ``work`` whose job is the same as every other one's."""
    unique = Unique(key="u", mode="debounce", known=known, max_wait=max_wait)
    control = JobControl(unique_key="u", unique=unique, **limits)
    return new_job(control=control, payload=json.dumps({"args": [value], "kwargs": {}}), delay=delay)


def args(connection, id_):
    return fetch(connection, id_, "payload")["args"]


def turn_of_a_debounced_job(ledger):
    """It has its turn for a slot, and another waits for one."""
    limits.declare_rules(ledger, [at_once(1)])
    (holder,) = add_limited(ledger, 1, control={"concurrency_key": "work:a"})
    first = write.enqueue(ledger, debounced(1, concurrency_key="work:a")).id
    (second,) = add_limited(ledger, 1, control={"concurrency_key": "work:a"})
    assert [job.id for job in admit(ledger).jobs] == [holder]
    entry = completed(holder, str(fetch(ledger, holder, "token")))
    entry.limited = True
    write.finish(ledger, [entry])
    assert [(fetch(ledger, id_, "state"), fetch(ledger, id_, "blocked_on")) for id_ in (first, second)] == [
        ("pending", "work:a"),
        ("scheduled", "work:a"),
    ]
    return first, second


def test_a_turn_for_a_slot_that_is_given_up_goes_to_the_next(ledger):
    first, second = turn_of_a_debounced_job(ledger)

    again = write.enqueue(ledger, debounced(2, concurrency_key="work:b"))

    assert (again.id, again.replayed, args(ledger, first)) == (first, True, [2])
    assert [fetch(ledger, id_, "state") for id_ in (first, second)] == ["pending", "pending"]
    assert {job.id for job in admit(ledger).jobs} == {first, second}


def test_a_turn_is_kept_by_who_counts_as_before(ledger):
    first, second = turn_of_a_debounced_job(ledger)

    write.enqueue(ledger, debounced(2, concurrency_key="work:a"))

    assert [fetch(ledger, id_, "state") for id_ in (first, second)] == ["pending", "scheduled"]
    assert (fetch(ledger, first, "blocked_on"), args(ledger, first)) == ("work:a", [2])


def test_in_a_batch_the_keys_follow_too(ledger):
    first = write.enqueue(ledger, debounced(1, rate_key="work:a", rate_cost=1)).id

    write.enqueue_many(ledger, [new_job(), debounced(2, rate_key="work:b", rate_cost=2), new_job()])

    assert (args(ledger, first), fetch(ledger, first, "rate_key"), fetch(ledger, first, "rate_cost")) == ([2], "work:b", 2)


def test_what_nothing_limited_comes_under_a_limit_and_the_other_way_round(ledger):
    first = write.enqueue(ledger, debounced(1)).id

    write.enqueue(ledger, debounced(2, rate_key="work:a", rate_cost=1))
    assert (fetch(ledger, first, "rate_key"), fetch(ledger, first, "limited")) == ("work:a", True)
    write.enqueue(ledger, debounced(3))

    assert (fetch(ledger, first, "rate_key"), fetch(ledger, first, "limited"), args(ledger, first)) == (None, False, [3])


def between_look_and_change(two, id_, send, what):
    """A send sees the job that has its key, and before it changes that, something else does. What both returned."""
    with two.first.transaction():
        # No change yet that would keep the send from looking.
        assert rekeying.lock_waiting(two.first, str(fetch(two.first, id_, "message_id"))) is not None
        sending = Meanwhile(lambda: write.enqueue(two.second, send))
        wait_for_lock(two.onlooker, two.second.info.backend_pid)
        done = what()
    return done, sending.result()


def test_one_that_came_under_a_limit_since_the_send_saw_it_does_not_stay_there_with_other_arguments(two):
    first = write.enqueue(two.onlooker, debounced(1)).id
    edit = Change(payload='{"args": [2], "kwargs": {}}', keys=Keys("u", "work:a", 1))

    edited, sent = between_look_and_change(two, first, debounced(3), lambda: control.edit(two.first, first, edit))

    assert (edited, sent.id, args(two.first, first)) == (True, first, [3])
    assert (fetch(two.first, first, "rate_key"), fetch(two.first, first, "limited")) == (None, False)


def test_one_that_is_claimed_meanwhile_keeps_what_it_runs_with(two):
    limits.declare_rules(two.onlooker, [at_once(9)])
    first = write.enqueue(two.onlooker, debounced(1, concurrency_key="work:a")).id
    send = debounced(2, concurrency_key="work:b")

    claimed, sent = between_look_and_change(two, first, send, lambda: [job.id for job in admit(two.first).jobs])

    assert (claimed, sent.created) == ([first], True)
    assert [(args(two.first, id_), fetch(two.first, id_, "concurrency_key")) for id_ in (first, sent.id)] == [
        ([1], "work:a"),
        ([2], "work:b"),
    ]


def test_one_that_lost_its_key_meanwhile_is_another_job(two):
    first = write.enqueue(two.onlooker, debounced(1, rate_key="work:a", rate_cost=1)).id
    send = debounced(2, rate_key="work:b", rate_cost=1)

    edited, sent = between_look_and_change(
        two, first, send, lambda: control.edit(two.first, first, Change(keys=Keys(None, "work:a", 1)))
    )

    assert (edited, sent.created) == (True, True)
    assert (args(two.first, first), fetch(two.first, first, "rate_key")) == ([1], "work:a")


def test_who_does_not_know_the_actor_is_refused_but_a_follower_does_not_undo_its_jobs_end(ledger):
    first = write.enqueue(ledger, debounced(1, rate_key="work:a", rate_cost=1)).id
    with pytest.raises(OptionError, match="does not know the actor"):
        write.enqueue(ledger, debounced(2, known=False))
    assert args(ledger, first) == [1]
    parent = add(ledger)
    end = completed(parent, claim(ledger, parent))
    end.children.append(debounced(3, known=False))

    assert write.finish(ledger, [end]) == {parent}

    assert fetch(ledger, parent, "state") == State.COMPLETED
    assert (args(ledger, first), fetch(ledger, first, "rate_key")) == ([3], "work:a")


def test_keepers_are_told_of_what_is_due_now(two):
    two.onlooker.execute("LISTEN switchyard_due")
    first = write.enqueue(two.first, debounced(1, rate_key="work:a", rate_cost=1)).id
    limits.declare_rules(two.first, [rate(1, 60.0)])
    (taken,) = add_limited(two.first, 1, control={"rate_key": "work:a", "rate_cost": 1}, priority=-1)
    assert [job.id for job in admit(two.first).jobs] == [taken]
    assert fetch(two.first, first, "wait_reason") == "rate_limit"
    assert list(two.onlooker.notifies(timeout=0)) == []

    write.enqueue(two.first, debounced(2, rate_key="work:b", rate_cost=1))

    assert len(list(two.onlooker.notifies(timeout=20, stop_after=1))) == 1
    assert fetch(two.first, first, "wait_reason") is None
