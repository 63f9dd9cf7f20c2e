"""RabbitMQ: what becomes of triggers when the node dies, freezes, blocks or loses a queue."""

from __future__ import annotations

from time import monotonic

import pytest

from brokers.amqp import queue_name
from brokers.rabbitmq import RabbitmqReceiver, RabbitmqSender
from brokers.transport import TransportDown
from runtime.triggers import Outgoing
from settings import Settings
from tests.brokers.conftest import Ends, fetch_all, is_empty
from tests.brokers.rabbitmq.conftest import batch, ids
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.waiting import wait_until

#: The socket time-out of a transport and some room for a slow machine, in seconds.
BOUND = 15.0


def _failed_until(sender: RabbitmqSender, wanted: int) -> list[int]:
    """What ``idle`` reports as failed, until there are ``wanted``."""
    failed: list[int] = []

    def reported() -> bool:
        failed.extend(sender.idle())
        return len(failed) >= wanted

    wait_until(reported, 30, lambda: f"failed: {failed}")
    return failed


def test_a_queue_deleted_under_the_sender_fails_by_id_and_is_declared_again(
    ends: Ends, sender: RabbitmqSender, channel, rabbit_settings: Settings
) -> None:
    sender.publish([*batch(range(3)), *batch(range(10, 12), "b")])
    sender.flush(30)
    channel.queue_delete(queue_name(rabbit_settings.broker_prefix, "a"))

    failed = sender.publish([*batch(range(3, 6)), *batch(range(12, 14), "b")])
    failed += _failed_until(sender, 3 - len(failed))

    assert sorted(failed) == [3, 4, 5]
    assert sender.publish(batch(range(3, 6))) == []
    assert sender.flush(30) == []
    assert ends.transport.depth(["a", "b"]) == {"a": 3, "b": 4}


def test_a_queue_deleted_under_the_receiver_is_declared_and_consumed_again(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, channel, rabbit_settings: Settings
) -> None:
    sender.publish(batch(range(3)))
    fetch_all(receiver, ["a", "b"], 3)

    channel.queue_delete(queue_name(rabbit_settings.broker_prefix, "a"))
    assert is_empty(receiver.fetch(["a", "b"], 5, 0.3))
    sender.publish(batch(range(10, 13)))
    failed = _failed_until(sender, 0) + sender.flush(30)
    sender.publish(batch(range(20, 23)))

    found = fetch_all(receiver, ["a", "b"], 6 - len(failed))
    assert set(ids(found)) | set(failed) == {10, 11, 12, 20, 21, 22}


def test_a_kill_in_a_stream_of_publishes_loses_none_silently(ends: Ends, sender: RabbitmqSender, server: PrivateRabbit) -> None:
    reported = set(sender.publish(batch(range(200))) + sender.flush(30))
    server.write_down()
    published = 200
    killed = False
    while published < 20_000:
        try:
            reported.update(sender.publish(batch(range(published, published + 200))))
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
    arrived = set(ids(fetch_all(ends.receiver(), ["a"], there, limit=500)))
    assert arrived | reported == set(range(published))
    assert sender.publish(batch(range(3))) == []
    assert sender.flush(30) == []


def test_everything_unconfirmed_is_reported_when_the_connection_dies(sender: RabbitmqSender, server: PrivateRabbit) -> None:
    sender.publish(batch(range(3)))
    sender.flush(30)
    server.freeze()
    for start in range(100, 600, 100):
        assert sender.publish(batch(range(start, start + 100))) == []
    server.kill()

    with pytest.raises(TransportDown) as refused:
        sender.flush(30)

    assert refused.value.unpublished == list(range(100, 600))


def test_a_killed_node_is_transport_down_for_receivers_and_depth_and_both_recover(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, server: PrivateRabbit
) -> None:
    sender.publish(batch(range(5)))
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
    assert sorted(ids(fetch_all(receiver, ["a"], 5))) == list(range(5))


def _idle_is_refused(sender: RabbitmqSender) -> bool:
    try:
        sender.idle()
    except TransportDown:
        return True
    return False


def test_receipts_of_an_older_connection_settle_nothing(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, server: PrivateRabbit
) -> None:
    sender.publish(batch(range(5)))
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

    assert sorted(ids(fetch_all(ends.receiver(), ["a"], 5))) == list(range(5))


def test_a_frozen_node_holds_nobody_longer_than_the_time_out(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, server: PrivateRabbit
) -> None:
    sender.publish(batch(range(3)))
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
                sender.publish(batch(range(100, 103)))
            except TransportDown as error:
                reported.extend(error.unpublished)
            assert monotonic() - before < BOUND
            return bool(reported)

        wait_until(gives_up, BOUND, interval=0.2)
        assert set(reported) == {100, 101, 102}
        started = monotonic()
        with pytest.raises(TransportDown):
            sender.publish(batch(range(3)))
        assert monotonic() - started < BOUND
    finally:
        server.thaw()
    wait_until(lambda: _accepted(sender, batch(range(5))), 30)
    assert sender.flush(30) == []


def test_a_memory_alarm_refuses_at_once_and_makes_no_copies(ends: Ends, sender: RabbitmqSender, server: PrivateRabbit) -> None:
    sender.publish(batch(range(3)))
    sender.flush(30)
    server.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        reported: list[int] = []
        attempts = 0

        def is_refused() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                sender.publish(batch(range(3, 6)))
            except TransportDown as error:
                reported.extend(error.unpublished)
            return bool(reported)

        wait_until(is_refused, BOUND)
        assert set(reported) == {3, 4, 5}
        assert attempts < 10
        for _ in range(20):
            started = monotonic()
            with pytest.raises(TransportDown, match="blocked"):
                sender.publish(batch(range(3, 6)))
            assert monotonic() - started < 3.0
    finally:
        server.ctl("set_vm_memory_high_watermark", "0.4")

    wait_until(lambda: _accepted(sender, batch(range(3, 6))), 30)
    sender.flush(30)
    # What was written before the alarm was known arrives once, what the 20 tried during it never.
    assert wait_until(lambda: ends.transport.depth(["a"])["a"], 30) <= 3 + 3 * attempts + 3


def _accepted(sender: RabbitmqSender, batch: list[Outgoing]) -> bool:
    try:
        return sender.publish(batch) == []
    except TransportDown:
        return False


def test_epochs_are_kept_over_a_crash_and_lost_with_the_vhost(ends: Ends, server: PrivateRabbit) -> None:
    inspector = ends.transport.inspector()
    first = inspector.epoch("a", None)
    server.kill()
    with pytest.raises(TransportDown):
        inspector.epoch("a", first)
    server.start()

    assert inspector.epoch("a", first) == first

    server.ctl("delete_vhost", "/")
    server.ctl("add_vhost", "/")
    server.ctl("set_permissions", "-p", "/", "guest", ".*", ".*", ".*")
    second = inspector.epoch("a", first)
    assert second != first
    assert inspector.epoch("a", second) == second
    inspector.close()
