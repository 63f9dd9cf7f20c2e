"""What the tests of transports share: senders and receivers that are closed at the end, and a way to put anything into a queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import monotonic

import pika
import pytest
import redis

import brokers
from brokers.amqp import queue_name
from brokers.redis import queue_key
from brokers.transport import Fetched, Receiver, Sender, Transport, Trigger
from settings import Settings
from tests.rig.rabbitmq import remove_queues

#: The transports that carry triggers, by name.
CARRYING = tuple(name for name in brokers.TRANSPORTS if brokers.transport_class(name).carries_triggers)


class Ends:
    """Makes senders and receivers of one transport and closes them."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        #: The queues that the test uses.
        self.queues = ["a", "b", "c"]
        self._made: list[Sender | Receiver] = []

    def sender(self) -> Sender:
        made = self.transport.sender()
        self._made.append(made)
        return made

    def receiver(self) -> Receiver:
        made = self.transport.receiver()
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()
        self.transport.close()


@pytest.fixture
def make_ends() -> Iterator[Callable[[Settings], Ends]]:
    """Ends for given settings: ``ends = make_ends(settings)``."""
    made: list[Ends] = []

    def make(settings: Settings) -> Ends:
        made.append(Ends(brokers.make_transport(settings.broker, settings)))
        return made[-1]

    yield make
    for ends in made:
        ends.close()


@pytest.fixture
def ends(make_ends, broker_name: str, settings: Settings) -> Iterator[Ends]:
    """Ends for the broker of this test; its queues are removed afterwards."""
    found = make_ends(settings)
    yield found
    found.close()
    if broker_name == "rabbitmq":
        names = [queue_name(settings.broker_prefix, queue) for queue in found.queues]
        remove_queues(settings.rabbitmq_url.get_secret_value(), names)


def put_raw(settings: Settings, queue: str, bodies: Iterable[bytes]) -> None:
    """Put anything into a queue, in order, as a stranger would."""
    if settings.broker == "redis":
        with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
            key = queue_key(settings.broker_prefix, queue)
            for number, body in enumerate(bodies):
                client.zadd(key, {body: 4 * 2**44 + 10**6 + number})
        return
    connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        name = queue_name(settings.broker_prefix, queue)
        channel.queue_declare(name, durable=True, arguments={"x-max-priority": 10})
        for body in bodies:
            channel.basic_publish("", name, body, pika.BasicProperties(priority=5), mandatory=True)
    finally:
        connection.close()


def fetch_all(receiver: Receiver, queues: list[str], wanted: int, *, limit: int = 100, timeout: float = 30.0) -> list[Trigger]:
    """Fetch and settle until ``wanted`` triggers came or the time is over; fails with what came."""
    found: list[Trigger] = []
    deadline = monotonic() + timeout
    while len(found) < wanted:
        left = deadline - monotonic()
        assert left > 0, f"{len(found)} of {wanted} triggers in {timeout} s: {found[:20]}"
        fetched = receiver.fetch(queues, limit, min(left, 1.0))
        receiver.settle(fetched.triggers)
        found += fetched.triggers
    return found


def is_empty(fetched: Fetched) -> bool:
    """Whether a fetch brought nothing at all."""
    return not fetched.triggers and not fetched.undecodable
