"""What limits are, and what else there is about limited jobs: pauses, strangers, lists, overrides, and how a rate is written."""

from __future__ import annotations

import pytest

from ledger import control, limits, read, write
from ledger.limits import Rule
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.factory import add, claim_next, relay_due, token
from tests.ledger.limiting import (
    KEYED,
    SLOT,
    add_limited,
    admit,
    at,
    at_once,
    declare,
    fetch,
    finish_limited,
    forget,
    rate,
    rows,
)


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


def test_the_functions_of_the_migration_are_those_of_the_source(ledger):
    for name in ("admit", "wake_waiters", "free_slots"):
        row = ledger.execute(
            "SELECT prosrc FROM pg_proc WHERE proname = %s AND pronamespace = 'switchyard'::regnamespace", [name]
        )
        assert row.fetchone()[0] == SQL[f"{name}_function"].split("$$")[1]


def test_a_limit_that_is_gone_holds_nobody(ledger):
    declare(ledger, rate(1, 3_600), at_once(1))
    add_limited(ledger, 3, control=KEYED | SLOT)
    admit(ledger, 0)
    limits.retract_rules(ledger, [], actors=["work"], queues=[])

    assert limits.wake_missed(ledger)[0] == 2
    assert len(admit(ledger, 1).jobs) == 2


def test_what_is_paused_is_neither_admitted_nor_woken(ledger):
    declare(ledger, at_once(1))
    ids = add_limited(ledger, 3, control=SLOT)
    admit(ledger)
    control.pause(ledger, control.EVERY, "work")
    newcomer = add_limited(ledger, 1, control=SLOT)

    finish_limited(ledger, ids[0])

    assert (admit(ledger).jobs, limits.limited_queues(ledger, ["default"], ["work"])) == ([], [("default", False)])
    assert rows(ledger, "state", f"id = ANY(ARRAY{ids[1:]})") == [("scheduled",)] * 2
    control.park_rows(ledger, newcomer)
    assert limits.limited_queues(ledger, ["default"], ["work"]) == []
    control.resume(ledger, control.EVERY, "work")
    assert limits.wake_missed(ledger) == (1, None)
    assert [job.id for job in admit(ledger).jobs] == [ids[1]]


def test_a_turn_that_is_paused_keeps_nobody_else_from_his(ledger):
    declare(ledger, Rule("queue", "default", 1))
    ids = [add(ledger), *add_limited(ledger, 1, control=SLOT), add(ledger)]
    ledger.execute("UPDATE switchyard.job SET actor = 'other' WHERE id = %s", [ids[2]])
    admit(ledger, actors=["work", "other"])
    finish_limited(ledger, ids[0])
    control.pause(ledger, control.EVERY, "work")
    control.park_rows(ledger, [ids[1]])

    assert limits.wake_missed(ledger) == (1, None)
    assert [job.id for job in admit(ledger, actors=["work", "other"]).jobs] == [ids[2]]


def test_plain_claims_pass_limited_jobs_by(ledger):
    declare(ledger, at_once(5))
    limited = add_limited(ledger, 3, control=SLOT)
    plain = add(ledger)

    assert write.claim_by_id(ledger, limited, actors=["work"], worker="w1", token=token(), lease=30.0) == []
    assert [job.id for job in claim_next(ledger, 10)] == [plain]
    assert write.why_not_claimed(ledger, limited[:1])[limited[0]].limited
    assert limits.limited_queues(ledger, ["default", "other"], ["work"]) == [("default", False)]
    assert write.ready_queues(ledger, ["default"], ["work"]) == []


def test_jobs_of_unknown_actors_and_suspects_are_left_alone(ledger):
    declare(ledger, at_once(5))
    strange = add_limited(ledger, 1, control=SLOT, actor="strange")
    ids = add_limited(ledger, 2, control=SLOT)
    ledger.execute("UPDATE switchyard.job SET suspect = true WHERE id = %s", [ids[0]])

    assert [job.id for job in admit(ledger).jobs] == [ids[1]]
    assert [job.id for job in admit(ledger, suspects=True, idle=1).jobs] == [ids[0]]
    assert fetch(ledger, strange[0], "state") == "pending"


def test_blocked_jobs_are_counted_and_listed(ledger):
    declare(ledger, at_once(1))
    add_limited(ledger, 3, control=SLOT)
    admit(ledger)

    assert read.counts(ledger).by_state()[State.SCHEDULED] == 2
    (depth,) = read.queue_depths(ledger)
    assert (depth.scheduled, depth.running) == (2, 1)
    assert len(read.list_jobs(ledger, state="scheduled").jobs) == 2
    assert len(read.list_jobs(ledger, state="delayed", queue="default").jobs) == 2


