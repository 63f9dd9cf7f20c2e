"""What every transport owes to those who watch dead letters on the broker itself (``Transport.put_dead``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pika
import psycopg
import pytest
import redis
from pydantic import SecretStr

import brokers
import brokers.redis
from brokers.postgres import DEAD_CHANNEL
from brokers.rabbitmq_dead_letters import dead_queue
from brokers.redis import dead_key
from brokers.transport import TransportDown
from ledger.dead import DeadNotice
from settings import Settings
from tests.rig.ports import free_port

BEGINNING = datetime(2026, 11, 28, tzinfo=UTC)


def notice(number: int = 1, **fields: Any) -> DeadNotice:
    """A death, each a second after the one before."""
    plain: dict[str, Any] = {
        "job_id": number, "id": str(uuid4()), "actor": "größe ändern", "queue": "mail", "generation": 1, "reason": "max_retries",
        "error_type": "ValueError", "error": "no\n\x1b[1m", "fingerprint": "0123456789abcdef", "attempts": 3, "failures": 3, "lost": 0,
        "created_at": BEGINNING, "died_at": BEGINNING + timedelta(seconds=number), "hook": None,
    }  # fmt: skip
    return DeadNotice(**(plain | fields))


@pytest.fixture
def watch(settings: Settings, broker_name: str) -> Callable[[], list[dict[str, Any]]]:
    """Reads what is in the place, the first death first."""
    if broker_name == "redis":
        return lambda: _in_redis(settings)
    if broker_name == "rabbitmq":
        return lambda: _in_rabbitmq(settings)
    listener = psycopg.connect(settings.database_url.get_secret_value(), autocommit=True)
    listener.execute(f"LISTEN {DEAD_CHANNEL}".encode())

    def told() -> list[dict[str, Any]]:
        with listener:
            return [json.loads(notification.payload) for notification in listener.notifies(timeout=0.5)]

    return told


def _in_redis(settings: Settings) -> list[dict[str, Any]]:
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        return [json.loads(text) for text in client.zrange(dead_key(settings.broker_prefix), 0, -1)]


def _in_rabbitmq(settings: Settings) -> list[dict[str, Any]]:
    connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))
    found = []
    channel = connection.channel()
    while (got := channel.basic_get(dead_queue(settings.broker_prefix), auto_ack=True))[0] is not None:
        found.append(json.loads(got[2]))
        assert got[1].message_id == f"{found[-1]['id']}:{found[-1]['generation']}"
        assert (got[1].delivery_mode, got[1].content_type) == (2, "application/json")
    connection.close()
    return found


def test_a_dead_letter_arrives_with_its_context_and_without_its_payload(settings, watch) -> None:
    first, second = notice(1), notice(2)
    transport = brokers.make_transport(settings.broker, settings)

    transport.put_dead([first, second])

    assert transport.dead_letter_place is not None
    found = watch()
    assert found == [first.context(), second.context()]
    assert found[0]["id"] == first.id
    assert not {"payload", "args", "kwargs", "hook", "job_id"} & found[0].keys()


def test_nothing_to_put_is_no_error(settings, broker_name) -> None:
    brokers.make_transport(settings.broker, settings).put_dead([])


def test_it_may_be_called_again_and_again(settings, watch) -> None:
    transport = brokers.make_transport(settings.broker, settings)
    deaths = [notice(number) for number in range(1, 6)]

    for death in deaths:
        transport.put_dead([death])

    assert [found["id"] for found in watch()] == [death.id for death in deaths]


@pytest.mark.parametrize("broker_name", ["redis"])
def test_in_redis_putting_one_again_makes_no_second_entry(settings, watch) -> None:
    transport = brokers.make_transport(settings.broker, settings)
    death = notice()

    transport.put_dead([death])
    transport.put_dead([death, death._replace(generation=2)])

    assert [found["generation"] for found in watch()] == [1, 2]


@pytest.mark.parametrize("broker_name", ["redis"])
def test_the_place_in_redis_keeps_the_latest(settings, watch, monkeypatch) -> None:
    monkeypatch.setattr(brokers.redis, "DEAD_KEPT", 3)
    deaths = [notice(number) for number in range(1, 6)]

    brokers.make_transport(settings.broker, settings).put_dead(deaths)

    assert [found["id"] for found in watch()] == [death.id for death in deaths[2:]]


@pytest.mark.parametrize("broker_name", ["rabbitmq"])
def test_the_queue_in_rabbitmq_is_durable_and_bounded(settings, broker_name) -> None:
    brokers.make_transport(settings.broker, settings).put_dead([notice()])
    connection = pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value()))

    # Anything else than what it was made with is refused.
    connection.channel().queue_declare(
        dead_queue(settings.broker_prefix),
        durable=True,
        arguments={"x-max-length": 10_000, "x-overflow": "drop-head", "x-message-ttl": 604_800_000},
    )

    connection.close()


@pytest.mark.parametrize("broker_name", ["postgres"])
@pytest.mark.parametrize(
    ("fields", "left"),
    [({"error": "x" * 9_000}, {"error": None}), ({"error": "é" * 3_000}, {}), ({"actor": "a" * 9_000}, None)],
)
def test_what_is_too_long_for_a_notification_is_told_shorter(settings, broker_name, fields, left) -> None:
    death = notice(**fields)
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as listener:
        listener.execute(f"LISTEN {DEAD_CHANNEL}".encode())

        brokers.make_transport(settings.broker, settings).put_dead([death])

        (told,) = [notification.payload for notification in listener.notifies(timeout=10, stop_after=1)]
    assert told == death.id if left is None else json.loads(told) == death.context() | left


def test_a_broker_that_is_away_says_so_at_once(settings, broker_name) -> None:
    port = free_port()
    urls = {
        "postgres": ("database_url", f"postgresql://127.0.0.1:{port}/nothing"),
        "redis": ("redis_url", f"redis://127.0.0.1:{port}/0"),
        "rabbitmq": ("rabbitmq_url", f"amqp://127.0.0.1:{port}/%2F"),
    }
    field, url = urls[broker_name]
    away = settings.model_copy(update={field: SecretStr(url)})

    with pytest.raises(TransportDown):
        brokers.make_transport(broker_name, away).put_dead([notice()])
