"""Pauses: what is paused is parked, what hides behind it is not, and what is paused no more goes on even if nobody else sees to it."""

from __future__ import annotations

from time import monotonic

import pytest

from keeper import look, pauses, strays, unknown
from keeper.duty import Keeping
from keeper.relay import relay
from ledger import control, routes, write
from ledger.routes import Place
from ledger.sql import SQL
from tests.keeper.conftest import Broker
from tests.ledger.factory import add, claim_next, fetch, relay_due, row

EVERYWHERE = {"postgres": False, "redis": True, "rabbitmq": True}


@pytest.fixture
def keeping(node):
    return Keeping(node, Broker())


def sweep(ledger, keeping):
    look.sweep(ledger, keeping)
    return pauses.sweep(ledger, keeping)


def parked(ledger, *ids):
    return [(fetch(ledger, id_, "wait_reason"), fetch(ledger, id_, "next_publish_at")) == ("paused", None) for id_ in ids]


def test_a_backlog_is_parked_wherever_it_lies_and_nothing_else(ledger, keeping):
    ids = [add(ledger), add(ledger, broker="redis", grace=30.0), add(ledger, priority=5)]
    others = [add(ledger, queue="other"), add(ledger, delay=60.0)]
    control.pause(ledger, "default", "*")

    assert sweep(ledger, keeping) is None

    assert parked(ledger, *ids) == [True] * 3
    assert parked(ledger, *others) == [False] * 2
    assert {fetch(ledger, id_, "state") for id_ in ids} == {"pending"}


def test_a_long_backlog_is_parked_in_chunks_and_the_next_turn_comes_at_once(ledger, keeping, monkeypatch):
    monkeypatch.setattr(pauses, "CHUNK", 2)
    monkeypatch.setattr(pauses, "ROUND", 4)
    monkeypatch.setattr(control.park_place, "__defaults__", (2,))
    ids = [add(ledger) for _ in range(5)]
    control.pause(ledger, "*", "*")

    assert sweep(ledger, keeping) == 0.0
    assert sum(parked(ledger, *ids)) == 4
    keeping.memory["pauses"].look_at = 0.0
    assert sweep(ledger, keeping) is None

    assert sum(parked(ledger, *ids)) == 5


def test_what_waits_for_a_worker_that_knows_it_is_parked_and_neither_marked_nor_buried(ledger, keeping):
    id_ = add(ledger, actor="stranger")
    ledger.execute("UPDATE switchyard.job SET wait_reason = 'unknown_actor', wait_since = '2000-01-01'")
    control.pause(ledger, "*", "stranger")

    sweep(ledger, keeping)
    unknown.mark(ledger, keeping.node.counters)
    unknown.settle(ledger, 60.0)

    assert parked(ledger, id_) == [True]


def test_looks_become_rarer_while_they_find_nothing_and_a_new_pause_is_looked_into_at_once(ledger, keeping, monkeypatch):
    looks = []
    real = routes.pending_places
    monkeypatch.setattr(routes, "pending_places", lambda connection: looks.append(1) or real(connection))
    control.pause(ledger, "other", "*")

    for _ in range(3):
        sweep(ledger, keeping)
    assert len(looks) == 1
    assert keeping.memory["pauses"].look_at > monotonic()

    control.pause(ledger, "default", "*")
    id_ = add(ledger)
    sweep(ledger, keeping)

    assert parked(ledger, id_) == [True]


def test_a_resume_that_died_midway_is_finished(ledger, keeping):
    ids = [add(ledger), add(ledger, broker="redis", grace=30.0)]
    control.pause(ledger, "*", "*")
    control.pause(ledger, "other", "*")
    still = add(ledger, queue="other")
    sweep(ledger, keeping)
    assert parked(ledger, *ids, still) == [True] * 3
    control.resume(ledger, "*", "*")

    sweep(ledger, keeping)

    assert parked(ledger, *ids, still) == [False, False, True]
    assert relay(ledger, keeping.broker.publisher, own="redis", carriers=EVERYWHERE, grace=30.0) == 2
    assert sorted(keeping.broker.publisher.offered) == ids


