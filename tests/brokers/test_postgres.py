"""The Postgres transport: when it rings, what the doorbell hears, and what both do while Postgres is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import monotonic

import psycopg
import pytest

from brokers.postgres import CHANNEL, DEBOUNCE, POLL, PostgresDoorbell, PostgresSender, PostgresTransport
from brokers.transport import ANY_QUEUE, TransportDown
from runtime.triggers import Outgoing
from settings import Settings
from tests.rig.postgres import PrivatePostgres
from tests.rig.waiting import wait_until

#: The socket time-out of a transport and some room for a slow machine, in seconds.
BOUND = 15.0


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    found = PrivatePostgres()
    found.start()
    yield found
    found.kill()


@pytest.fixture
def private_settings(server: PrivatePostgres, settings: Settings) -> Settings:
    """Settings for a server that may be killed; its database has no tables, and rings need none."""
    server.start()
    return settings.model_copy(update={"database_url": type(settings.database_url)(server.url)})


class Pair:
    """A sender and a doorbell that has heard its first ANY_QUEUE."""

    def __init__(self, settings: Settings) -> None:
        transport = PostgresTransport(settings)
        self.sender: PostgresSender = transport.sender()
        self.doorbell: PostgresDoorbell = transport.doorbell()
        assert self.doorbell.wait(10) == {ANY_QUEUE}

    def publish(self, *queues: str) -> None:
        assert self.sender.publish([Outgoing(1, queue, "x") for queue in queues]) == []

    def close(self) -> None:
        self.sender.close()
        self.doorbell.close()


@pytest.fixture
def pair(settings: Settings) -> Iterator[Pair]:
    found = Pair(settings)
    yield found
    found.close()


@pytest.fixture
def private_pair(private_settings: Settings) -> Iterator[Pair]:
    found = Pair(private_settings)
    yield found
    found.close()


@pytest.fixture
def listener(settings: Settings) -> Iterator[psycopg.Connection]:
    """A connection that counts what is really sent."""
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        yield connection


def _idle_until_nothing_is_held(pair: Pair) -> None:
    wait_until(lambda: pair.sender.idle() == [] and not pair.sender._held, 30, "the trailing rings are out", DEBOUNCE)


def test_a_ring_wakes_a_doorbell_at_once(pair: Pair) -> None:
    latencies = []
    for _ in range(5):
        heard: list[tuple[set[str], float]] = []
        thread = threading.Thread(target=lambda heard=heard: heard.append((pair.doorbell.wait(5), monotonic())))
        thread.start()
        # Long enough for the doorbell to block, and for the debounce of the last round to be over.
        thread.join(0.05)
        sent = monotonic()
        pair.publish("a")
        thread.join(10)
        assert heard[0][0] == {"a"}
        latencies.append(heard[0][1] - sent)
    # Unheard, each would take the five seconds of its wait.
    assert sorted(latencies)[2] < 2.0, latencies


def test_queues_that_ring_together_are_heard_together(pair: Pair) -> None:
    pair.publish("a", "b", "a", "c")
    assert pair.doorbell.wait(5) == {"a", "b", "c"}


def test_rings_in_a_burst_are_debounced_and_the_last_publish_is_followed_by_one(pair: Pair, listener: psycopg.Connection) -> None:
    started = monotonic()
    published = 0
    while monotonic() - started < 0.2:
        pair.publish("a")
        published += 1
    _idle_until_nothing_is_held(pair)
    took = monotonic() - started

    rings = len(list(listener.notifies(timeout=0.3)))
    assert published > 2 * rings
    assert 2 <= rings <= took / DEBOUNCE + 2


def test_what_was_published_within_the_debounce_rings_afterwards(pair: Pair) -> None:
    pair.publish("a")
    assert pair.doorbell.wait(5) == {"a"}
    pair.publish("a")
    _idle_until_nothing_is_held(pair)
    assert pair.doorbell.wait(5) == {"a"}


def test_a_flush_rings_at_once(pair: Pair) -> None:
    pair.publish("a")
    pair.publish("a")
    pair.sender.flush(1.0)
    assert not pair.sender._held


def test_many_rings_that_wait_are_one_answer(pair: Pair) -> None:
    for number in range(50):
        pair.publish(f"queue{number}")

    heard: set[str] = set()
    waits = 0
    while len(heard) < 50:
        heard |= pair.doorbell.wait(5)
        waits += 1
    # How Postgres deals them out is its own affair; it is not one by one.
    assert waits < 25


def test_an_empty_wait_takes_its_timeout(pair: Pair) -> None:
    for timeout in (0.0, 0.3):
        started = monotonic()
        assert pair.doorbell.wait(timeout) == set()
        assert timeout * 0.9 <= monotonic() - started < timeout + 3.0


def test_more_queues_than_a_payload_holds_ring_in_several(pair: Pair) -> None:
    queues = {f"{number:03d}_{'x' * 196}" for number in range(100)}
    pair.publish(*queues)
    heard: set[str] = set()
    deadline = monotonic() + 30
    while heard != queues:
        assert monotonic() < deadline, len(heard)
        heard |= pair.doorbell.wait(1)


def test_behind_pgbouncer_it_polls(settings: Settings) -> None:
    doorbell = PostgresTransport(settings.model_copy(update={"pgbouncer": True})).doorbell()
    assert doorbell.wait(30) == {ANY_QUEUE}

    started = monotonic()
    assert doorbell.wait(30) == {ANY_QUEUE}
    assert POLL * 0.9 <= monotonic() - started < POLL + 5.0
    # A look each time would be a busy one.
    assert doorbell.wait(0) == set()
    doorbell.close()


def test_behind_pgbouncer_its_own_process_rings_it_by_hand(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.postgres.POLL", 600.0)
    deaf = Pair(settings.model_copy(update={"pgbouncer": True}))

    deaf.publish("a", "b")

    assert deaf.doorbell.wait(60) == {"a", "b"}
    deaf.close()


def test_while_postgres_is_away_the_doorbell_waits_and_the_sender_says_so(private_pair: Pair, server: PrivatePostgres) -> None:
    server.kill()

    with pytest.raises(TransportDown) as refused:
        private_pair.publish("a")
    assert refused.value.unpublished == []
    for timeout in (0.5, 0.5):
        started = monotonic()
        assert private_pair.doorbell.wait(timeout) == set()
        assert timeout * 0.9 <= monotonic() - started < timeout + 4.0


def test_after_an_outage_the_doorbell_says_that_it_missed_something_and_hears_again(
    private_pair: Pair, server: PrivatePostgres
) -> None:
    server.kill()
    private_pair.doorbell.wait(0.3)
    server.start()

    assert wait_until(lambda: private_pair.doorbell.wait(1.0), 30) == {ANY_QUEUE}
    wait_until(lambda: _published(private_pair, "a"), 30)
    assert wait_until(lambda: private_pair.doorbell.wait(1.0), 30) == {"a"}


def test_a_ring_that_failed_is_rung_by_the_next_call(private_pair: Pair, server: PrivatePostgres) -> None:
    server.kill()
    with pytest.raises(TransportDown):
        private_pair.publish("lost")
    server.start()
    assert wait_until(lambda: private_pair.doorbell.wait(1.0), 30) == {ANY_QUEUE}

    wait_until(lambda: private_pair.sender.flush(1.0) == [], 30)

    assert wait_until(lambda: private_pair.doorbell.wait(1.0), 30) == {"lost"}


def test_a_frozen_server_holds_nobody_longer_than_the_time_out(private_pair: Pair, server: PrivatePostgres) -> None:
    private_pair.publish("warm")
    assert private_pair.doorbell.wait(5) == {"warm"}
    server.freeze()
    try:
        started = monotonic()
        with pytest.raises(TransportDown):
            private_pair.publish("a")
        assert monotonic() - started < BOUND
        started = monotonic()
        assert private_pair.doorbell.wait(0.5) == set()
        assert monotonic() - started < 0.5 + BOUND
    finally:
        server.thaw()
    wait_until(lambda: _published(private_pair, "a"), 30)
    assert wait_until(lambda: private_pair.doorbell.wait(1.0), 30)


def _published(pair: Pair, queue: str) -> bool:
    try:
        pair.publish(queue)
    except TransportDown:
        return False
    return True


def test_closing_twice_is_quiet_and_ends_a_wait_in_an_outage(private_settings: Settings, server: PrivatePostgres) -> None:
    server.kill()
    transport = PostgresTransport(private_settings)
    doorbell = transport.doorbell()
    thread = threading.Thread(target=lambda: doorbell.wait(30))
    thread.start()
    thread.join(0.2)
    doorbell.close()
    doorbell.close()
    thread.join(BOUND)
    assert not thread.is_alive()


def test_depth_counts_the_pending_rows_that_are_its_own(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    row = """
        INSERT INTO switchyard.job (message_id, queue, actor, state, payload, broker, next_publish_at)
        SELECT gen_random_uuid(), %s, 'x', %s, '{"args": [], "kwargs": {}}', %s, now() FROM generate_series(1, %s)
    """
    with psycopg.connect(url) as connection:
        for queue, state, broker, number in [
            ("a", "pending", "postgres", 3),
            ("a", "scheduled", "postgres", 2),
            ("a", "pending", "redis", 4),
            ("b", "pending", "postgres", 1),
        ]:
            connection.execute(row, (queue, state, broker, number))

    transport = PostgresTransport(settings)
    assert transport.depth(["a", "b", "c"]) == {"a": 3, "b": 1, "c": 0}
    transport.close()
