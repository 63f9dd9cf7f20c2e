"""A queue that RabbitMQ refuses, since somebody declared it otherwise, our user may not use it or its node is down: the others go on, and
so does it when it is repaired."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from brokers import refusals as module
from brokers.amqp import queue_name
from brokers.rabbitmq import RabbitmqReceiver, RabbitmqSender
from brokers.transport import QueueRefused, Receiver, Sender, TransportDown, Trigger
from middleware.log_context import configure_structlog
from settings import MAX_QUEUE, Settings
from tests.brokers.conftest import Ends, fetch_all
from tests.brokers.rabbitmq.conftest import batch, ids
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.waiting import wait_until

QUEUES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def _log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Log lines go where ``caplog`` hears them."""
    configure_structlog()
    caplog.set_level("INFO")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused queues are asked for again ten times a second."""
    monkeypatch.setattr(module, "RETRY_MIN", 0.1)
    monkeypatch.setattr(module, "RETRY_MAX", 0.1)


@pytest.fixture
def name(rabbit_settings: Settings) -> Callable[[str], str]:
    return lambda queue: queue_name(rabbit_settings.broker_prefix, queue)


@pytest.fixture
def spoilt(channel: BlockingChannel, name: Callable[[str], str]) -> Iterator[str]:
    """The queue b, declared by hand without priorities."""
    channel.queue_declare(name("b"), durable=True)
    yield name("b")
    for queue in QUEUES:
        channel.queue_delete(name(queue))


@pytest.fixture
def narrow(server: PrivateRabbit, rabbit_settings: Settings) -> Iterator[Callable[[str, str, str], Settings]]:
    """Settings with a user of RabbitMQ that has just these permissions; called again it has others."""
    server.ctl("add_user", "narrow", "narrow")

    def allow(configure: str, write: str, read: str) -> Settings:
        server.ctl("set_permissions", "narrow", configure, write, read)
        url = urlsplit(server.url)._replace(netloc=f"narrow:narrow@127.0.0.1:{server.port}").geturl()
        return rabbit_settings.model_copy(update={"rabbitmq_url": type(rabbit_settings.rabbitmq_url)(url)})

    yield allow
    server.ctl("delete_user", "narrow")


def _published(sender: Sender, numbers: range, queue: str) -> list[int]:
    failed = sender.publish(batch(numbers, queue))
    return failed + sender.flush(30)


def _take(receiver: Receiver, queues: list[str], wanted: set[int]) -> list[Trigger]:
    """Fetch and settle until all of these came; what a closed channel took with it may have come twice, or not."""
    found: list[Trigger] = []

    def come() -> bool:
        fetched = receiver.fetch(queues, 100, 0.5)
        receiver.settle(fetched.triggers)
        found.extend(fetched.triggers)
        return wanted <= set(ids(found))

    wait_until(come, 30, lambda: f"{wanted} come; it were {ids(found)}")
    return found


def _said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


def test_a_queue_declared_otherwise_takes_no_other_with_it_and_is_published_to_once_it_is_deleted(
    sender: RabbitmqSender, ends: Ends, channel: BlockingChannel, spoilt: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    first = [*batch(range(3), "a"), *batch(range(10, 13), "b"), *batch(range(20, 23), "c")]
    failed = sender.publish(first)
    failed += sender.flush(30)
    assert {10, 11, 12} <= set(failed) <= {trigger.job_id for trigger in first}
    assert sender.refused() == ["b"]

    for round_ in range(3):
        assert _published(sender, range(100 + round_, 101 + round_), "a") == []
        assert _published(sender, range(200 + round_, 201 + round_), "c") == []
        assert _published(sender, range(300 + round_, 301 + round_), "b") == [300 + round_]
        sender.idle()
    _take(ends.receiver(), ["a"], {100, 101, 102})

    refused = _said(caplog, "refuses this queue")
    assert len(refused) == 1
    assert "x-max-priority" in refused[0]
    assert f"delete_queue {spoilt}" in refused[0]

    channel.queue_delete(spoilt)
    wait_until(lambda: sender.idle() == [] and not sender.refused(), 30, "it is taken again")
    assert _published(sender, range(13, 16), "b") == []
    assert ids(fetch_all(ends.receiver(), ["b"], 3)) == [13, 14, 15]
    assert len(_said(caplog, "takes the queue again")) == 1


def test_all_that_are_refused_are_found_at_the_first_of_them(
    sender: RabbitmqSender, channel: BlockingChannel, spoilt: str, name: Callable[[str], str]
) -> None:
    channel.queue_declare(name("c"), durable=True)

    sender.publish([*batch(range(3), "a"), *batch(range(10, 13), "b"), *batch(range(20, 23), "c")])
    sender.flush(30)

    assert sorted(sender.refused()) == ["b", "c"]
    assert _published(sender, range(5), "a") == []


def test_a_queue_declared_otherwise_is_passed_over_by_a_receiver_and_consumed_once_it_is_deleted(
    ends: Ends, channel: BlockingChannel, spoilt: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    _published(sender, range(50), "a")
    _published(sender, range(100, 150), "c")

    # With little room there is always something to settle, so that the refusal is heard of there as well.
    taken = fetch_all(receiver, QUEUES, 100, limit=7)
    assert {trigger.queue for trigger in taken} == {"a", "c"}
    _published(sender, range(200, 203), "a")
    assert ids(fetch_all(receiver, QUEUES, 3)) == [200, 201, 202]
    assert len(_said(caplog, "refuses this queue")) == 1

    channel.queue_delete(spoilt)
    wait_until(
        lambda: not receiver.fetch(QUEUES, 5, 0.1) and sender.idle() == [] and not sender.refused(), 30, "it is taken again"
    )
    _published(sender, range(300, 303), "b")
    assert ids(fetch_all(receiver, QUEUES, 3)) == [300, 301, 302]


def test_a_refusal_that_is_heard_of_while_something_is_settled_is_one_of_that_queue(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, spoilt: str
) -> None:
    _published(sender, range(50), "c")
    # The second queue is consumed first.
    triggers = receiver.fetch(["b", "c"], 1, 10.0).triggers

    def heard() -> bool:
        receiver.settle([])
        return "b" in receiver._refusals

    wait_until(heard, 30, "the refusal arrives")
    receiver.settle(triggers)
    # The one in hand went back with the channel.
    _take(receiver, ["b", "c"], set(range(50)))


def test_a_receiver_of_nothing_but_a_refused_queue_waits_its_time(receiver: RabbitmqReceiver, spoilt: str) -> None:
    for _ in range(2):
        assert not receiver.fetch(["b"], 5, 0.2)
    wait_until(lambda: "b" in receiver._refusals or bool(receiver.fetch(["b"], 5, 0.2)), 30, "it is refused")


def test_of_two_names_too_long_to_tell_apart_the_one_that_is_good_is_consumed_in_the_end(
    make_ends, rabbit_settings: Settings, channel: BlockingChannel, soon: None
) -> None:
    # RabbitMQ's text ends within what both begin with.
    prefix = f"{rabbit_settings.broker_prefix:-<40}"
    good, bad = ("q" * (MAX_QUEUE - 1) + last for last in "xy")
    ends = make_ends(rabbit_settings.model_copy(update={"broker_prefix": prefix}))
    sender, receiver = ends.sender(), ends.receiver()
    assert _published(sender, range(3), good) == []
    channel.queue_declare(queue_name(prefix, bad), durable=True)
    try:
        # The good one is the first that it can mean. Once that rests it can only be the other.
        found = _take(receiver, [good, bad], {0, 1, 2})
        assert {trigger.queue for trigger in found} == {good}

        def told_apart() -> bool:
            receiver.fetch([good, bad], 5, 0.2)
            return list(receiver._refusals) == [bad]

        wait_until(told_apart, 30, "the bad one alone is refused")
        sender.publish([*batch(range(10, 13), good), *batch(range(20, 23), bad)])
        wait_until(lambda: sender.idle() is not None and sender.refused() == [bad], 30, "the good one is taken")
        assert _published(sender, range(30, 33), good) == []
    finally:
        for queue in (good, bad):
            channel.queue_delete(queue_name(prefix, queue))


def test_a_queue_that_permissions_refuse_takes_no_other_with_it_and_goes_on_once_they_are_given(
    make_ends,
    narrow: Callable[[str, str, str], Settings],
    spoilt: str,
    channel: BlockingChannel,
    soon: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel.queue_delete(spoilt)
    but_b = r"^(?!.*\.b\.)"
    settings = narrow(but_b, ".*", but_b)
    ends = make_ends(settings)
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish([*batch(range(3), "a"), *batch(range(10, 13), "b")])
    sender.flush(30)

    assert sender.refused() == ["b"]
    assert _published(sender, range(20, 23), "a") == []
    _take(receiver, QUEUES, {20, 21, 22})

    narrow(".*", ".*", but_b)
    wait_until(lambda: sender.idle() == [] and not sender.refused(), 30, "it may be published to")
    assert _published(sender, range(30, 33), "b") == []
    # It may still not be read.
    assert _published(sender, range(40, 43), "c") == []
    assert {trigger.queue for trigger in _take(receiver, QUEUES, {40, 41, 42})} <= {"a", "c"}
    for _ in range(5):
        assert not receiver.fetch(QUEUES, 5, 0.2)
    # Asked for again several times, it was not taken for good because it may be declared.
    assert not _said(caplog, "'was': 'consume'")

    narrow(".*", ".*", ".*")
    _take(receiver, QUEUES, {30, 31, 32})


def test_a_queue_whose_node_is_down_takes_no_other_with_it_and_goes_on_once_that_is_back(
    ends: Ends,
    server: PrivateRabbit,
    sender: RabbitmqSender,
    receiver: RabbitmqReceiver,
    name: Callable[[str], str],
    soon: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert _published(sender, range(10, 13), "b") == []
    server.take_away(name("b"))
    try:
        # This sender has declared it, so the first of these come back; the next round declares it anew.
        wait_until(lambda: _published(sender, range(3), "b") == [0, 1, 2] and sender.refused() == ["b"], 30, "it is refused")
        assert _published(sender, range(20, 23), "a") == []
        _take(receiver, QUEUES, {20, 21, 22})
        assert "b" in receiver._refusals

        inspector = ends.transport.inspector()
        with pytest.raises(QueueRefused, match="is down or inaccessible"):
            inspector.epoch("b", None)
        inspector.close()
        (refused,) = ends.transport.refusals(["nobody", *QUEUES])
        assert refused.queue == "b"
        assert "start the node again" in refused.advice
        assert len(_said(caplog, "'refused': 'publish'")) == 1
    finally:
        server.bring_back(name("b"))

    _take(receiver, QUEUES, {10, 11, 12})
    wait_until(lambda: sender.idle() == [] and not sender.refused(), 30, "it is taken again")
    assert _published(sender, range(30, 33), "b") == []
    _take(receiver, QUEUES, {30, 31, 32})


def test_a_queue_for_which_there_is_no_room_is_refused_alone_and_nobody_is_told_to_delete_it(
    server: PrivateRabbit, sender: RabbitmqSender, name: Callable[[str], str], soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert _published(sender, range(3), "a") == []
    there = server.ctl("list_queues", "name", "--no-table-headers").split()
    server.ctl("set_vhost_limits", json.dumps({"max-queues": len(there)}))
    try:
        sender.publish(batch(range(10, 13), "b"))
        sender.flush(30)
        assert sender.refused() == ["b"]
        assert _published(sender, range(20, 23), "a") == []
        (said,) = _said(caplog, "refuses this queue")
        assert f"no room for {name('b')}" in said
        assert "delete_queue" not in said
    finally:
        server.ctl("clear_vhost_limits")

    wait_until(lambda: sender.idle() == [] and not sender.refused(), 30, "it is taken")
    assert _published(sender, range(13, 16), "b") == []


def test_the_inspector_says_which_queue_is_refused_and_answers_about_the_others(ends: Ends, spoilt: str) -> None:
    inspector = ends.transport.inspector()
    try:
        with pytest.raises(QueueRefused, match="x-max-priority") as refused:
            inspector.epoch("b", None)
        assert refused.value.queue == "b"
        epoch = inspector.epoch("a", None)
        assert inspector.epoch("a", epoch) == epoch
    finally:
        inspector.close()


def test_a_transport_names_the_refused_queues_makes_none_and_counts_the_others(
    ends: Ends, sender: RabbitmqSender, server: PrivateRabbit, spoilt: str, name: Callable[[str], str]
) -> None:
    _published(sender, range(3), "a")
    own = pika.BlockingConnection(pika.URLParameters(server.url))
    try:
        own.channel().queue_declare(name("c"), exclusive=True)
        found = {refused.queue: refused for refused in ends.transport.refusals(["nobody", *QUEUES])}
        assert sorted(found) == ["b", "c"]
        assert "PRECONDITION_FAILED" in found["b"].reason
        assert "holds" in found["c"].advice
        wait_until(lambda: ends.transport.depth(QUEUES) == {"a": 3, "b": 0, "c": 0}, 30)
    finally:
        own.close()
    assert name("nobody") not in server.ctl("list_queues", "name")


def test_a_broker_that_refuses_every_publish_is_down(make_ends, narrow: Callable[[str, str, str], Settings], spoilt: str) -> None:
    ends = make_ends(narrow(".*", r"^$", ".*"))
    sender = ends.sender()

    def publish() -> None:
        sender.publish(batch(range(3), "a"))
        sender.flush(30)

    with pytest.raises(TransportDown, match=r"amq\.default") as error:
        publish()
    assert error.value.unpublished == [0, 1, 2]
    assert not sender.refused()
