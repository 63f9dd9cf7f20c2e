"""Routes: what entered last wins and stays, whoever else says what however often; an operator's word; and rows that move once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import routes
from ledger.routes import EVERY_QUEUE, Place
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import add, claim, claim_next, fetch

LEASE = 30.0
START = datetime(2030, 1, 1, tzinfo=UTC)


class Fleet:
    """Processes that declare, on a clock of the test's own."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.seconds = 0.0
        self.entered = set()

    @property
    def now(self):
        return START + timedelta(seconds=self.seconds)

    def beat(self, process, declared, *, settled=True):
        """One beat of a process; its first one enters. A plain broker stands for every queue."""
        declared = declared if isinstance(declared, dict) else {EVERY_QUEUE: declared}
        routes.declare(self.ledger, declared, LEASE, entering=process not in self.entered, now=self.now)
        self.entered.add(process)
        return routes.settle(self.ledger, settled=settled, now=self.now)

    def route(self, queue=EVERY_QUEUE):
        found = {route.queue: route.broker for route in routes.routes(self.ledger)}
        return found.get(queue, found.get(EVERY_QUEUE))

    def version(self, queue=EVERY_QUEUE):
        return next(route.version for route in routes.routes(self.ledger) if route.queue == queue)


@pytest.fixture
def fleet(ledger):
    return Fleet(ledger)


def test_the_value_that_entered_last_is_the_route_and_the_old_fleet_changes_nothing(fleet):
    assert fleet.beat("old 1", "redis") == [(EVERY_QUEUE, "redis")]
    assert fleet.beat("new 1", "rabbitmq") == [(EVERY_QUEUE, "rabbitmq")]

    for _ in range(10):
        fleet.seconds += 10
        assert fleet.beat("old 1", "redis") == []
        assert fleet.beat("old 2", "redis") == []
        assert fleet.beat("new 1", "rabbitmq") == []

    assert (fleet.route(), fleet.version()) == ("rabbitmq", 2)


def test_the_old_value_wins_again_when_nobody_has_declared_the_newer_one_for_a_lease(fleet):
    fleet.beat("old", "redis")
    fleet.beat("new", "rabbitmq")

    fleet.seconds += LEASE - 1
    assert fleet.beat("old", "redis") == []
    fleet.seconds += 2
    assert fleet.beat("old", "redis") == [(EVERY_QUEUE, "redis")]


def test_switching_back_works_once_the_old_value_was_gone_for_a_lease(fleet):
    fleet.beat("old", "redis")
    fleet.beat("new", "rabbitmq")
    for _ in range(4):
        fleet.seconds += 10
        fleet.beat("new", "rabbitmq")

    assert fleet.beat("old again", "redis") == [(EVERY_QUEUE, "redis")]
    assert fleet.beat("new", "rabbitmq") == []


def test_a_restart_within_the_old_fleet_is_no_switch_back(fleet):
    fleet.beat("old 1", "redis")
    fleet.beat("new", "rabbitmq")

    fleet.seconds += 10
    assert fleet.beat("old 2, just started", "redis") == []
    assert fleet.route() == "rabbitmq"


def test_of_three_fleets_the_last_wins_and_hands_back_to_the_one_before(fleet):
    for process, broker in (("a", "redis"), ("b", "rabbitmq"), ("c", "postgres")):
        fleet.seconds += 1
        fleet.beat(process, broker)
    changes = []
    for _ in range(4):
        fleet.seconds += 10
        changes += fleet.beat("a", "redis") + fleet.beat("b", "rabbitmq")

    assert changes == [(EVERY_QUEUE, "rabbitmq")]


def test_after_an_outage_whoever_comes_first_takes_nothing(fleet):
    fleet.beat("old", {EVERY_QUEUE: "redis"})
    fleet.beat("new", {EVERY_QUEUE: "rabbitmq", "exports": "postgres"})
    fleet.seconds += 10 * LEASE

    assert fleet.beat("old", {EVERY_QUEUE: "redis"}, settled=False) == []
    assert fleet.beat("new", {EVERY_QUEUE: "rabbitmq", "exports": "postgres"}, settled=False) == []
    fleet.seconds += 1

    assert fleet.beat("old", {EVERY_QUEUE: "redis"}) == []
    assert (fleet.route(), fleet.route("exports")) == ("rabbitmq", "postgres")


def test_a_named_queue_has_the_broker_of_the_others_again_when_nobody_names_it(fleet):
    fleet.beat("a", {EVERY_QUEUE: "redis", "exports": "rabbitmq"})
    fleet.beat("b", {EVERY_QUEUE: "redis"})
    assert (fleet.route("exports"), fleet.route("other")) == ("rabbitmq", "redis")

    fleet.seconds += LEASE + 1
    assert fleet.beat("b", {EVERY_QUEUE: "redis"}) == [("exports", None)]
    assert fleet.route("exports") == "redis"


