"""The relay while the broker of all that is due is down: it asks the ledger nothing, since looking would cost a look at every row."""

from __future__ import annotations

import pytest

from keeper.loop import Keeper
from ledger.database import BoundedConnection
from ledger.sql import SQL
from runtime.routes import Routes
from tests.keeper.conftest import Broker, Publisher
from tests.ledger.factory import add, fetch
from tests.rig.waiting import wait_until


class Down(Publisher):
    """Its Redis is down."""

    down = True

    def is_open(self, broker):
        return self.down and broker == "redis"


class Refusing(Publisher):
    """Its brokers refuse these queues."""

    def __init__(self, refusing):
        super().__init__()
        self.refusing = refusing

    def refused(self, broker):
        return frozenset(self.refusing.get(broker, ()))


@pytest.fixture
def executed(monkeypatch):
    """The names of the statements that the keeper executes."""
    names, seen = {text: name for name, text in SQL.items()}, []
    real = BoundedConnection.execute

    def execute(connection, query, *arguments, **options):
        seen.append(names.get(query, str(query)))
        return real(connection, query, *arguments, **options)

    monkeypatch.setattr(BoundedConnection, "execute", execute)
    return seen


def test_what_is_due_for_a_broker_that_is_down_is_not_looked_for_and_is_relayed_once_it_is_back(node, ledger, executed):
    ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis')")
    id_ = add(ledger, broker="redis", grace=0.0)
    broker = Broker()
    broker.publisher, broker.routes = Down(), Routes({"*": "redis"})
    keeper = Keeper(broker)
    keeper.start(node)
    try:
        wait_until(lambda: executed.count("next_due") >= 3, 30, "it looks whether something is due")
        assert "relay_due" not in executed
        assert broker.publisher.offered == []

        broker.publisher.down = False
        wait_until(lambda: broker.publisher.offered == [id_], 30, "it is published")
    finally:
        keeper.stop()
    assert fetch(ledger, id_, "publish_count") == 1


def test_what_is_due_for_another_broker_goes_on(node, ledger):
    ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis'), ('other', 'rabbitmq')")
    down, up = add(ledger, broker="redis", grace=0.0), add(ledger, queue="other", broker="rabbitmq", grace=0.0)
    broker = Broker()
    broker.publisher, broker.routes = Down(), Routes({"*": "redis", "other": "rabbitmq"})
    keeper = Keeper(broker)
    keeper.start(node)
    try:
        wait_until(lambda: broker.publisher.offered == [up], 30, "it is published")
    finally:
        keeper.stop()
    assert fetch(ledger, down, "publish_count") == 0


def test_what_is_due_in_a_queue_that_its_broker_refuses_stays_untouched_and_the_others_go_on(node, ledger):
    ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis'), ('elsewhere', 'rabbitmq')")
    bad, good = add(ledger, queue="bad", broker="redis", grace=0.0), add(ledger, broker="redis", grace=0.0)
    # Redis refuses the one, which goes to RabbitMQ, and RabbitMQ the other, which goes to Redis.
    one, other = (add(ledger, queue=queue, broker="redis", grace=0.0) for queue in ("elsewhere", "here"))
    broker = Broker()
    broker.publisher = publisher = Refusing({"redis": {"bad", "elsewhere"}, "rabbitmq": {"here"}})
    broker.routes = Routes({"*": "redis", "elsewhere": "rabbitmq"})
    keeper = Keeper(broker)
    keeper.start(node)
    try:
        wait_until(lambda: sorted(publisher.offered) == [good, one, other], 30, "they are published")
        assert fetch(ledger, bad, "publish_count") == 0

        publisher.refusing = {}
        wait_until(lambda: bad in publisher.offered, 30, "it is published")
    finally:
        keeper.stop()
    assert fetch(ledger, bad, "publish_count") == 1
