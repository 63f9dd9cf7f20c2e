"""The steps that decide about limited jobs, one by one."""

from __future__ import annotations

import itertools

import pytest

from ledger import control, limits, read, write
from ledger.control import Change
from ledger.limits import Rule
from ledger.records import JobControl, Unique
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.factory import add, claim_next, completed, failed, new_job, relay_due, token
from tests.ledger.limiting import add_limited, admit, at, at_once, come_due, fetch, forget, next_slot, rate, rows, seconds

KEYED = {"rate_key": "work", "rate_cost": 1}
SLOT = {"concurrency_key": "work"}


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


def declare(ledger, *rules):
    limits.declare_rules(ledger, rules)


def run_all(ledger, until, *, lateness=0.0, threads=1_000):
    """Let slots come due and decide, as workers do, until then; the times at which jobs started."""
    started: list[float] = []
    now = 0.0
    while now <= until:
        come_due(ledger, now)
        admitted = admit(ledger, now, idle=threads)
        for job in admitted.jobs:
            started.append(now)
            write.finish(ledger, [completed(job.id, str(fetch(ledger, job.id, "token")))])
        if not admitted.more or not admitted.jobs:
            slot = next_slot(ledger)
            if slot is None:
                break
            now = max(now, slot) + lateness
    return started


def test_the_functions_of_the_migration_are_those_of_the_source(ledger):
    for name in ("admit", "wake_waiters", "free_slots"):
        row = ledger.execute(
            "SELECT prosrc FROM pg_proc WHERE proname = %s AND pronamespace = 'switchyard'::regnamespace", [name]
        )
        assert row.fetchone()[0] == SQL[f"{name}_function"].split("$$")[1]


# Rates.


def test_the_burst_starts_at_once_and_the_rest_in_slots(ledger):
    declare(ledger, rate(10, burst=3))
    ids = add_limited(ledger, 6, control=KEYED)

    admitted = admit(ledger, 0)

    assert [job.id for job in admitted.jobs] == ids[:3]
    assert admitted.soonest == pytest.approx(0.1, abs=1e-4)
    waiting = rows(ledger, "state, wait_reason, attempt, run_at, next_publish_at", f"id > {ids[2]}")
    assert [seconds(entry[3]) for entry in waiting] == pytest.approx([0.1, 0.2, 0.3], abs=1e-4)
    assert {entry[:3] for entry in waiting} == {("scheduled", "rate_limit", 0)}
    assert all(entry[3] == entry[4] for entry in waiting)


def test_a_job_is_promised_one_slot_and_runs_in_it(ledger):
    declare(ledger, rate(10))
    ids = add_limited(ledger, 20, control=KEYED)

    started = run_all(ledger, 10)

    assert started == pytest.approx([i / 10 for i in range(20)], abs=1e-3)
    assert rows(ledger, "state, attempt") == [("completed", 1)] * len(ids)


def test_what_comes_late_within_the_burst_takes_nothing_from_the_rest(ledger):
    declare(ledger, rate(10, burst=5))
    add_limited(ledger, 40, control=KEYED)

    started = run_all(ledger, 10, lateness=0.25)

    assert len(started) == 40
    assert started[-1] == pytest.approx((40 - 5) / 10, abs=0.3)


def test_after_a_stall_the_line_is_shifted_and_keeps_its_order(ledger):
    declare(ledger, rate(10, burst=2))
    ids = add_limited(ledger, 10, control=KEYED)
    assert [job.id for job in admit(ledger, 0).jobs] == ids[:2]
    come_due(ledger, 0.5)
    newcomer = add_limited(ledger, 1, control=KEYED)

    stalled = admit(ledger, 0.5)

    assert [job.id for job in stalled.jobs] == ids[2:4]
    order = [(seconds(entry[1]), entry[0]) for entry in rows(ledger, "id, run_at", "state = 'scheduled'")]
    assert next(id_ for _, id_ in sorted(order)) == ids[4]
    assert sorted(order)[-1][1] == newcomer[0]
    started = [job for _ in range(30) for job in run_in_order(ledger)]
    assert started == [*ids[4:], *newcomer]


def run_in_order(ledger):
    slot = next_slot(ledger)
    if slot is None:
        return []
    come_due(ledger, slot)
    return [job.id for job in admit(ledger, slot).jobs]


def test_keys_have_nothing_to_do_with_each_other(ledger):
    declare(ledger, rate(1, 60))
    for key in "ab":
        add_limited(ledger, 2, control={"rate_key": f"work:{key}", "rate_cost": 1})

    admitted = admit(ledger, 0)

    assert len(admitted.jobs) == 2
    assert [seconds(entry[0]) for entry in rows(ledger, "run_at", "state = 'scheduled'")] == pytest.approx([60, 60])


