"""Slots, decided one by one: who runs, who lines up, who is woken, for actors and for queues, and whose turn it is among many."""

from __future__ import annotations

import pytest

from ledger import control, limits, read, write
from ledger.control import Change
from ledger.limits import Rule
from ledger.records import JobControl, Unique
from ledger.states import State
from tests.ledger.factory import add, claim_next, completed, failed, new_job, token
from tests.ledger.limiting import (
    KEYED,
    SLOT,
    add_limited,
    admit,
    at_once,
    declare,
    fetch,
    finish_limited,
    forget,
    rate,
    rows,
    seconds,
)


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


def test_as_many_run_as_there_are_slots_and_the_others_line_up(ledger):
    declare(ledger, at_once(2))
    ids = add_limited(ledger, 5, control=SLOT)

    admitted = admit(ledger, idle=100)

    assert [job.id for job in admitted.jobs] == ids[:2]
    assert all(job.limited for job in admitted.jobs)
    waiting = rows(ledger, "state, wait_reason, blocked_on, isfinite(run_at), next_publish_at, attempt", f"id > {ids[1]}")
    assert waiting == [("scheduled", "concurrency", "work", False, None, 0)] * 3
    job = read.get_job(ledger, fetch(ledger, ids[2], "message_id"))
    assert job is not None
    assert (job.wait_reason, job.run_at, job.blocked_on) == ("concurrency", None, "work")


def test_an_end_wakes_the_first_in_line_and_newcomers_go_to_its_end(ledger):
    declare(ledger, at_once(1))
    ids = add_limited(ledger, 3, control=SLOT)
    admit(ledger)
    finish_limited(ledger, ids[0])
    newcomer = add_limited(ledger, 1, control=SLOT)

    assert rows(ledger, "id", "state = 'pending' AND blocked_on IS NOT NULL") == [(ids[1],)]
    assert [job.id for job in admit(ledger).jobs] == [ids[1]]
    assert fetch(ledger, newcomer[0], "blocked_on") == "work"
    finish_limited(ledger, ids[1])
    assert [job.id for job in admit(ledger).jobs] == [ids[2]]
    finish_limited(ledger, ids[2])
    assert [job.id for job in admit(ledger).jobs] == newcomer


def test_a_newcomer_does_not_take_a_slot_from_who_was_woken_for_it(ledger):
    declare(ledger, at_once(1))
    # Sent first, and come last: it is older than whoever is in line.
    (newcomer,) = add_limited(ledger, 1, control=SLOT, delay=60.0)
    ids = add_limited(ledger, 2, control=SLOT)
    admit(ledger)
    finish_limited(ledger, ids[0])
    ledger.execute("UPDATE switchyard.job SET state = 'pending' WHERE id = %s", [newcomer])

    admitted = admit(ledger)

    assert [job.id for job in admitted.jobs] == [ids[1]]
    assert fetch(ledger, newcomer, "state") == "scheduled"


def test_who_was_woken_and_finds_no_slot_goes_back_to_his_place(ledger):
    declare(ledger, at_once(2))
    ids = add_limited(ledger, 6, control=SLOT)
    admit(ledger)
    finish_limited(ledger, *ids[:2])
    limits.set_rule(ledger, at_once(1))

    admitted = admit(ledger)

    assert [job.id for job in admitted.jobs] == [ids[2]]
    assert (fetch(ledger, ids[3], "state"), fetch(ledger, ids[3], "attempt")) == ("scheduled", 0)
    finish_limited(ledger, ids[2])
    assert [job.id for job in admit(ledger).jobs] == [ids[3]]


@pytest.mark.parametrize("way", ["retry", "dead", "release", "rescue", "cancelled turn", "expired turn"])
def test_whatever_ends_a_claim_or_a_turn_wakes_the_next(ledger, way):
    declare(ledger, at_once(1))
    ids = add_limited(ledger, 3, control=SLOT, max_age=None)
    by = token()
    admit(ledger, token=by)
    first, second, third = ids
    if way in ("retry", "dead"):
        entry = failed(first, by, state=State.DEAD if way == "dead" else State.RETRYING)
        entry.limited = True
        write.finish(ledger, [entry])
    elif way == "release":
        write.release_unstarted(ledger, [(first, by)])
    elif way == "rescue":
        ledger.execute("UPDATE switchyard.job SET lease_until = now() - interval '1 hour' WHERE id = %s", [first])
        write.rescue_worker(ledger, "w1", alive=False, max_lost=3)
    else:
        finish_limited(ledger, first)
        assert fetch(ledger, second, "state") == "pending"
        if way == "cancelled turn":
            control.cancel(ledger, str(fetch(ledger, second, "message_id")))
        else:
            from keeper.expiry import expire

            ledger.execute("UPDATE switchyard.job SET expires_at = now() - interval '1 s' WHERE id = %s", [second])
            expire(ledger)

    turn = [id_ for (id_,) in rows(ledger, "id", "state = 'pending' AND blocked_on IS NOT NULL AND NOT suspect")]

    wanted = {"release": [first], "cancelled turn": [third], "expired turn": [third]}
    assert turn == wanted.get(way, [second])


