"""Rates against a checker that counts every window of the log, under any arrivals, delays, costs, keys and crowds."""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest

from ledger import limits
from ledger.database import Database
from tests.ledger.limiting import add_limited, admit, at_once, come_due, forget, next_slot, rate, rows

#: What the clock's microseconds and the slack of a burst of one are worth, as a share of the spacing.
SLACK = 0.11


def excess(starts: list[tuple[float, int]], spacing: float, burst: int, slack: float = 0.0) -> float:
    """By how much the fullest window of a log of (time, cost) holds more than its burst and what the rate brings in it."""
    worst = -float("inf")
    for first in range(len(starts)):
        total = 0
        for last in range(first, len(starts)):
            total += starts[last][1]
            stretch = starts[last][0] - starts[first][0]
            # What costs more than the burst may be as much over it, when the bucket was full.
            worst = max(worst, total - max(burst, starts[last][1]) - (stretch + slack * spacing) / spacing)
    return worst


def test_the_checker_counts_every_window() -> None:
    assert excess([(0.0, 1), (0.0, 1), (1.0, 1)], 1.0, 2) == 0
    assert excess([(0.0, 1), (0.0, 1), (0.5, 1)], 1.0, 2) == 0.5
    assert excess([(0.0, 1), (10.0, 1), (10.0, 1), (10.0, 1)], 1.0, 2) == 1


def simulate(ledger: Any, seed: int, *, amount: int, period: float, burst: int, jobs: int, costs: tuple[int, ...]) -> None:
    """Jobs arrive in crowds; workers come late, with few threads, and stall now and then. Nothing is lost, nothing is exceeded."""
    draw = random.Random(seed)
    forget(ledger)
    limits.declare_rules(ledger, [rate(amount, period, burst)])
    spacing = period / amount
    arrivals: list[tuple[float, int]] = []
    now = 0.0
    while len(arrivals) < jobs:
        now += draw.choice([0.0, 0.0, spacing / 3, spacing, 5 * spacing])
        arrivals += [(now, draw.choice(costs))] * draw.choice([1, 1, 3, 10])
    heapq.heapify(arrivals)
    log: list[tuple[float, int]] = []
    order: list[int] = []
    now = 0.0
    for _ in range(50 * jobs):
        while arrivals and arrivals[0][0] <= now:
            add_limited(ledger, 1, control={"rate_key": "work", "rate_cost": heapq.heappop(arrivals)[1]})
        come_due(ledger, now)
        admitted = admit(ledger, now, idle=draw.choice([1, 3, 100]), examine=draw.choice([2, 7, 250]))
        found = [job.id for job in admitted.jobs]
        order += found
        taken = dict(rows(ledger, "id, rate_cost", f"id = ANY(ARRAY{found}::bigint[])"))
        log += [(now, taken[id_]) for id_ in found]
        if not admitted.more:
            times = [time for time in (next_slot(ledger), arrivals[0][0] if arrivals else None) if time is not None]
            if not times:
                break
            # A claim takes its time, and sometimes everything stands still.
            now = max(now, min(times)) + draw.choice([0.0, 0.0, spacing / 50, spacing / 3, 3 * spacing, 20 * spacing])
    assert len(log) == len(rows(ledger, "id"))
    assert excess(log, spacing, burst, SLACK if burst == 1 else 0.001) <= 0
    # First come, first served, however often everything stood still.
    if len(costs) == 1:
        assert order == sorted(order)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("amount", "burst", "costs"), [(10, 1, (1,)), (10, 4, (1,)), (100, 25, (1, 2, 40))])
def test_no_window_holds_more_than_its_burst_and_what_the_rate_brings(ledger, seed, amount, burst, costs):
    simulate(ledger, seed, amount=amount, period=1.0, burst=burst, jobs=60, costs=costs)


def test_a_line_that_keeps_moving_uses_the_whole_rate(ledger):
    forget(ledger)
    limits.declare_rules(ledger, [rate(100, 1.0, 20)])
    add_limited(ledger, 500, control={"rate_key": "work", "rate_cost": 1})
    touched = {id_: 0 for (id_,) in rows(ledger, "id")}
    now, started, draw = 0.0, 0, random.Random(1)
    last = 0.0
    while started < 500:
        for id_ in come_due(ledger, now):
            touched[id_] += 1
        admitted = admit(ledger, now)
        if admitted.jobs:
            started, last = started + len(admitted.jobs), now
        if not admitted.more:
            slot = next_slot(ledger)
            now = max(now, slot if slot is not None else now) + draw.uniform(0.0, 0.1)

    assert last == pytest.approx((500 - 20) / 100, abs=0.15)
    # Promised a time once, and then on time.
    assert max(touched.values()) == 1


def test_two_processes_that_decide_at_once_never_admit_more_than_either_alone(database_url):
    """Each decision takes the clock after the key's lock, so their order is that of the locks."""
    import threading

    database = Database(database_url)
    with database.dedicated("test") as ledger:
        limits.declare_rules(ledger, [rate(50, 1.0, 5), at_once(3)])
        add_limited(ledger, 60, control={"rate_key": "work", "rate_cost": 1})
        log: list[int] = []

        def decide() -> None:
            with database.dedicated("test") as own:
                for _ in range(40):
                    log.append(len(admit(own, 0.0, idle=1).jobs))

        threads = [threading.Thread(target=decide) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Whoever looked while another decided found nothing to look at, so some may be left.
        while found := len(admit(ledger, 0.0, idle=1).jobs):
            log.append(found)

    database.close()
    assert sum(log) == 5