def test_the_relay_parks_what_comes_due_and_publishes_nothing_of_it(ledger, keeping):
    ids = [add(ledger, broker="redis", grace=0.0) for _ in range(3)]
    other = add(ledger, broker="redis", grace=0.0, actor="other")
    control.pause(ledger, "*", "work")

    assert relay(ledger, keeping.broker.publisher, own="redis", carriers=EVERYWHERE, grace=30.0) == 4

    assert keeping.broker.publisher.offered == [other]
    assert parked(ledger, *ids) == [True] * 3
    assert relay_due(ledger, "redis") == []


def test_parked_rows_lie_nowhere_and_are_published_at_the_route_of_the_day_they_go_on(ledger, keeping):
    id_ = add(ledger, broker="redis", grace=30.0)
    control.pause(ledger, "default", "*")
    sweep(ledger, keeping)
    routes.declare(ledger, {"*": "rabbitmq"}, 30.0, entering=True)
    routes.settle(ledger, settled=False)

    look.sweep(ledger, keeping)
    strays.sweep(ledger, keeping)
    assert (parked(ledger, id_), fetch(ledger, id_, "broker"), keeping.broker.publisher.offered) == ([True], "redis", [])
    assert routes.pending_places(ledger) == []
    assert routes.move_pending(ledger, Place("redis", "default"), "rabbitmq", carries=True, grace=30.0) == []

    control.resume(ledger, "default", "*")
    sweep(ledger, keeping)
    relay(ledger, keeping.broker.publisher, own="redis", carriers=EVERYWHERE, grace=30.0)

    stored = row(ledger, id_)
    assert (stored["broker"], stored["wait_reason"], keeping.broker.publisher.offered) == ("rabbitmq", None, [id_])


def test_a_claim_passes_by_what_is_paused_and_not_parked_yet(ledger):
    first, second = add(ledger), add(ledger, actor="other")
    control.pause(ledger, "*", "work")

    assert [job.id for job in claim_next(ledger, 5, actors=["work", "other"])] == [second]
    assert fetch(ledger, first, "state") == "pending"


def test_jobs_go_on_by_priority_and_age_across_actors_a_chunk_at_a_time(ledger, keeping):
    wanted = [
        add(ledger, actor=actor, priority=priority)
        for priority, actor in [(1, "a"), (1, "b"), (1, "a"), (2, "b"), (2, "a")]
    ]  # fmt: skip
    last = add(ledger, actor="b", priority=3)
    control.pause(ledger, "*", "*")
    sweep(ledger, keeping)
    control.resume(ledger, "*", "*")

    found = []
    while control.unpark(ledger, 2):
        found.append({id_ for id_ in [*wanted, last] if fetch(ledger, id_, "wait_reason") is None})

    assert found == [set(wanted[:2]), set(wanted[:4]), {*wanted, last}]


def test_a_pause_that_was_lifted_meanwhile_parks_nothing_and_one_begun_meanwhile_unparks_nothing(ledger, keeping):
    id_ = add(ledger)
    assert control.park_place(ledger, "postgres", "default", "*") == 0
    control.park_rows(ledger, [id_])
    assert parked(ledger, id_) == [False]

    control.pause(ledger, "default", "*")
    assert control.park_place(ledger, "postgres", "default", "*") == 1
    assert control.unpark(ledger) == 0
    chunk = {"queues": ["default"], "actors": ["work"], "limit": 10}
    assert ledger.execute(SQL["unpark"], chunk).fetchall() == []


def test_whoever_looked_a_moment_ago_leaves_what_is_parked_alone(ledger, keeping):
    stranger, stray = add(ledger, broker="redis", grace=30.0, actor="stranger"), add(ledger, broker="redis", grace=30.0)
    control.pause(ledger, "*", "*")
    sweep(ledger, keeping)

    write.postpone_unknown(ledger, [stranger], ["work"], 5.0)
    assert routes.reroute(ledger, [stray], "rabbitmq", carries=True, grace=30.0) == []
    write.make_due(ledger, [stray, stranger])

    assert parked(ledger, stranger, stray) == [True, True]