@pytest.mark.parametrize("how", ["edit", "debounce"])
def test_a_job_that_is_put_off_gives_up_its_turn_and_is_not_woken_before_its_time(ledger, how):
    declare(ledger, at_once(1))
    unique = Unique(key="u", mode="debounce", max_wait=600.0)
    [put_off] = add_limited(ledger, control=SLOT | {"unique_key": "u", "unique": unique})
    [job] = admit(ledger).jobs
    write.release_unstarted(ledger, [(job.id, str(fetch(ledger, job.id, "token")))])
    [waits] = add_limited(ledger, control=SLOT)
    assert fetch(ledger, put_off, "blocked_on") == "work"

    if how == "edit":
        assert control.edit(ledger, put_off, Change(delay=60.0))
    else:
        write.enqueue(ledger, new_job(delay=60.0, control=JobControl(**SLOT, unique_key="u", unique=unique)))
    limits.wake_missed(ledger)

    assert (fetch(ledger, put_off, "state"), fetch(ledger, put_off, "blocked_on")) == ("scheduled", None)
    assert [job.id for job in admit(ledger).jobs] == [waits]


def test_a_cancelled_waiter_leaves_the_line(ledger):
    declare(ledger, at_once(1))
    ids = add_limited(ledger, 3, control=SLOT)
    admit(ledger)
    control.cancel(ledger, str(fetch(ledger, ids[1], "message_id")))
    finish_limited(ledger, ids[0])

    assert [job.id for job in admit(ledger).jobs] == [ids[2]]


def test_a_raised_limit_wakes_who_waits(ledger):
    declare(ledger, at_once(1))
    ids = add_limited(ledger, 5, control=SLOT)
    admit(ledger)
    limits.set_rule(ledger, at_once(3))

    assert limits.wake_missed(ledger) == (2, None)
    assert limits.wake_missed(ledger) == (0, None)
    assert [job.id for job in admit(ledger).jobs] == ids[1:3]


def test_the_walk_along_the_lines_goes_from_page_to_page(ledger):
    declare(ledger, at_once(1))
    for key in "abcde":
        add_limited(ledger, 3, control={"concurrency_key": f"work:{key}"})
    admit(ledger)
    limits.set_rule(ledger, at_once(2))

    woken, after = limits.wake_missed(ledger, limit=3)
    rest, over = limits.wake_missed(ledger, after or "", limit=3)

    assert (woken, after, rest, over) == (3, "work:c", 2, None)


def test_slots_are_taken_before_a_rate(ledger):
    declare(ledger, rate(1, 60), at_once(1))
    ids = add_limited(ledger, 2, control=KEYED | SLOT)

    admit(ledger, 0)

    assert fetch(ledger, ids[1], "wait_reason") == "concurrency"
    finish_limited(ledger, ids[0])
    assert admit(ledger, 1).jobs == []
    ((reason, blocked_on, run_at),) = rows(ledger, "wait_reason, blocked_on, run_at", f"id = {ids[1]}")
    assert (reason, blocked_on) == ("rate_limit", None)
    assert seconds(run_at) == pytest.approx(60)


# Queues.


def test_a_queue_with_a_limit_holds_back_plain_jobs_too(ledger):
    declare(ledger, Rule("queue", "default", 2))
    ids = [add(ledger, priority=priority) for priority in (1, 0, 0)]

    assert claim_next(ledger, 10) == []
    admitted = admit(ledger)

    assert {job.id for job in admitted.jobs} == {ids[1], ids[2]}
    assert fetch(ledger, ids[0], "blocked_on") == "queue:default"
    finish_limited(ledger, ids[1])
    assert [job.id for job in admit(ledger).jobs] == [ids[0]]


