"""What every inspector owes (``brokers/transport.py``): an epoch that ends with the triggers, and an answer to which of them are gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pika
import pytest
import redis

import brokers
from brokers.amqp import queue_name
from brokers.transport import Inspector, Mark, Receiver, Sent, Transport, TransportDown, Trigger, band
from runtime.triggers import Outgoing
from settings import Settings
from tests.brokers.conftest import CARRYING, Ends, fetch_all
from tests.rig.rabbitmq import remove_queues
from tests.rig.redis import PrivateRedis
from tests.rig.service import PrivateServer
from tests.rig.waiting import wait_until

on_carrying = pytest.mark.parametrize("broker_name", CARRYING)
QUEUES = ["a", "b"]
Server = TypeVar("Server", bound=PrivateServer)


@pytest.fixture
def inspector(ends: Ends) -> Iterator[Inspector]:
    found = ends.transport.inspector()
    yield found
    found.close()


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def asked(transport: Transport, queue: str = "a") -> str:
    """The queue to ask about: none where the broker has one epoch for all."""
    return queue if transport.epoch_per_queue else ""


@on_carrying
def test_an_epoch_is_named_once_and_stays(ends: Ends, inspector: Inspector) -> None:
    queue = asked(ends.transport)
    other = ends.transport.inspector()

    first = inspector.epoch(queue, None)

    ends.sender().publish([Outgoing(1, "a", "x")])
    fetch_all(ends.receiver(), ["a"], 1)
    assert first
    assert inspector.epoch(queue, first) == first
    assert other.epoch(queue, first) == first
    inspector.close()
    assert inspector.epoch(queue, first) == first
    other.close()


def test_of_two_who_find_no_epoch_in_redis_one_names_it(make_ends, settings: Settings, redis_url: str, monkeypatch) -> None:
    ends = make_ends(settings.model_copy(update={"broker": "redis", "redis_url": type(settings.redis_url)(redis_url)}))
    slow, quick = ends.transport.inspector(), ends.transport.inspector()
    named, one = [], slow._link.one

    def overtaken(command):
        if command[0] == "SET":
            # It has seen that there is none.
            named.append(quick.epoch("", None))
        return one(command)

    monkeypatch.setattr(slow._link, "one", overtaken)
    try:
        assert [slow.epoch("", None)] == named
        assert quick.epoch("", named[0]) == named[0]
    finally:
        slow.close()
        quick.close()


@on_carrying
def test_another_epoch_than_the_ledgers_is_told(ends: Ends, inspector: Inspector) -> None:
    queue = asked(ends.transport)
    inspector.epoch(queue, None)

    now = inspector.epoch(queue, "of-another-server")

    assert now != "of-another-server"
    assert inspector.epoch(queue, now) == now


def test_each_queue_of_rabbitmq_has_an_epoch_that_ends_with_it(make_ends, settings: Settings, rabbitmq_url: str) -> None:
    ends = make_ends(settings.model_copy(update={"broker": "rabbitmq", "rabbitmq_url": type(settings.redis_url)(rabbitmq_url)}))
    inspector = ends.transport.inspector()
    first, other = inspector.epoch("a", None), inspector.epoch("b", None)

    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    channel = connection.channel()
    channel.queue_delete(queue_name(settings.broker_prefix, "a"))
    # Somebody else makes the queue again before the keeper looks.
    channel.queue_declare(queue_name(settings.broker_prefix, "a"), durable=True, arguments={"x-max-priority": 10})

    second = inspector.epoch("a", first)
    assert second != first
    assert inspector.epoch("a", second) == second
    assert inspector.epoch("b", other) == other
    for queue in QUEUES:
        channel.queue_delete(queue_name(settings.broker_prefix, queue))
    connection.close()
    inspector.close()


def test_redis_keeps_its_epoch_with_its_data_and_loses_it_with_them(make_ends, settings: Settings) -> None:
    for appendonly in (True, False):
        with running(PrivateRedis(appendonly=appendonly)) as server:
            ends = make_ends(settings.model_copy(update={"broker": "redis", "redis_url": type(settings.redis_url)(server.url)}))
            inspector = ends.transport.inspector()
            first = inspector.epoch("", None)
            server.kill()
            with pytest.raises(TransportDown):
                inspector.epoch("", first)
            server.start()

            assert (inspector.epoch("", first) == first) is appendonly

            second = inspector.epoch("", first)
            with redis.Redis.from_url(server.url) as client:
                client.flushall()
            assert inspector.epoch("", second) not in {first, second}
            inspector.close()


def published(ends: Ends, ids: range, queue: str = "a", priority: int = 0) -> list[Sent]:
    """Publish triggers, as if long ago."""
    sender = ends.sender()
    sender.publish([Outgoing(number, queue, "x", priority) for number in ids])
    sender.flush(5)
    return [Sent(number, queue, "x", priority, time.time() - 3600) for number in ids]


def receive(receiver: Receiver, inspector: Inspector, queue: str, wanted: int, bands: set[int]) -> dict[tuple[str, int], float]:
    """Take everything that is in a queue, and the marks behind it where there are marks. Returns up to where it has passed."""
    triggers: list[Trigger] = []
    marks: list[Mark] = []

    def fetch(timeout: float) -> bool:
        fetched = receiver.fetch([queue], 100, timeout)
        receiver.settle(fetched.triggers)
        triggers.extend(fetched.triggers)
        marks.extend(fetched.marks)
        return len(triggers) >= wanted

    wait_until(lambda: fetch(0.2), 10, lambda: f"{len(triggers)} of {wanted} triggers")
    # It consumes now; a queue that nobody consumes would get no mark.
    inspector.mark([Mark(queue, number, time.time()) for number in bands])
    if inspector.wants_marks:
        wait_until(lambda: fetch(0.2) and {mark.band for mark in marks} >= bands, 10, lambda: f"the marks come: {marks}")
    return {(mark.queue, mark.band): mark.at for mark in marks}


@on_carrying
def test_what_waits_is_not_lost_and_what_was_taken_is(ends: Ends, inspector: Inspector) -> None:
    taken, waiting = published(ends, range(1, 21)), published(ends, range(100, 120), "b")
    assert inspector.lost(taken + waiting, {}) == []

    passed = receive(ends.receiver(), inspector, "a", 20, {band(0)})

    assert sorted(inspector.lost(taken + waiting, passed)) == list(range(1, 21))
    assert inspector.lost([], passed) == []


@on_carrying
def test_better_priorities_are_lost_when_worse_ones_have_passed_but_not_the_other_way(ends: Ends, inspector: Inspector) -> None:
    better, worse = published(ends, range(1, 4), priority=-50), published(ends, range(11, 14), priority=50)

    passed = receive(ends.receiver(), inspector, "a", 6, {band(0)})
    found = inspector.lost(better + worse, passed)

    assert sorted(found) == ([1, 2, 3] if inspector.wants_marks else [1, 2, 3, 11, 12, 13])


def test_a_trigger_that_was_just_sent_is_not_lost_because_of_a_mark(settings: Settings) -> None:
    inspector = brokers.make_transport("rabbitmq", settings).inspector()
    now = time.time()
    passed = {("a", band(0)): now}

    sent = [Sent(number, "a", "x", 0, now - number * settings.lease / 10) for number in range(5)]

    assert inspector.lost(sent, passed) == [2, 3, 4]


def test_a_queue_that_nobody_consumes_gets_no_marks(make_ends, settings: Settings, rabbitmq_url: str) -> None:
    ends = make_ends(settings.model_copy(update={"broker": "rabbitmq", "rabbitmq_url": type(settings.redis_url)(rabbitmq_url)}))
    inspector = ends.transport.inspector()
    published(ends, range(3))

    inspector.mark([Mark("a", 4, time.time()), Mark("never", 4, time.time())])

    assert ends.transport.depth(["a"]) == {"a": 3}
    inspector.close()
    remove_queues(rabbitmq_url, [queue_name(settings.broker_prefix, "a")])
