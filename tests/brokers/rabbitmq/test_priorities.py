"""RabbitMQ: what a receiver is pushed, how much of it, and in which order it gives it out: by priority, each queue in its turn."""

from __future__ import annotations

from time import monotonic

import pytest

import brokers.amqp
import brokers.rabbitmq
import brokers.subscription
from brokers.rabbitmq import RabbitmqReceiver, RabbitmqSender
from brokers.subscription import Level
from brokers.transport import Trigger
from runtime.triggers import Outgoing
from tests.brokers.conftest import Ends, fetch_all, is_empty
from tests.brokers.rabbitmq.conftest import batch, ids
from tests.rig.waiting import wait_until


def test_what_one_receiver_has_no_room_for_goes_to_another(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver
) -> None:
    sender.publish(batch(range(100)))
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
    assert sorted(ids(mine) + ids(theirs)) == list(range(100))


def test_with_room_for_one_now_and_then_every_queue_has_its_turn(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers.subscription, "_CALM", 0.01)
    monkeypatch.setattr(brokers.subscription, "_CALM_PER_QUEUE", 0.0)
    queues = ["a", "b", "c"]
    for queue in queues:
        sender.publish(batch(range(20), queue))
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
    sender.publish(batch(range(10)))
    held = receiver._subscription
    assert held is not None
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and len(held._buffer["a"]) == 10, 30)

    sender.publish([Outgoing(99, "a", "send_email", -10)])
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and len(held._buffer["a"]) == 11, 30)

    assert ids(receiver.fetch(["a"], 3, 1.0).triggers) == [99, 0, 1]


def test_what_was_pushed_while_there_was_no_room_gives_way_to_something_better(
    ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine: every fetch comes after a long job, none of them shrinks the level, and no exchange is too dear.
    monkeypatch.setattr(brokers.rabbitmq, "ROOM_WINDOW", 0.0)
    monkeypatch.setattr(brokers.rabbitmq, "_EXCHANGE_SHARE", 1e9)
    monkeypatch.setattr(brokers.subscription, "_CALM", 1_000)
    sender.publish(batch(range(100, 102)))
    receiver.settle(fetch_all(receiver, ["a", "b"], 2, limit=1))
    held = receiver._subscription
    assert held is not None
    sender.publish([*batch(range(1)), *batch(range(10, 11), "b")])
    wait_until(lambda: is_empty(receiver.fetch(["a", "b"], 0, 0.0)) and len(held._buffer["a"]) == len(held._buffer["b"]) == 1)
    sender.publish([Outgoing(1, "a", "send_email", -10), Outgoing(11, "b", "send_email", -10)])
    sender.flush(30)

    found = fetch_all(receiver, ["a", "b"], 4, limit=1)

    assert [trigger.job_id for trigger in found if trigger.queue == "a"] == [1, 0]
    assert [trigger.job_id for trigger in found if trigger.queue == "b"] == [11, 10]


class Clock:
    """The clock of a receiver, to be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        monkeypatch.setattr(brokers.rabbitmq, "monotonic", lambda: monotonic() + self.ahead)


def test_the_time_that_a_claim_takes_is_no_rest(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a busy machine, whose claims take longer than the window, would put back each time what it needs next."""
    monkeypatch.setattr(brokers.rabbitmq, "ROOM_WINDOW", 600.0)
    clock = Clock(monkeypatch)
    sender.publish(batch(range(2)))
    taken: list[Trigger] = []

    def all_taken() -> bool:
        taken.extend(receiver.fetch(["a"], 2, 1.0).triggers)
        return len(taken) == 2

    wait_until(all_taken)

    clock.ahead += 10_000
    receiver.settle(taken[:1])
    assert not receiver._may_be_better()
    clock.ahead += 10_000
    receiver.give_back(taken[1:])
    assert not receiver._may_be_better()

    clock.ahead += 10_000
    assert receiver._may_be_better()


def test_exchanges_take_a_bounded_share_of_a_receivers_time(
    sender: RabbitmqSender, receiver: RabbitmqReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers.rabbitmq, "ROOM_WINDOW", 0.0)
    monkeypatch.setattr(brokers.subscription, "_CALM", 1_000)
    clock = Clock(monkeypatch)
    sender.publish(batch(range(3)))
    sender.flush(30)
    receiver.settle(fetch_all(receiver, ["a"], 1, limit=1))
    held = receiver._subscription
    assert held is not None
    wait_until(lambda: is_empty(receiver.fetch(["a"], 0, 0.0)) and len(held._buffer["a"]) == 1)

    exchange = held.exchange

    def slow() -> bool:
        clock.ahead += 10
        return exchange()

    monkeypatch.setattr(held, "exchange", slow)
    fetch_all(receiver, ["a"], 1, limit=1)

    assert clock.ahead == 10
    clock.ahead += 90
    assert not receiver._may_be_better()
    clock.ahead += 1_000
    assert receiver._may_be_better()


def test_a_receiver_of_long_jobs_holds_little(ends: Ends, sender: RabbitmqSender, receiver: RabbitmqReceiver) -> None:
    sender.publish(batch(range(300)))
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
    sender.publish(batch(range(4000)))
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
        sender.publish(batch(range(200), queue))
        sender.flush(30)
        fetch_all(receiver, queues, 200, limit=64)
    assert set(pushed._shares.values()) == {64}
    for queue in queues:
        sender.publish(batch(range(500), queue))
    sender.flush(30)

    def bounded() -> bool:
        receiver.settle(receiver.fetch(queues, 20, 0.05).triggers)
        return set(pushed._shares.values()) == {8}

    wait_until(bounded, 30, lambda: str(pushed._shares))


def test_levels_rise_at_once_and_fall_after_a_calm_period() -> None:
    level = Level()
    assert [level.follow(limit, 1000) for limit in (0, 1, 3, 200, 5, 0)] == [0, 1, 4, 256, 256, 256]
    assert level.follow(10, 0) == 256, "200 were wanted in the period that ends here"
    assert level.follow(10, 0) == 16
    assert level.follow(0, 0) == 16
    assert level.follow(0, 0) == 0
