"""Rates, decided one by one: who starts, who is promised a time, and what a late start takes from whom."""

from __future__ import annotations

import itertools

import pytest

from ledger import control, limits, write
from tests.ledger.factory import completed, failed, token
from tests.ledger.limiting import (
    KEYED,
    add_limited,
    admit,
    come_due,
    declare,
    fetch,
    forget,
    next_slot,
    rate,
    rows,
    seconds,
)


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


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
