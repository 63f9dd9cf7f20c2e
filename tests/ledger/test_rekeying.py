"""A waiting job that counts as something else from now on: what it was promised, or waited for, under its old keys is void."""

from __future__ import annotations

import pytest

from ledger import control, keys, limits, write
from ledger.control import Change
from ledger.records import JobControl, Unique
from ledger.rekeying import Keys, PeriodKey
from ledger.states import State
from tests.ledger.factory import completed, new_job, relay_due
from tests.ledger.limiting import add_limited, admit, at_once, fetch, forget, rate

SLOT = {"concurrency_key": "work:a"}
RATE = {"rate_key": "work:a", "rate_cost": 1}


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


def rekey(ledger, id_, **keys):
    return control.edit(ledger, id_, Change(keys=Keys(**keys)))


def finish(ledger, id_):
    entry = completed(id_, str(fetch(ledger, id_, "token")))
    entry.limited = True
    assert write.finish(ledger, [entry]) == {id_}


def test_a_place_in_a_line_is_left_and_the_job_comes_at_once(ledger):
    limits.declare_rules(ledger, [at_once(1)])
    holder, first, second = add_limited(ledger, 3, control=SLOT)
    assert [job.id for job in admit(ledger).jobs] == [holder]
    assert fetch(ledger, first, "blocked_on") == "work:a"

    assert rekey(ledger, first, concurrency_key="work:b")

    assert [fetch(ledger, first, name) for name in ("blocked_on", "line", "wait_reason")] == [None, None, None]
    assert [job.id for job in relay_due(ledger)] == [first]
    assert fetch(ledger, first, "state") == State.PENDING
    assert [job.id for job in admit(ledger).jobs] == [first]
    assert fetch(ledger, second, "blocked_on") == "work:a"


@pytest.mark.parametrize("keys", [{"concurrency_key": "work:b"}, {"concurrency_key": "work:a", "fair_key": "tenant"}])
def test_a_turn_for_a_slot_goes_to_the_next(ledger, keys):
    limits.declare_rules(ledger, [at_once(1)])
    holder, first, second = add_limited(ledger, 3, control=SLOT)
    admit(ledger)
    finish(ledger, holder)
    assert [fetch(ledger, id_, "state") for id_ in (first, second)] == ["pending", "scheduled"]

    assert rekey(ledger, first, **keys)

    assert [fetch(ledger, id_, "state") for id_ in (first, second)] == ["pending", "pending"]
    assert [fetch(ledger, id_, "blocked_on") for id_ in (first, second)] == [None, "work:a"]
    assert second in {job.id for job in admit(ledger).jobs}


def test_a_turn_is_kept_by_who_counts_as_before(ledger):
    limits.declare_rules(ledger, [at_once(1)])
    holder, first, second = add_limited(ledger, 3, control=SLOT)
    admit(ledger)
    finish(ledger, holder)

    assert rekey(ledger, first, concurrency_key="work:a", fair_weight=3.0)

    assert [fetch(ledger, id_, "blocked_on") for id_ in (first, second)] == ["work:a", "work:a"]
    assert [fetch(ledger, id_, "state") for id_ in (first, second)] == ["pending", "scheduled"]


@pytest.mark.parametrize(
    ("keys", "comes"),
    [
        ({"rate_key": "work:b", "rate_cost": 1}, True),
        ({"rate_key": "work:a", "rate_cost": 2}, True),
        ({"rate_key": "work:a", "rate_cost": 1}, False),
    ],
    ids=["key", "cost", "same"],
)
def test_a_slot_that_was_promised_is_void_under_another_key_or_at_another_cost(ledger, keys, comes):
    limits.declare_rules(ledger, [rate(1, 60.0)])
    (_, promised) = add_limited(ledger, 2, control=RATE)
    admit(ledger)
    before = fetch(ledger, promised, "run_at")
    assert fetch(ledger, promised, "reserved_version") is not None

    assert rekey(ledger, promised, **keys)

    assert (fetch(ledger, promised, "reserved_version") is None) is comes
    assert (fetch(ledger, promised, "reserved_at") is None) is comes
    assert (fetch(ledger, promised, "wait_reason"), fetch(ledger, promised, "run_at") < before) == (
        (None, True) if comes else ("rate_limit", False)
    )


@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_what_nothing_limits_any_more_is_found_by_its_trigger_again(ledger, broker):
    limits.declare_rules(ledger, [at_once(1)])
    grace = None if broker == "postgres" else 30.0
    (id_,) = add_limited(ledger, 1, control=SLOT, broker=broker, grace=grace)
    if broker == "redis":
        limits.postpone_limited(ledger, [id_], 600.0)

    assert rekey(ledger, id_)

    assert fetch(ledger, id_, "limited") is False
    assert [job.id for job in relay_due(ledger, "redis")] == ([id_] if broker == "redis" else [])


def test_what_has_limits_now_is_left_to_the_step_that_decides(ledger):
    limits.declare_rules(ledger, [at_once(1)])
    holder, other = add_limited(ledger, 2, control=SLOT)
    rekey(ledger, other)
    assert [job.id for job in admit(ledger).jobs] == [holder]

    assert rekey(ledger, other, **SLOT)

    assert admit(ledger).jobs == []
    assert fetch(ledger, other, "blocked_on") == "work:a"


def test_who_waits_for_a_slot_of_his_queue_goes_on_waiting(ledger):
    limits.declare_rules(ledger, [limits.Rule("queue", "default", 1), at_once(1)])
    holder, waiting = add_limited(ledger, 2)
    admit(ledger)
    assert fetch(ledger, waiting, "blocked_on") == "queue:default"

    assert rekey(ledger, waiting, concurrency_key="work:b")

    assert [fetch(ledger, waiting, name) for name in ("blocked_on", "wait_reason")] == ["queue:default", "concurrency"]
    finish(ledger, holder)
    assert [job.id for job in admit(ledger).jobs] == [waiting]


def test_what_runs_keeps_its_keys(ledger):
    limits.declare_rules(ledger, [at_once(1)])
    (running,) = add_limited(ledger, 1, control=SLOT)
    admit(ledger)

    assert not rekey(ledger, running, concurrency_key="work:b")

    assert fetch(ledger, running, "concurrency_key") == "work:a"


@pytest.mark.parametrize("to", [None, "another"])
def test_a_key_whose_period_has_passed_meanwhile_is_left_to_whoever_has_it_now(ledger, to):
    first, second = (new_job(control=JobControl(unique=Unique(key="of a period", period=60.0))) for _ in range(2))
    write.enqueue(ledger, first)
    was = PeriodKey("work", first.message_id, "of a period", to)
    ledger.execute("UPDATE switchyard.idempotency SET expires_at = clock_timestamp() WHERE key = 'of a period'")
    assert write.enqueue(ledger, second).created

    with ledger.transaction():
        keys.move_period_key(ledger, was)

    assert keys.find(ledger, "unique", "work", "of a period").job_id == second.message_id
    keys.forget(ledger, "unique", "work", "of a period")
