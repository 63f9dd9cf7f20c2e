"""A RabbitMQ for all tests of this folder, which they kill, freeze, block and refill; started again before each."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest

from brokers.rabbitmq import RabbitmqReceiver, RabbitmqSender
from brokers.transport import Trigger
from runtime.triggers import Outgoing
from settings import Settings
from tests.brokers.conftest import Ends
from tests.rig.rabbitmq import PrivateRabbit


@pytest.fixture(scope="package")
def server() -> Iterator[PrivateRabbit]:
    found = PrivateRabbit()
    found.start()
    yield found
    found.kill()


@pytest.fixture
def rabbit_settings(server: PrivateRabbit, settings: Settings) -> Settings:
    server.start()
    url = type(settings.rabbitmq_url)(server.url)
    return settings.model_copy(update={"broker": "rabbitmq", "rabbitmq_url": url})


@pytest.fixture
def ends(make_ends, rabbit_settings: Settings) -> Ends:
    found: Ends = make_ends(rabbit_settings)
    return found


@pytest.fixture
def sender(ends: Ends) -> RabbitmqSender:
    found = ends.sender()
    assert isinstance(found, RabbitmqSender)
    return found


@pytest.fixture
def receiver(ends: Ends) -> RabbitmqReceiver:
    found = ends.receiver()
    assert isinstance(found, RabbitmqReceiver)
    return found


@pytest.fixture
def channel(server: PrivateRabbit, rabbit_settings: Settings) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """A stranger's channel, to do things to queues."""
    connection = pika.BlockingConnection(pika.URLParameters(server.url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


def batch(numbers: range, queue: str = "a") -> list[Outgoing]:
    return [Outgoing(number, queue, "send_email") for number in numbers]


def ids(triggers: list[Trigger]) -> list[int]:
    return [trigger.job_id for trigger in triggers]