def test_a_rivals_decision_in_between_is_not_overwritten(fleet, connect):
    fleet.beat("old", "redis")
    rival = Fleet(connect())
    rival.seconds = 1.0
    with rival.ledger.transaction():
        routes.declare(rival.ledger, {EVERY_QUEUE: "rabbitmq"}, LEASE, entering=True, now=rival.now)
    seen = routes.routes(fleet.ledger)[0]
    assert rival.beat("new", "rabbitmq") == [(EVERY_QUEUE, "rabbitmq")]

    assert not routes.decide(fleet.ledger, seen, EVERY_QUEUE, "postgres", "redis")
    assert fleet.route() == "rabbitmq"


def decide(fleet, old, new, queue=EVERY_QUEUE):
    seen = next((route for route in routes.routes(fleet.ledger) if route.queue == queue), None)
    assert routes.decide(fleet.ledger, seen, queue, new, old)


@pytest.fixture
def present(fleet):
    """The same on the database's clock, by which operators decide."""
    fleet.seconds = (datetime.now(UTC) - START).total_seconds()
    return fleet


def test_an_operators_word_beats_what_processes_go_on_saying_and_start_with(present):
    present.beat("old 1", "redis")
    present.beat("other", "postgres")
    present.beat("old 2", "redis")
    decide(present, "postgres", "rabbitmq")

    for number in range(4):
        present.seconds += 40
        assert present.beat("old 1", "redis") == []
        assert present.beat(f"old, started {number}", "redis") == []
        assert present.beat(f"other, started {number}", "postgres") == []
    assert present.route() == "rabbitmq"


def test_an_operators_word_becomes_a_route_like_any_other_when_processes_follow_it(present):
    present.beat("old", "redis")
    decide(present, "redis", "rabbitmq")
    present.seconds += 1
    present.beat("new", "rabbitmq")

    assert routes.routes(present.ledger)[0].overruled == []
    assert present.beat("old", "redis") == []
    assert present.route() == "rabbitmq"
    # And as such it ends: nobody declares it for a lease.
    present.seconds += LEASE + 1
    assert present.beat("old", "redis") == [(EVERY_QUEUE, "redis")]


def test_an_operators_word_outlives_processes_that_declared_the_same_and_have_just_ended(present):
    present.beat("old, ends now", "redis")
    present.seconds += 1
    present.beat("new", "rabbitmq")
    decide(present, "rabbitmq", "redis")

    # Within what would have been left of the lease of the one that ended, and long after.
    for seconds in (1, 5, LEASE, LEASE):
        present.seconds += seconds
        assert present.beat("new", "rabbitmq") == []
    assert (present.route(), routes.routes(present.ledger)[0].overruled) == ("redis", ["rabbitmq"])
    # Once somebody follows, it is a route like any other.
    present.beat("back", "redis")
    assert (present.route(), routes.routes(present.ledger)[0].overruled) == ("redis", [])


def test_an_operators_word_for_what_a_fleet_declares_already_is_not_taken_back_by_the_other(present):
    present.beat("b", "rabbitmq")
    present.seconds += 1
    present.beat("a", "redis")

    decide(present, "redis", "rabbitmq")
    for _ in range(3):
        present.seconds += 5
        present.beat("b", "rabbitmq")
        present.beat("a", "redis")

    assert present.route() == "rabbitmq"


def test_a_value_that_enters_after_an_operators_word_wins(present):
    present.beat("old", "redis")
    decide(present, "redis", "rabbitmq")
    present.seconds += 1

    assert present.beat("third", "postgres") == [(EVERY_QUEUE, "postgres")]


def test_an_operator_may_decide_before_any_process_has_declared_anything(present):
    decide(present, "redis", "rabbitmq")

    assert present.beat("old", "redis") == []
    assert present.route() == "rabbitmq"


BROKERS = ["redis", "rabbitmq", "postgres"]
STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["beat", "beat", "beat", "restart", "leave"]), st.floats(0, LEASE / 3)),
    max_size=60,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(brokers=st.lists(st.sampled_from(BROKERS), min_size=6, max_size=6), steps=STEPS)