def test_a_cost_takes_as_much_and_more_than_the_burst_waits_for_a_full_bucket(ledger):
    declare(ledger, rate(10, burst=5))
    ids = [*add_limited(ledger, 1, control={"rate_key": "work", "rate_cost": 4})]
    ids += add_limited(ledger, 1, control={"rate_key": "work", "rate_cost": 20})
    ids += add_limited(ledger, 1, control=KEYED)

    admitted = admit(ledger, 0)

    assert [job.id for job in admitted.jobs] == ids[:1]
    # Of five, four are gone: full again after 0.4 s; and 20 later there is room for one more after 2.4 s less the burst's rest.
    assert [seconds(entry[0]) for entry in rows(ledger, "run_at", "state = 'scheduled'")] == pytest.approx([0.4, 2.0], abs=1e-3)


def test_a_retry_takes_a_slot_of_its_own(ledger):
    declare(ledger, rate(1, 10))
    (id_,) = add_limited(ledger, 1, control=KEYED)
    by = token()
    admit(ledger, 0, token=by)
    write.finish(ledger, [failed(id_, by, delay=0.0)])
    ledger.execute("UPDATE switchyard.job SET state = 'pending' WHERE id = %s", [id_])

    admitted = admit(ledger, 1)

    assert admitted.jobs == []
    assert seconds(fetch(ledger, id_, "run_at")) == pytest.approx(10)
    assert (fetch(ledger, id_, "attempt"), fetch(ledger, id_, "failures")) == (1, 1)


def test_without_an_idle_thread_what_may_run_stays_where_it_is(ledger):
    declare(ledger, rate(10, burst=10))
    ids = add_limited(ledger, 15, control=KEYED)

    admitted = admit(ledger, 0, idle=4)

    assert [job.id for job in admitted.jobs] == ids[:4]
    assert admitted.more
    assert rows(ledger, "state", f"id > {ids[3]}") == [("pending",)] * 11
    assert [job.id for job in admit(ledger, 0, idle=100).jobs] == ids[4:10]
    assert rows(ledger, "state", f"id > {ids[9]}") == [("scheduled",)] * 5


def test_the_best_priority_comes_first(ledger):
    declare(ledger, rate(1, 10))
    late = add_limited(ledger, 1, control=KEYED, priority=5)
    soon = add_limited(ledger, 1, control=KEYED, priority=0)

    assert [job.id for job in admit(ledger, 0).jobs] == soon
    assert fetch(ledger, late[0], "state") == "scheduled"


def test_a_faster_rate_has_those_come_that_were_promised_a_slot(ledger):
    declare(ledger, rate(1, 3_600))
    add_limited(ledger, 5, control=KEYED)
    admit(ledger, 0)
    limits.set_rule(ledger, rate(10, burst=1))

    assert limits.renew_promises(ledger) is False

    assert rows(ledger, "state", "state = 'pending'") == [("pending",)] * 4
    started = run_all(ledger, 5)
    assert started == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-3)
    assert ledger.execute("SELECT version, renewing FROM switchyard.rule").fetchall() == [(2, False)]


def test_a_slower_rate_holds_for_those_that_were_promised_a_slot_under_the_faster(ledger):
    declare(ledger, rate(10))
    add_limited(ledger, 4, control=KEYED)
    admit(ledger, 0)
    limits.set_rule(ledger, rate(1))

    started = run_all(ledger, 20)

    assert all(later - earlier >= 0.899 for earlier, later in itertools.pairwise(started))
    assert len(started) == 3


def test_a_limit_that_is_gone_holds_nobody(ledger):
    declare(ledger, rate(1, 3_600), at_once(1))
    add_limited(ledger, 3, control=KEYED | SLOT)
    admit(ledger, 0)
    limits.retract_rules(ledger, [], actors=["work"], queues=[])

    assert limits.wake_missed(ledger)[0] == 2
    assert len(admit(ledger, 1).jobs) == 2


# Slots.


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


def finish_limited(ledger, *ids):
    entries = [completed(id_, str(fetch(ledger, id_, "token"))) for id_ in ids]
    for entry in entries:
        entry.limited = True
    assert write.finish(ledger, entries) == set(ids)


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


def test_a_replayed_job_has_no_place_and_no_promise(ledger):
    declare(ledger, rate(1, 60))
    ids = add_limited(ledger, 3, control=KEYED)
    admit(ledger, 0)
    name = str(fetch(ledger, ids[2], "message_id"))
    assert control.cancel(ledger, name)

    assert write.replay(ledger, name)

    again = rows(ledger, "state, reserved_at, reserved_version, blocked_on, limited", f"id = {ids[2]}")
    assert again == [("pending", None, None, None, True)]
    assert admit(ledger, 1).jobs == []
    assert seconds(fetch(ledger, ids[2], "run_at")) == pytest.approx(180)


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


# Everything else.


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
