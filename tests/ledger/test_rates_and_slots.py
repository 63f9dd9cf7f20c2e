"""Jobs that a rate and slots decide about together: whoever has to wait for the one holds up nobody at the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ledger import limits
from ledger.limits import Rule
from tests.ledger.limiting import (
    KEYED,
    SLOT,
    add_limited,
    admit,
    at_once,
    come_due,
    fetch,
    finish_limited,
    forget,
    next_slot,
    rate,
    rows,
)


@pytest.fixture(autouse=True)
def no_limits(ledger):
    forget(ledger)


@dataclass
class Stage:
    """Time passes, workers take what may run, and no keeper looks for anybody who was forgotten."""

    ledger: object
    body: float
    now: float = 0.0
    running: list[tuple[float, int]] = field(default_factory=list)
    started: list[tuple[float, int]] = field(default_factory=list)

    def step(self) -> bool:
        """To the next moment at which something may happen. False: there is none."""
        come_due(self.ledger, self.now)
        for job in (admitted := admit(self.ledger, self.now)).jobs:
            self.started.append((self.now, job.id))
            self.running.append((self.now + self.body, job.id))
        if admitted.more:
            return True
        moments = [until for until, _ in self.running]
        if (slot := next_slot(self.ledger)) is not None and slot < 1e6:
            moments.append(slot)
        if not moments:
            return False
        self.now = max(self.now, min(moments))
        for until, id_ in list(self.running):
            if until <= self.now:
                self.running.remove((until, id_))
                finish_limited(self.ledger, id_)
        return True


@pytest.mark.parametrize(
    ("body", "slots", "burst", "seconds"),
    [
        pytest.param(0.05, 1, 1, 5.9, id="the rate is what is short"),
        pytest.param(0.05, 3, 10, 5.0, id="the rate is what is short after a burst"),
        pytest.param(0.3, 1, 1, 17.7, id="slots are what is short"),
        pytest.param(0.5, 4, 4, 7.0, id="now the one and now the other"),
    ],
)
def test_a_rate_and_slots_together_are_as_fast_as_the_slower_and_keep_the_order(ledger, body, slots, burst, seconds):
    limits.declare_rules(ledger, [rate(10, burst=burst), at_once(slots)])
    ids = add_limited(ledger, 60, control=KEYED | SLOT)
    stage = Stage(ledger, body)

    while stage.step():
        pass

    assert [id_ for _, id_ in stage.started] == ids
    assert stage.now - body == pytest.approx(seconds, abs=0.01)


def test_a_turn_whose_holder_has_to_wait_for_its_rate_goes_to_the_next_in_line(ledger):
    limits.declare_rules(ledger, [rate(1, 3_600), at_once(1)])
    of = {name: {"rate_key": f"work:{name}", "rate_cost": 1, **SLOT} for name in ("spent", "other")}
    first, *spent = add_limited(ledger, 4, control=of["spent"])
    [other] = add_limited(ledger, 1, control=of["other"])
    assert [job.id for job in admit(ledger, 0).jobs] == [first]
    finish_limited(ledger, first)

    ran = []
    while (admitted := admit(ledger, 1)).more:
        ran += admitted.jobs

    assert [job.id for job in [*ran, *admitted.jobs]] == [other]
    assert rows(ledger, "wait_reason, blocked_on", f"id = ANY(ARRAY{spent})") == [("rate_limit", None)] * 3


def test_a_turn_whose_holder_has_to_wait_for_its_queue_goes_to_the_next_in_line(ledger):
    limits.declare_rules(ledger, [Rule("queue", "default", 2), at_once(1)])
    first, second, third = add_limited(ledger, 3, control=SLOT)
    others = add_limited(ledger, 2, control={"concurrency_key": "work:other"}, priority=5)
    assert [job.id for job in admit(ledger).jobs] == [first, others[0]]
    # Who takes the place of the first in the queue is nobody's of the first's line.
    limits.set_rule(ledger, Rule("queue", "default", 1))
    finish_limited(ledger, first)

    admit(ledger)

    assert fetch(ledger, second, "blocked_on") == "queue:default"
    assert (fetch(ledger, third, "state"), fetch(ledger, third, "blocked_on")) == ("pending", "work")


def test_who_was_promised_a_time_needs_no_place_in_the_line_that_formed_since(ledger):
    limits.declare_rules(ledger, [rate(1, 10), at_once(1)])
    first, promised = [*add_limited(ledger, 1, control=KEYED | SLOT), *add_limited(ledger, 1, control=KEYED)]
    ledger.execute("UPDATE switchyard.job SET concurrency_key = 'work' WHERE id = %s", [promised])
    assert [job.id for job in admit(ledger, 0, examine=1).jobs] == [first]
    finish_limited(ledger, first)
    assert admit(ledger, 1).jobs == []
    assert fetch(ledger, promised, "wait_reason") == "rate_limit"
    # Two that no rate counts: one runs, and one waits in line.
    runs, waits = add_limited(ledger, 2, control=SLOT)
    assert [job.id for job in admit(ledger, 2).jobs] == [runs]
    # Its end, before it has told anybody.
    ledger.execute(
        "UPDATE switchyard.job SET state = 'cancelled', finished_at = now(), token = NULL, lease_until = NULL WHERE id = %s",
        [runs],
    )
    come_due(ledger, 10)

    assert [job.id for job in admit(ledger, 10).jobs] == [promised]
    assert fetch(ledger, waits, "state") == "scheduled"


def test_who_was_promised_a_time_is_the_first_in_line_if_all_slots_are_taken_then(ledger):
    limits.declare_rules(ledger, [rate(1, 10), at_once(1)])
    first, promised = add_limited(ledger, 2, control=KEYED | SLOT)
    admit(ledger, 0)
    finish_limited(ledger, first)
    # Those that no rate counts: one runs, and two wait in line.
    runs, *waiting = add_limited(ledger, 3, control=SLOT)
    assert [job.id for job in admit(ledger, 1).jobs] == [runs]
    come_due(ledger, 10)
    assert admit(ledger, 10).jobs == []
    assert {fetch(ledger, id_, "blocked_on") for id_ in [promised, *waiting]} == {"work"}

    finish_limited(ledger, runs)

    assert [job.id for job in admit(ledger, 11).jobs] == [promised]
