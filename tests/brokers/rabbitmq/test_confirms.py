"""RabbitMQ: confirms, delivery tags, and the connection of a receiver that is full."""

from __future__ import annotations

from time import monotonic

import pytest

import brokers.amqp
import brokers.rabbitmq
import brokers.subscription
from brokers.rabbitmq import WINDOW, RabbitmqReceiver, RabbitmqSender
from brokers.transport import Trigger
from settings import Settings
from tests.brokers.conftest import Ends, fetch_all, is_empty
from tests.brokers.rabbitmq.conftest import batch, ids
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.waiting import wait_until


def test_confirms_are_followed_in_the_background(sender: RabbitmqSender) -> None:
    for start in range(0, 2000, 200):
        assert sender.publish(batch(range(start, start + 200))) == []
    assert sender.flush(30) == []
    assert not sender._unconfirmed


def test_a_batch_larger_than_the_window_waits_for_confirms(sender: RabbitmqSender, ends: Ends) -> None:
    sender.publish(batch(range(WINDOW + 3000)))
    assert len(sender._unconfirmed) <= WINDOW
    sender.flush(30)
    wait_until(lambda: ends.transport.depth(["a"]) == {"a": WINDOW + 3000}, 30)


def test_a_closed_sender_left_nothing_behind(ends: Ends, sender: RabbitmqSender, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine: RabbitMQ listens to the goodbye in the end.
    monkeypatch.setattr(brokers.amqp, "_GOODBYE", 60.0)
    sender.publish(batch(range(4000)))
    sender.close()
    # The channel has taken all of them in; its queue is a process of its own.
    wait_until(lambda: ends.transport.depth(["a"]) == {"a": 4000}, 30)


def test_refused_publishes_come_back_as_failed(sender: RabbitmqSender, server: PrivateRabbit, rabbit_settings: Settings) -> None:
    pattern = rabbit_settings.broker_prefix
    server.ctl("set_policy", "full", pattern, '{"max-length": 5, "overflow": "reject-publish"}', "--apply-to", "queues")
    try:
        sender.publish(batch(range(5)))
        sender.flush(30)
        failed = sender.publish(batch(range(5, 20))) + sender.flush(30)
    finally:
        server.ctl("clear_policy", "full")
    # RabbitMQ lets a message or two more in than it says.
    assert len(failed) >= 10
    assert set(failed) <= set(range(5, 20))


def test_settling_out_of_order_settles_just_those(ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver) -> None:
    sender.publish(batch(range(20)))
    sender.flush(30)
    taken: list[Trigger] = []
    deadline = monotonic() + 30
    while len(taken) < 20:
        assert monotonic() < deadline, taken
        taken += receiver.fetch(["a"], 20 - len(taken), 1.0).triggers

    for start in (0, 2, 1):
        receiver.settle([trigger for trigger in taken if trigger.job_id % 4 == start])
    receiver.close()

    assert sorted(ids(fetch_all(ends.receiver(), ["a"], 5))) == [3, 7, 11, 15, 19]
    assert ends.transport.depth(["a"]) == {"a": 0}


def test_a_full_receiver_keeps_its_connection(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers.amqp, "_HEARTBEAT", 2)
    sender.publish(batch(range(3)))
    sender.flush(30)
    taken = wait_until(lambda: receiver.fetch(["a"], 3, 2.0).triggers, 30)

    # Two heartbeats missed and some more would be the end of a connection.
    until = monotonic() + 7
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and monotonic() > until, 30, interval=0.1)
    receiver.settle(taken)
    receiver.close()

    assert ends.transport.depth(["a"]) == {"a": 3 - len(taken)}