def test_whatever_the_order_of_beats_each_entry_changes_the_route_once_at_most(connect, brokers, steps):
    """Six processes that never change their minds, beating, restarting and leaving in any order: the route changes once per value that
    entered, and once per value that was given up by all. Nothing is ever taken in turns."""
    ledger = connect()
    ledger.execute("TRUNCATE switchyard.route, switchyard.declaration")
    fleet = Fleet(ledger)
    last_said: dict[str, float] = {}
    incarnation = Counter()
    changes, causes = 0, 0
    for process, what, pause in steps:
        fleet.seconds += pause
        broker = brokers[process]
        if what == "leave":
            continue
        if what == "restart":
            incarnation[process] += 1
        for said in [name for name, at in last_said.items() if at + LEASE < fleet.seconds]:
            # Given up by all who declared it: from now on another may take its place, and it may enter anew.
            del last_said[said]
            causes += 1
        if broker not in last_said:
            causes += 1
        changed = fleet.beat((process, incarnation[process]), broker)
        last_said[broker] = fleet.seconds
        assert len(changed) <= 1
        changes += len(changed)
        assert fleet.route() in last_said or fleet.version() == changes
    assert changes <= causes
    # All say it again, several times, in both orders: nothing changes any more.
    living = [number for number in range(6) if (number, incarnation[number]) in fleet.entered]
    for process in living:
        fleet.beat((process, incarnation[process]), brokers[process])
    before = fleet.version() if living else 0
    for process in [*living, *reversed(living), *living]:
        fleet.seconds += 0.5
        assert fleet.beat((process, incarnation[process]), brokers[process]) == []
    assert not living or fleet.version() == before


def test_pending_places_are_found_whatever_else_waits(ledger):
    for broker, queue, count in (
        ("redis", "a", 3),
        ("redis", "b", 1),
        ("rabbitmq", "a", 2),
        ("postgres", "a", 2),
        ("postgres", "z", 1),
    ):
        for _ in range(count):
            add(ledger, broker=broker, queue=queue, grace=None if broker == "postgres" else 30.0)
    claim(ledger, add(ledger, broker="rabbitmq", queue="running", grace=30.0))
    add(ledger, broker="rabbitmq", queue="scheduled", delay=60.0)

    places = routes.pending_places(ledger)

    assert sorted((place.broker, place.queue) for place in places) == [
        ("postgres", "a"), ("postgres", "z"), ("rabbitmq", "a"), ("redis", "a"), ("redis", "b"),
    ]  # fmt: skip
    assert len(places) == 5


@pytest.mark.parametrize(("old", "new"), [("redis", "rabbitmq"), ("redis", "postgres"), ("postgres", "redis")])
def test_pending_rows_move_once_to_the_route_and_nothing_else_does(fleet, ledger, old, new):
    grace = None if old == "postgres" else 30.0
    fleet.beat("new", {EVERY_QUEUE: old, "moved": new})
    ids = [add(ledger, broker=old, queue="moved", grace=grace) for _ in range(5)]
    scheduled, other = add(ledger, broker=old, queue="moved", delay=60.0), add(ledger, broker=old, grace=grace)

    def move(limit=3):
        return [
            job.id
            for job in routes.move_pending(ledger, Place(old, "moved"), new, carries=new != "postgres", grace=30.0, limit=limit)
        ]

    assert sorted([*move(), *move()]) == ids
    assert move() == []
    assert {fetch(ledger, id_, "broker") for id_ in ids} == {new}
    assert {fetch(ledger, id_, "next_publish_at") is None for id_ in ids} == {new == "postgres"}
    assert (fetch(ledger, scheduled, "state"), fetch(ledger, other, "broker")) == ("scheduled", old)
    if new == "postgres":
        assert sorted(job.id for job in claim_next(ledger, 10, queue="moved")) == ids


def test_a_route_that_an_operator_decides_while_a_beat_settles_it_stays_decided(fleet, connect):
    fleet.beat("old", "redis")
    operator, onlooker = connect(), connect()
    with operator.transaction():
        decide(Fleet(operator), "redis", "postgres")
        # It has read the route as it was, and waits for the row.
        beating = Meanwhile(lambda: fleet.beat("new", "rabbitmq"))
        wait_for_lock(onlooker, fleet.ledger.info.backend_pid)

    assert beating.result() == []
    assert (fleet.route(), routes.routes(fleet.ledger)[0].overruled) == ("postgres", ["redis"])


def test_rows_do_not_move_by_a_route_of_yesterday(fleet, ledger):
    fleet.beat("a", "redis")
    id_ = add(ledger, broker="redis", grace=30.0)

    # This caller still thinks that rabbitmq is the route.
    assert routes.move_pending(ledger, Place("redis", "default"), "rabbitmq", carries=True, grace=30.0) == []
    assert fetch(ledger, id_, "broker") == "redis"


def test_what_a_sender_wrote_for_the_old_broker_belongs_to_the_new_one_unless_it_runs(ledger):
    waiting, running = (add(ledger, broker="redis", grace=30.0) for _ in range(2))
    claim(ledger, running)

    assert [job.id for job in routes.reroute(ledger, [running, waiting], "postgres", carries=False, grace=30.0)] == [waiting]

    assert (fetch(ledger, waiting, "broker"), fetch(ledger, waiting, "next_publish_at")) == ("postgres", None)
    assert fetch(ledger, running, "broker") == "redis"
