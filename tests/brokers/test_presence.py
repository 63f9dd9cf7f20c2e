"""Keepers that watch over one prefix find each other in the broker, for as long as they say so, whatever else lies there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pika
import pytest
import redis

from brokers import presence
from brokers.presence import Presence
from brokers.rabbitmq_presence import presence_queue
from brokers.redis import presence_key
from brokers.transport import Inspector, TransportDown
from settings import Settings
from tests.brokers.conftest import CARRYING, Ends
from tests.rig.rabbitmq import remove_queues
from tests.rig.waiting import wait_until

on_carrying = pytest.mark.parametrize("broker_name", CARRYING)
Meet = Callable[..., list[Presence]]


def said(keeper: str, beat: int = 1, seconds: float = 60.0, others: tuple[str, ...] = ()) -> Presence:
    return Presence(keeper, beat, seconds, f"db/{keeper}", others)


@pytest.fixture
def inspectors(ends: Ends) -> Iterator[list[Inspector]]:
    found = [ends.transport.inspector() for _ in range(2)]
    yield found
    for inspector in found:
        inspector.close()
    if ends.transport.name == "rabbitmq":
        settings = ends.transport.settings
        remove_queues(settings.rabbitmq_url.get_secret_value(), [presence_queue(settings.broker_prefix)])


@on_carrying
def test_each_hears_what_the_others_said_last_and_never_itself(ends: Ends, inspectors: list[Inspector]) -> None:
    one, two = inspectors
    assert one.meet(said("one")) == []
    assert one.meet(said("one", 2)) == []

    assert two.meet(said("two", others=("db/one",))) == [said("one", 2)]
    assert one.meet(said("one", 3)) == [said("two", others=("db/one",))]
    assert sorted(one.meet(said("third"))) == [said("one", 3), said("two", others=("db/one",))]

    # Asking takes nothing away.
    for _ in range(2):
        assert ends.transport.presence("two") == said("two", others=("db/one",))
        assert ends.transport.presence("nobody") is None
    assert len(two.meet(said("two", 2))) == 2


@on_carrying
def test_what_was_said_goes_by_itself(ends: Ends, inspectors: list[Inspector]) -> None:
    one, two = inspectors
    one.meet(said("one", seconds=1.0))
    assert two.meet(said("two")) == [said("one", seconds=1.0)]

    wait_until(lambda: ends.transport.presence("one") is None, 20, "its time is over")
    assert two.meet(said("two", 2)) == []
    assert ends.transport.presence("two") == said("two", 2)


@on_carrying
def test_another_prefix_is_another_place(ends: Ends, make_ends: Callable[[Settings], Ends], inspectors: list[Inspector]) -> None:
    settings = ends.transport.settings
    elsewhere = make_ends(settings.model_copy(update={"broker_prefix": f"{settings.broker_prefix}x"})).transport
    inspectors[0].meet(said("one"))
    stranger = elsewhere.inspector()

    assert stranger.meet(said("two")) == []
    assert elsewhere.presence("one") is None

    stranger.close()
    if settings.broker == "rabbitmq":
        remove_queues(settings.rabbitmq_url.get_secret_value(), [presence_queue(f"{settings.broker_prefix}x")])


def test_the_key_in_redis_goes_with_what_it_holds(ends_of: Callable[[str], Ends], redis_url: str) -> None:
    transport = ends_of("redis").transport
    inspector = transport.inspector()
    with redis.Redis.from_url(redis_url) as client:
        key = presence_key(transport.settings.broker_prefix)
        client.hset(key, "foreign", "no presence")
        inspector.meet(said("one", seconds=100.0))
        inspector.meet(said("two", seconds=5.0))

        # As long as the longest counts, and what nobody can read is gone.
        assert 95_000 < client.pttl(key) <= 100_000
        assert sorted(client.hkeys(key)) == [b"one", b"two"]
    inspector.close()


@pytest.fixture
def ends_of(make_ends: Callable[[Settings], Ends], settings: Settings) -> Callable[[str], Ends]:
    return lambda broker: make_ends(settings.model_copy(update={"broker": broker}))


def test_what_nobody_can_read_is_taken_out_of_rabbitmq_and_its_neighbours_stay(
    ends_of: Callable[[str], Ends], rabbitmq_url: str
) -> None:
    transport = ends_of("rabbitmq").transport
    name = presence_queue(transport.settings.broker_prefix)
    one, two = transport.inspector(), transport.inspector()
    one.meet(said("one"))
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.basic_publish("", name, b"\xff not one")

        assert two.meet(said("two")) == [said("one")]
        assert channel.queue_declare(name, passive=True).method.message_count == 2
    one.close()
    two.close()
    remove_queues(rabbitmq_url, [name])


@on_carrying
def test_a_broker_that_refuses_this_alone_answers_the_inspector_as_before(ends: Ends, inspectors: list[Inspector]) -> None:
    one, _ = inspectors
    settings = ends.transport.settings
    queue = "a" if ends.transport.epoch_per_queue else ""
    epoch = one.epoch(queue, None)
    if settings.broker == "redis":
        with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
            client.set(presence_key(settings.broker_prefix), "something else")
    else:
        with pika.BlockingConnection(pika.URLParameters(settings.rabbitmq_url.get_secret_value())) as connection:
            connection.channel().queue_declare(presence_queue(settings.broker_prefix), durable=True)

    with pytest.raises(TransportDown):
        one.meet(said("one"))
    assert one.epoch(queue, epoch) == epoch


@on_carrying
def test_its_place_is_told_without_a_password(
    make_ends: Callable[[Settings], Ends], settings: Settings, broker_name: str
) -> None:
    kind = type(settings.redis_url)
    urls = {"redis_url": kind("redis://me:hunter2@cache:7000/3"), "rabbitmq_url": kind("amqp://me:hunter2@rabbit:7001/shop")}

    place = make_ends(settings.model_copy(update=urls | {"broker": broker_name})).transport.place

    assert place == {"redis": "cache:7000/3", "rabbitmq": "rabbit:7001, virtual host shop"}[broker_name]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"1742 send_email", b"[1]", b"null", b"\xff", b"[" * 3000,
        json.dumps(said("x")._asdict() | {"beat": "many"}).encode(),
        json.dumps(said("x")._asdict() | {"seconds": float("nan")}).encode(),
        json.dumps(said("x")._asdict() | {"beat": 1e999}).encode(),
        json.dumps(said("x")._asdict() | {"others": "no list"}).encode(),
        json.dumps(said("x")._asdict() | {"ledger": None}).encode(),
        json.dumps(said("x" * 5000)._asdict()).encode(),
    ],
)  # fmt: skip
def test_what_is_no_presence_is_none(text: bytes) -> None:
    assert presence.decode(text) is None


def test_a_forged_presence_brings_neither_control_characters_nor_a_flood() -> None:
    forged = said("x")._replace(ledger="\x1b[2J" + "y" * 300, others=("a\nb",) * 50)

    found = presence.decode(json.dumps(forged._asdict()).encode())

    assert found is not None
    assert found.ledger == "?[2J" + "y" * 196
    assert found.others == ("a?b",) * presence.NAMED