def test_a_slot_that_has_come_is_offered_by_the_relay(ledger):
    declare(ledger, rate(1_000, burst=1))
    ids = add_limited(ledger, 2, control=KEYED)
    admit(ledger)

    due = [job.id for job in relay_due(ledger, now=at(0))]

    assert due == ids[1:]
    assert [job.id for job in admit(ledger, 0).jobs] == ids[1:]


def test_an_override_outlives_what_processes_declare_until_it_is_reset(ledger):
    declare(ledger, rate(10))
    limits.set_rule(ledger, rate(20, burst=4))
    declare(ledger, rate(30, burst=2))

    (limit,) = limits.limits(ledger)
    assert (limit.in_force, limit.declared, limit.overridden) == (rate(20, burst=4), rate(30, burst=2), True)
    assert limits.reset_rule(ledger, "rate", "work")
    (limit,) = limits.limits(ledger)
    assert (limit.in_force, limit.overridden, limit.version) == (rate(30, burst=2), False, 3)
    assert not limits.reset_rule(ledger, "rate", "work")


def test_what_nobody_declares_any_more_is_gone_unless_an_operator_wants_it(ledger):
    declare(ledger, rate(10), at_once(2), Rule("queue", "default", 3), Rule("rate", "other", 1, 1.0, 1))
    limits.set_rule(ledger, at_once(7))

    limits.retract_rules(ledger, [], actors=["work"], queues=["default"])

    assert [(limit.kind, limit.name) for limit in limits.limits(ledger)] == [("rate", "other"), ("concurrency", "work")]
    assert limits.reset_rule(ledger, "concurrency", "work")
    assert [(limit.kind, limit.name) for limit in limits.limits(ledger)] == [("rate", "other")]


def test_a_limit_shows_what_it_holds(ledger):
    declare(ledger, rate(1, 60, burst=2), at_once(1))
    for key in "ab":
        add_limited(ledger, 3, control={"rate_key": f"work:{key}", "rate_cost": 1})
    add_limited(ledger, 2, control={"concurrency_key": "work:c"})
    admit(ledger)

    at_once_, rate_ = limits.limits(ledger)

    assert (rate_.kind, rate_.keys, rate_.used, rate_.waiting) == ("rate", 2, 2, 2)
    assert 115 < (rate_.next_free_at - rate_.changed_at).total_seconds() < 125
    assert (at_once_.kind, at_once_.keys, at_once_.used, at_once_.waiting) == ("concurrency", 1, 1, 1)


def test_keys_that_nobody_asks_for_are_forgotten(ledger):
    declare(ledger, rate(1, 60), at_once(1))
    add_limited(ledger, 1, control=KEYED | {"concurrency_key": "work:gone"})
    add_limited(ledger, 2, control={"concurrency_key": "work:kept"})
    (first, *_) = admit(ledger, 0).jobs
    finish_limited(ledger, first.id)
    assert limits.forget_gates(ledger) == 0

    ledger.execute("UPDATE switchyard.gate SET used_at = now() - interval '2 h', tat = now() - interval '1 h', tail = NULL")

    assert limits.forget_gates(ledger) == 2
    assert ledger.execute("SELECT key FROM switchyard.gate").fetchall() == [("work:kept",)]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("100/minute", (100, 60.0)),
        ("1/second", (1, 1.0)),
        ("5 / 30s", (5, 30.0)),
        ("7/2h", (7, 7_200.0)),
        ("9/day", (9, 86_400.0)),
        ("3/0.5s", (3, 0.5)),
        ("50/s", (50, 1.0)),
        ("10/hours", (10, 3_600.0)),
    ],
)
def test_a_rate_is_read_as_people_write_it(text, rule):
    assert limits.parse_rate(text) == rule


NO_RATES = ["", "100", "100/", "/minute", "0/second", "-1/second", "1.5/second", "10/week", "1/0s", "1/900d", None, 5]


@pytest.mark.parametrize("text", NO_RATES)
def test_what_is_no_rate_is_refused_with_a_way_to_write_one(text):
    with pytest.raises(ValueError, match="write"):
        limits.parse_rate(text)


@pytest.mark.parametrize("text", ["100/minute", "5/30s", "7/2h", "9/day", "3/0.5s", "1/90s"])
def test_a_rate_is_shown_as_it_was_written(text):
    assert limits.rate_text(*limits.parse_rate(text)) == text
