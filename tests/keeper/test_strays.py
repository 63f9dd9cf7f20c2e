"""Strays: what lies at a broker that is its queue's route no more is moved once, by a keeper that reaches the new one."""

from __future__ import annotations

import pytest

from keeper import look, strays
from keeper.duty import Keeping
from ledger import routes
from ledger.routes import Place
from tests.keeper.conftest import Broker
from tests.ledger.factory import add, fetch


@pytest.fixture
def keeping(node):
    return Keeping(node, Broker())


def route(ledger, declared):
    routes.declare(ledger, declared, 30.0, entering=True)
    routes.settle(ledger, settled=False)


def sweep(ledger, keeping):
    look.sweep(ledger, keeping)
    strays.sweep(ledger, keeping)


def test_strays_are_published_at_the_route_once_and_the_fetchers_follow(ledger, keeping, monkeypatch):
    monkeypatch.setattr(strays, "CHUNK", 2)
    monkeypatch.setattr(routes, "CHUNK", 2)
    stay = add(ledger, broker="rabbitmq", queue="exports", grace=30.0)
    ids = [add(ledger, broker="redis", grace=30.0) for _ in range(5)] + [add(ledger)]
    route(ledger, {"*": "rabbitmq"})

    sweep(ledger, keeping)
    keeping.strays_at = 0.0
    sweep(ledger, keeping)

    assert sorted(keeping.broker.publisher.offered) == ids
    assert {fetch(ledger, id_, "broker") for id_ in [stay, *ids]} == {"rabbitmq"}
    assert keeping.broker.followed == [[], []]
    assert keeping.node.counters.snapshot()["moved"] == 6


def test_while_the_new_broker_is_down_they_stay_and_are_fetched_from_the_old_one(ledger, keeping, monkeypatch):
    id_ = add(ledger, broker="redis", grace=30.0)
    route(ledger, {"*": "rabbitmq"})
    monkeypatch.setattr(keeping.broker.publisher, "is_open", lambda broker: broker == "rabbitmq")

    sweep(ledger, keeping)

    assert fetch(ledger, id_, "broker") == "redis"
    assert keeping.broker.followed == [[Place("redis", "default")]]


def test_what_the_new_broker_refuses_stays_and_the_others_move(ledger, keeping, monkeypatch):
    stays, moves = add(ledger, broker="redis", queue="bad", grace=30.0), add(ledger, broker="redis", grace=30.0)
    route(ledger, {"*": "rabbitmq"})
    monkeypatch.setattr(keeping.broker.publisher, "refused", lambda broker: {"bad"} if broker == "rabbitmq" else set())

    sweep(ledger, keeping)

    assert (fetch(ledger, stays, "broker"), fetch(ledger, moves, "broker")) == ("redis", "rabbitmq")
    assert keeping.broker.publisher.offered == [moves]
    assert keeping.broker.followed == [[Place("redis", "bad")]]


def test_nothing_moves_before_a_worker_has_declared_anything(ledger, keeping):
    id_ = add(ledger, broker="redis", grace=30.0)

    sweep(ledger, keeping)

    assert fetch(ledger, id_, "broker") == "redis"


def test_looks_become_rarer_while_they_find_nothing_and_a_new_route_is_looked_into_at_once(ledger, keeping):
    route(ledger, {"*": "redis"})
    sweep(ledger, keeping)
    sweep(ledger, keeping)
    assert len(keeping.broker.followed) == 1
    id_ = add(ledger, broker="redis", grace=30.0)

    route(ledger, {"*": "rabbitmq"})
    sweep(ledger, keeping)

    assert fetch(ledger, id_, "broker") == "rabbitmq"
