"""RabbitMQ: confirms, prefetch, delivery tags, and what becomes of triggers when the node dies, freezes, blocks or loses a queue."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import pika
import pytest

import brokers.amqp
import brokers.rabbitmq
import brokers.subscription
from brokers.amqp import queue_name
from brokers.rabbitmq import WINDOW, RabbitmqReceiver, RabbitmqSender
from brokers.subscription import Level
from brokers.transport import TransportDown, Trigger
from runtime.triggers import Outgoing
from settings import Settings
from tests.brokers.conftest import Ends, fetch_all, is_empty
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.waiting import wait_until

#: The socket time-out of a transport and some room for a slow machine, in seconds.
BOUND = 15.0


@pytest.fixture(scope="module")
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


def _batch(ids: range, queue: str = "a") -> list[Outgoing]:
    return [Outgoing(number, queue, "send_email") for number in ids]


def _ids(triggers: list[Trigger]) -> list[int]:
    return [trigger.job_id for trigger in triggers]


def _failed_until(sender: RabbitmqSender, wanted: int) -> list[int]:
    """What ``idle`` reports as failed, until there are ``wanted``."""
    failed: list[int] = []

    def reported() -> bool:
        failed.extend(sender.idle())
        return len(failed) >= wanted

    wait_until(reported, 30, lambda: f"failed: {failed}")
    return failed


def test_confirms_are_followed_in_the_background(sender: RabbitmqSender) -> None:
    for start in range(0, 2000, 200):
        assert sender.publish(_batch(range(start, start + 200))) == []
    assert sender.flush(30) == []
    assert not sender._unconfirmed


def test_a_batch_larger_than_the_window_waits_for_confirms(sender: RabbitmqSender, ends: Ends) -> None:
    sender.publish(_batch(range(WINDOW + 3000)))
    assert len(sender._unconfirmed) <= WINDOW
    sender.flush(30)
    wait_until(lambda: ends.transport.depth(["a"]) == {"a": WINDOW + 3000}, 30)


def test_a_closed_sender_left_nothing_behind(ends: Ends, sender: RabbitmqSender) -> None:
    sender.publish(_batch(range(4000)))
    sender.close()
    # The channel has taken all of them in; its queue is a process of its own.
    wait_until(lambda: ends.transport.depth(["a"]) == {"a": 4000}, 30)


def test_refused_publishes_come_back_as_failed(sender: RabbitmqSender, server: PrivateRabbit, rabbit_settings: Settings) -> None:
    pattern = rabbit_settings.broker_prefix
    server.ctl("set_policy", "full", pattern, '{"max-length": 5, "overflow": "reject-publish"}', "--apply-to", "queues")
    try:
        sender.publish(_batch(range(5)))
        sender.flush(30)
        failed = sender.publish(_batch(range(5, 20))) + sender.flush(30)
    finally:
        server.ctl("clear_policy", "full")
    # RabbitMQ lets a message or two more in than it says.
    assert len(failed) >= 10
    assert set(failed) <= set(range(5, 20))


def test_a_queue_deleted_under_the_sender_fails_by_id_and_is_declared_again(
    ends: Ends, sender: RabbitmqSender, channel, rabbit_settings: Settings
) -> None:
    sender.publish([*_batch(range(3)), *_batch(range(10, 12), "b")])
    sender.flush(30)
    channel.queue_delete(queue_name(rabbit_settings.broker_prefix, "a"))

    failed = sender.publish([*_batch(range(3, 6)), *_batch(range(12, 14), "b")])
    failed += _failed_until(sender, 3 - len(failed))

    assert sorted(failed) == [3, 4, 5]
    assert sender.publish(_batch(range(3, 6))) == []
    assert sender.flush(30) == []
    assert ends.transport.depth(["a", "b"]) == {"a": 3, "b": 4}


def test_a_queue_deleted_under_the_receiver_is_declared_and_consumed_again(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, channel, rabbit_settings: Settings
) -> None:
    sender.publish(_batch(range(3)))
    fetch_all(receiver, ["a", "b"], 3)

    channel.queue_delete(queue_name(rabbit_settings.broker_prefix, "a"))
    assert is_empty(receiver.fetch(["a", "b"], 5, 0.3))
    sender.publish(_batch(range(10, 13)))
    failed = _failed_until(sender, 0) + sender.flush(30)
    sender.publish(_batch(range(20, 23)))

    found = fetch_all(receiver, ["a", "b"], 6 - len(failed))
    assert set(_ids(found)) | set(failed) == {10, 11, 12, 20, 21, 22}


def test_a_queue_declared_otherwise_is_transport_down_with_the_reason(
    sender: RabbitmqSender, channel, rabbit_settings: Settings
) -> None:
    channel.queue_declare(queue_name(rabbit_settings.broker_prefix, "a"), durable=True)

    def publish_and_flush() -> None:
        sender.publish(_batch(range(3)))
        sender.flush(30)

    with pytest.raises(TransportDown, match="PRECONDITION_FAILED") as refused:
        publish_and_flush()
    assert refused.value.unpublished == [0, 1, 2]


def test_a_kill_in_a_stream_of_publishes_loses_none_silently(ends: Ends, sender: RabbitmqSender, server: PrivateRabbit) -> None:
    reported = set(sender.publish(_batch(range(200))) + sender.flush(30))
    server.write_down()
    published = 200
    killed = False
    while published < 20_000:
        try:
            reported.update(sender.publish(_batch(range(published, published + 200))))
        except TransportDown as error:
            reported.update(error.unpublished)
            published += 200
            break
        published += 200
        if published == 4_000:
            server.kill()
            killed = True
    else:
        with pytest.raises(TransportDown) as refused:
            sender.flush(30)
        reported.update(refused.value.unpublished)
    assert killed
    assert reported
    server.start()

    there = ends.transport.depth(["a"])["a"]
    arrived = set(_ids(fetch_all(ends.receiver(), ["a"], there, limit=500)))
    assert arrived | reported == set(range(published))
    assert sender.publish(_batch(range(3))) == []
    assert sender.flush(30) == []


def test_everything_unconfirmed_is_reported_when_the_connection_dies(sender: RabbitmqSender, server: PrivateRabbit) -> None:
    sender.publish(_batch(range(3)))
    sender.flush(30)
    server.freeze()
    for start in range(100, 600, 100):
        assert sender.publish(_batch(range(start, start + 100))) == []
    server.kill()

    with pytest.raises(TransportDown) as refused:
        sender.flush(30)

    assert refused.value.unpublished == list(range(100, 600))


def test_a_killed_node_is_transport_down_for_receivers_and_depth_and_both_recover(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, server: PrivateRabbit
) -> None:
    sender.publish(_batch(range(5)))
    sender.flush(30)
    ends.transport.depth(["a"])
    assert wait_until(lambda: receiver.fetch(["a"], 1, 2.0).triggers)
    server.write_down()

    server.kill()
    with pytest.raises(TransportDown):
        receiver.fetch(["a"], 1, 30.0)
    with pytest.raises(TransportDown):
        ends.transport.depth([])
    wait_until(lambda: _idle_is_refused(sender), 30)
    assert sender.idle() == []
    server.start()

    wait_until(lambda: ends.transport.depth(["a"]) == {"a": 5}, 30, lambda: str(ends.transport.depth(["a"])))
    assert sorted(_ids(fetch_all(receiver, ["a"], 5))) == list(range(5))


def _idle_is_refused(sender: RabbitmqSender) -> bool:
    try:
        sender.idle()
    except TransportDown:
        return True
    return False


def test_receipts_of_an_older_connection_settle_nothing(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, server: PrivateRabbit
) -> None:
    sender.publish(_batch(range(5)))
    sender.flush(30)
    old = wait_until(lambda: receiver.fetch(["a"], 5, 2.0).triggers, 30)

    server.ctl("close_all_connections", "test")
    with pytest.raises(TransportDown):
        receiver.fetch(["a"], 5, 5.0)
    again = wait_until(lambda: receiver.fetch(["a"], 5, 2.0).triggers, 30)
    assert again
    receiver.settle(old)
    receiver.give_back(old)
    receiver.close()

    assert sorted(_ids(fetch_all(ends.receiver(), ["a"], 5))) == list(range(5))


def test_settling_out_of_order_settles_just_those(ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver) -> None:
    sender.publish(_batch(range(20)))
    sender.flush(30)
    taken: list[Trigger] = []
    deadline = monotonic() + 30
    while len(taken) < 20:
        assert monotonic() < deadline, taken
        taken += receiver.fetch(["a"], 20 - len(taken), 1.0).triggers

    for start in (0, 2, 1):
        receiver.settle([trigger for trigger in taken if trigger.job_id % 4 == start])
    receiver.close()

    assert sorted(_ids(fetch_all(ends.receiver(), ["a"], 5))) == [3, 7, 11, 15, 19]
    assert ends.transport.depth(["a"]) == {"a": 0}


def test_a_frozen_node_holds_nobody_longer_than_the_time_out(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, server: PrivateRabbit
) -> None:
    sender.publish(_batch(range(3)))
    sender.flush(30)
    fetch_all(receiver, ["a"], 3)
    server.freeze()
    try:
        started = monotonic()
        assert is_empty(receiver.fetch(["a"], 5, 0.5))
        assert monotonic() - started < 0.5 + BOUND
        reported: list[int] = []
        started = monotonic()

        def gives_up() -> bool:
            before = monotonic()
            try:
                sender.publish(_batch(range(100, 103)))
            except TransportDown as error:
                reported.extend(error.unpublished)
            assert monotonic() - before < BOUND
            return bool(reported)

        wait_until(gives_up, BOUND, interval=0.2)
        assert set(reported) == {100, 101, 102}
        started = monotonic()
        with pytest.raises(TransportDown):
            sender.publish(_batch(range(3)))
        assert monotonic() - started < BOUND
    finally:
        server.thaw()
    wait_until(lambda: _accepted(sender, _batch(range(5))), 30)
    assert sender.flush(30) == []


def test_a_memory_alarm_refuses_at_once_and_makes_no_copies(ends: Ends, sender: RabbitmqSender, server: PrivateRabbit) -> None:
    sender.publish(_batch(range(3)))
    sender.flush(30)
    server.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        reported: list[int] = []
        attempts = 0

        def is_refused() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                sender.publish(_batch(range(3, 6)))
            except TransportDown as error:
                reported.extend(error.unpublished)
            return bool(reported)

        wait_until(is_refused, BOUND)
        assert set(reported) == {3, 4, 5}
        assert attempts < 10
        for _ in range(20):
            started = monotonic()
            with pytest.raises(TransportDown, match="blocked"):
                sender.publish(_batch(range(3, 6)))
            assert monotonic() - started < 3.0
    finally:
        server.ctl("set_vm_memory_high_watermark", "0.4")

    wait_until(lambda: _accepted(sender, _batch(range(3, 6))), 30)
    sender.flush(30)
    # What was written before the alarm was known arrives once, what the 20 tried during it never.
    assert wait_until(lambda: ends.transport.depth(["a"])["a"], 30) <= 3 + 3 * attempts + 3


def _accepted(sender: RabbitmqSender, batch: list[Outgoing]) -> bool:
    try:
        return sender.publish(batch) == []
    except TransportDown:
        return False


def test_what_one_receiver_has_no_room_for_goes_to_another(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver
) -> None:
    sender.publish(_batch(range(100)))
    sender.flush(30)
    mine = wait_until(lambda: receiver.fetch(["a"], 40, 2.0).triggers, 30)
    receiver.settle(mine)
    # The first is full for good from now on; what RabbitMQ pushed to it meanwhile must not wait there.
    other = ends.receiver()
    theirs: list[Trigger] = []

    def drained() -> bool:
        assert is_empty(receiver.fetch(["a"], 0, 0.0))
        fetched = other.fetch(["a"], 100, 0.1)
        other.settle(fetched.triggers)
        theirs.extend(fetched.triggers)
        return len(mine) + len(theirs) >= 100

    wait_until(drained, 30, lambda: f"{len(mine)} + {len(theirs)} of 100")
    assert sorted(_ids(mine) + _ids(theirs)) == list(range(100))


def test_with_room_for_one_now_and_then_every_queue_has_its_turn(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers.subscription, "_CALM", 0.01)
    monkeypatch.setattr(brokers.subscription, "_CALM_PER_QUEUE", 0.0)
    queues = ["a", "b", "c"]
    for queue in queues:
        sender.publish(_batch(range(20), queue))
    sender.flush(30)
    served = []
    for _ in range(9):
        triggers = receiver.fetch(queues, 1, 5.0).triggers
        receiver.settle(triggers)
        served += [trigger.queue for trigger in triggers]
        # A long job: it wants nothing until RabbitMQ has everything back.
        paused = receiver._subscription
        assert paused is not None
        while paused._consumers:
            assert is_empty(receiver.fetch(queues, 0, 0.0))
    assert {queue: served.count(queue) for queue in queues} == dict.fromkeys(queues, 3)


def test_a_high_priority_overtakes_what_is_held(sender: RabbitmqSender, receiver: RabbitmqReceiver) -> None:
    receiver.fetch(["a"], 64, 0.0)
    sender.publish(_batch(range(10)))
    held = receiver._subscription
    assert held is not None
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and len(held._buffer["a"]) == 10, 30)

    sender.publish([Outgoing(99, "a", "send_email", -10)])
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and len(held._buffer["a"]) == 11, 30)

    assert _ids(receiver.fetch(["a"], 3, 1.0).triggers) == [99, 0, 1]


def test_what_was_pushed_while_there_was_no_room_gives_way_to_something_better(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine: every fetch comes after a long job, and none of them shrinks the level.
    monkeypatch.setattr(brokers.rabbitmq, "ROOM_WINDOW", 0.0)
    monkeypatch.setattr(brokers.subscription, "_CALM", 1_000)
    sender.publish(_batch(range(100, 102)))
    receiver.settle(fetch_all(receiver, ["a", "b"], 2, limit=1))
    held = receiver._subscription
    assert held is not None
    sender.publish([*_batch(range(1)), *_batch(range(10, 11), "b")])
    wait_until(lambda: is_empty(receiver.fetch(["a", "b"], 0, 0.0)) and len(held._buffer["a"]) == len(held._buffer["b"]) == 1)
    sender.publish([Outgoing(1, "a", "send_email", -10), Outgoing(11, "b", "send_email", -10)])
    sender.flush(30)

    found = fetch_all(receiver, ["a", "b"], 4, limit=1)

    assert [trigger.job_id for trigger in found if trigger.queue == "a"] == [1, 0]
    assert [trigger.job_id for trigger in found if trigger.queue == "b"] == [11, 10]


def test_a_receiver_of_long_jobs_holds_little(ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver) -> None:
    sender.publish(_batch(range(300)))
    sender.flush(30)
    taken = before = len(fetch_all(receiver, ["a"], 100, limit=100))
    # From now on it asks for one at a time.

    def held() -> int:
        nonlocal taken
        triggers = receiver.fetch(["a"], 1, 0.0).triggers
        receiver.settle(triggers)
        taken += len(triggers)
        waiting = ends.transport.depth(["a"])["a"]
        return 300 - taken - waiting

    assert held() > 2
    wait_until(lambda: held() <= 2, 30, interval=0.05)
    assert taken < before + 60


def test_a_busy_receiver_is_pushed_whole_batches(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine: it is never long that nothing is wanted, and RabbitMQ pushes all it may while the caller claims.
    monkeypatch.setattr(brokers.rabbitmq, "ROOM_WINDOW", 600.0)
    monkeypatch.setattr(brokers.subscription, "_CALM", 600.0)
    sender.publish(_batch(range(4000)))
    sender.flush(30)
    receiver.settle(receiver.fetch(["a", "b", "c"], 200, 30.0).triggers)
    pushed = receiver._subscription
    assert pushed is not None

    def filled() -> bool:
        return is_empty(receiver.fetch(["a", "b", "c"], 0, 0.0)) and len(pushed._buffer["a"]) == pushed._shares["a"]

    for _ in range(4):
        wait_until(filled)
        receiver.settle(receiver.fetch(["a", "b", "c"], 200, 2.0).triggers)

    # One queue of three is busy: it has been given the room of all.
    assert pushed._shares == {"a": 256, "b": 85, "c": 85}
    wait_until(lambda: is_empty(receiver.fetch(["a", "b", "c"], 0, 0.0)) and len(pushed._buffer["a"]) == 256, 30)
    assert len(receiver.fetch(["a", "b", "c"], 200, 2.0).triggers) == 200


def test_what_piles_up_in_many_busy_queues_is_bounded(ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver) -> None:
    queues = [f"q{number}" for number in range(8)]
    receiver.fetch(queues, 64, 0.0)
    pushed = receiver._subscription
    assert pushed is not None
    # One after the other was the only busy one, and was given the room of all.
    for queue in queues:
        sender.publish(_batch(range(200), queue))
        sender.flush(30)
        fetch_all(receiver, queues, 200, limit=64)
    assert set(pushed._shares.values()) == {64}
    for queue in queues:
        sender.publish(_batch(range(500), queue))
    sender.flush(30)

    def bounded() -> bool:
        receiver.settle(receiver.fetch(queues, 20, 0.05).triggers)
        return set(pushed._shares.values()) == {8}

    wait_until(bounded, 30, lambda: str(pushed._shares))


def test_a_full_receiver_keeps_its_connection(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers.amqp, "_HEARTBEAT", 2)
    sender.publish(_batch(range(3)))
    sender.flush(30)
    taken = wait_until(lambda: receiver.fetch(["a"], 3, 2.0).triggers, 30)

    # Two heartbeats missed and some more would be the end of a connection.
    until = monotonic() + 7
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and monotonic() > until, 30, interval=0.1)
    receiver.settle(taken)
    receiver.close()

    assert ends.transport.depth(["a"]) == {"a": 3 - len(taken)}


def test_levels_rise_at_once_and_fall_after_a_calm_period() -> None:
    level = Level()
    assert [level.follow(limit, 1000) for limit in (0, 1, 3, 200, 5, 0)] == [0, 1, 4, 256, 256, 256]
    assert level.follow(10, 0) == 256, "200 were wanted in the period that ends here"
    assert level.follow(10, 0) == 16
    assert level.follow(0, 0) == 16
    assert level.follow(0, 0) == 0