def test_what_waits_without_a_trigger_is_offered_again_when_its_queues_limit_goes(ledger):
    queue = Rule("queue", "default", 100)
    declare(ledger, queue)
    plain, other = (add(ledger, broker="redis", queue=name, grace=30.0) for name in ("default", "other"))
    limits.postpone_limited(ledger, [plain, other], 900.0)
    [keyed] = add_limited(ledger, broker="redis", grace=30.0, control=SLOT)
    limits.postpone_limited(ledger, [keyed], 900.0)
    due = "next_publish_at <= clock_timestamp()"
    assert rows(ledger, "id", due) == []

    limits.retract_rules(ledger, [], actors=[], queues=["default"])

    assert rows(ledger, "id", due) == [(plain,)]
    # Whoever saw the limit before it went takes no trigger away any more.
    limits.postpone_limited(ledger, [plain], 900.0)
    assert rows(ledger, "id", due) == [(plain,)]
    assert fetch(ledger, other, "publish_count") == 1


def test_a_queues_limit_counts_what_runs_since_before_it(ledger):
    first = add(ledger)
    claim_next(ledger, 1)
    limits.set_rule(ledger, Rule("queue", "default", 1))
    second = add(ledger)

    assert admit(ledger).jobs == []
    write.finish(ledger, [completed(first, str(fetch(ledger, first, "token")))])

    assert limits.wake_missed(ledger) == (1, None)
    assert [job.id for job in admit(ledger).jobs] == [second]


def test_a_job_may_wait_for_its_own_slot_and_then_for_its_queues(ledger):
    declare(ledger, Rule("queue", "default", 1), at_once(1))
    ids = add_limited(ledger, 1, control=SLOT)
    other = add(ledger)

    assert [job.id for job in admit(ledger).jobs] == ids
    assert fetch(ledger, other, "blocked_on") == "queue:default"
    mine = add_limited(ledger, 1, control=SLOT)
    admit(ledger)
    assert fetch(ledger, mine[0], "blocked_on") == "work"
    finish_limited(ledger, ids[0])
    admitted = admit(ledger)
    assert [job.id for job in admitted.jobs] == [other]
    assert fetch(ledger, mine[0], "blocked_on") == "queue:default"
    finish_limited(ledger, other)
    assert [job.id for job in admit(ledger).jobs] == mine


# Fairness.


def drain_in_order(ledger, ids):
    """End one after the other; the fair keys in the order in which they ran."""
    order = []
    while True:
        jobs = admit(ledger, idle=1).jobs
        if not jobs:
            return order
        order.append(fetch(ledger, jobs[0].id, "fair_key"))
        finish_limited(ledger, jobs[0].id)


def test_one_tenants_many_do_not_hold_up_anothers_one(ledger):
    declare(ledger, at_once(1))
    add_limited(ledger, 200, control=SLOT | {"fair_key": "big"})
    admit(ledger, idle=1)
    add_limited(ledger, 1, control=SLOT | {"fair_key": "small"})
    admit(ledger, idle=1)
    finish_limited(ledger, *[id_ for (id_,) in rows(ledger, "id", "state = 'running'")])

    order = drain_in_order(ledger, [])

    assert order.index("small") <= 2
    assert len(order) == 200


def test_turns_follow_the_weights(ledger):
    declare(ledger, at_once(1))
    add_limited(ledger, 1, control=SLOT | {"fair_key": "first"})
    admit(ledger, idle=1)
    for name, weight in (("a", 1.0), ("b", 3.0)):
        add_limited(ledger, 60, control=SLOT | {"fair_key": name, "fair_weight": weight})
    admit(ledger, idle=0)
    finish_limited(ledger, *[id_ for (id_,) in rows(ledger, "id", "state = 'running'")])

    order = drain_in_order(ledger, [])[:40]

    assert order.count("b") == pytest.approx(30, abs=1)


def test_a_tenant_that_sends_one_after_the_other_starves_nobody(ledger):
    declare(ledger, at_once(1))
    add_limited(ledger, 20, control=SLOT | {"fair_key": "big"})
    admit(ledger, idle=1)
    order = []
    for _ in range(20):
        add_limited(ledger, 1, control=SLOT | {"fair_key": "eager"})
        admit(ledger, idle=0)
        finish_limited(ledger, *[id_ for (id_,) in rows(ledger, "id", "state = 'running'")])
        order.append(fetch(ledger, admit(ledger, idle=1).jobs[0].id, "fair_key"))

    assert 8 <= order.count("big") <= 12
