"""The relay while a broker is down: if it is that of all that is due, the ledger is asked nothing, since looking would cost a look at every
row; else what was walked past once is not looked at each time.
"""

from __future__ import annotations

import pytest

from keeper import relay as relaying
from keeper.loop import Keeper
from keeper.relay import Passed, relay
from ledger import write
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


BACKLOG = 3_000
ROUTES = {"*": "redis", "other": "rabbitmq"}


class Rounds:
    """Rounds of one keeper's relay while Redis is down, each with the number of rows that it read."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.publisher = Down()
        self.passed = Passed()
        self.routes = Routes(ROUTES)

    def go(self):
        """Returns how many rows were relayed, and read."""
        carriers = {"redis": True, "rabbitmq": True, "postgres": False}
        with self.ledger.transaction():
            before = self._read()
            relayed = relay(
                self.ledger, self.publisher, own="redis", carriers=carriers, grace=30.0, routes=self.routes, passed=self.passed
            )
            return relayed, self._read() - before

    def _read(self):
        row = self.ledger.execute(
            "SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'switchyard.job'::regclass"
        ).fetchone()
        return int(row[0])


@pytest.fixture
def rounds(ledger):
    """A backlog of Redis, which is down, has been due for an hour."""
    for queue, broker in ROUTES.items():
        ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES (%s, %s)", [queue, broker])
    ledger.execute(
        "INSERT INTO switchyard.job (message_id, queue, actor, broker, payload, state, next_publish_at)"
        " SELECT gen_random_uuid(), 'default', 'work', 'redis', '{}', 'pending', now() - interval '1 hour' - i * interval '1 ms'"
        " FROM generate_series(1, %s) AS i",
        [BACKLOG],
    )
    ledger.execute("ANALYZE switchyard.job")
    return Rounds(ledger)


def due_elsewhere(ledger, count=1):
    return [add(ledger, queue="other", broker="rabbitmq", grace=0.0) for _ in range(count)]


@pytest.fixture
def long_rest(monkeypatch):
    """Everything is looked at again after a minute, however quick it was."""
    monkeypatch.setattr(relaying, "LONGEST", 60.0)
    monkeypatch.setattr(relaying, "SHARE", 1e-9)


def test_what_is_due_for_another_broker_is_found_without_walking_past_the_backlog_each_time(ledger, rounds, long_rest):
    first = due_elsewhere(ledger)
    relayed, read = rounds.go()
    assert (relayed, read >= BACKLOG) == (1, True)

    later = due_elsewhere(ledger)
    relayed, read = rounds.go()

    assert (relayed, read < 50) == (1, True)
    assert rounds.publisher.offered == first + later
    assert ledger.execute("SELECT count(*) FROM switchyard.job WHERE publish_count = 0").fetchone() == (BACKLOG,)


def test_many_that_are_due_behind_a_backlog_are_relayed_with_one_walk_past_it(ledger, rounds, long_rest, monkeypatch):
    monkeypatch.setattr(relaying, "CHUNK", 20)
    monkeypatch.setattr(write.relay_due, "__kwdefaults__", write.relay_due.__kwdefaults__ | {"limit": 20})
    late = due_elsewhere(ledger, 110)

    relayed, read = rounds.go()

    assert (relayed, sorted(rounds.publisher.offered)) == (110, late)
    assert read < 2 * BACKLOG


def test_everything_is_looked_at_as_soon_as_the_broker_is_back(ledger, rounds, long_rest):
    rounds.go()
    assert rounds.go()[1] < 50

    rounds.publisher.down = False

    assert rounds.go()[0] == BACKLOG


def test_everything_is_looked_at_as_soon_as_a_route_has_changed(ledger, rounds, long_rest):
    rounds.go()
    ledger.execute("INSERT INTO switchyard.route (queue, broker) VALUES ('default', 'rabbitmq')")

    rounds.routes.take({**ROUTES, "default": "rabbitmq"})

    assert rounds.go()[0] == BACKLOG


def test_everything_is_looked_at_now_and_then_for_what_was_committed_long_after_it_was_due(ledger, rounds, monkeypatch):
    monkeypatch.setattr(relaying, "LONGEST", 0.0)
    rounds.go()
    (late,) = due_elsewhere(ledger)
    ledger.execute("UPDATE switchyard.job SET next_publish_at = now() - interval '1 minute' WHERE id = %s", [late])

    assert rounds.go()[0] == 1


def test_what_was_due_a_moment_before_the_last_look_is_seen_by_the_next(ledger, rounds, long_rest):
    rounds.go()
    (late,) = due_elsewhere(ledger)
    ledger.execute("UPDATE switchyard.job SET next_publish_at = now() - interval '5 s' WHERE id = %s", [late])

    assert rounds.go()[0] == 1


def test_while_nothing_is_left_alone_each_look_is_at_everything(ledger, rounds, long_rest):
    rounds.publisher.down = False
    assert rounds.go()[0] == BACKLOG
    (late,) = due_elsewhere(ledger)
    ledger.execute("UPDATE switchyard.job SET next_publish_at = now() - interval '1 hour' WHERE id = %s", [late])

    assert rounds.go()[0] == 1


def test_a_queue_that_is_refused_is_walked_past_once(ledger, rounds, long_rest):
    rounds.publisher = Refusing({"redis": {"default"}})
    assert rounds.go()[1] >= BACKLOG

    assert rounds.go()[1] < 50

    rounds.publisher.refusing = {}
    assert rounds.go()[0] == BACKLOG


def test_everything_is_looked_at_now_and_then_although_there_is_always_more_to_relay(ledger, rounds, monkeypatch):
    for name, value in {"CHUNK": 5, "ROUND": 5, "LONGEST": 0.0}.items():
        monkeypatch.setattr(relaying, name, value)
    monkeypatch.setattr(write.relay_due, "__kwdefaults__", write.relay_due.__kwdefaults__ | {"limit": 5})
    due_elsewhere(ledger, 50)
    assert rounds.go()[0] == 5
    (late,) = due_elsewhere(ledger)
    ledger.execute("UPDATE switchyard.job SET next_publish_at = now() - interval '1 minute' WHERE id = %s", [late])

    assert rounds.go()[0] == 5

    assert late in rounds.publisher.offered
