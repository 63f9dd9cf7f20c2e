"""What every transport owes (``brokers/transport.py``), on each of them. What only one can do or suffer is in its own module."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from time import monotonic

import pytest

import brokers
import brokers.rabbitmq
from brokers.transport import BANDS, TransportDown, band
from errors import SettingsError
from runtime.triggers import Outgoing
from settings import Settings
from tests.brokers.conftest import CARRYING, Ends, fetch_all, is_empty, put_raw
from tests.rig.ports import free_port
from tests.rig.processes import ROOT
from tests.rig.waiting import wait_until

on_carrying = pytest.mark.parametrize("broker_name", CARRYING)


def _batch(ids: range | list[int], queue: str = "a", priority: int = 0) -> list[Outgoing]:
    return [Outgoing(number, queue, "send_email", priority) for number in ids]


@on_carrying
def test_what_was_published_arrives_as_it_was(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    batch = [
        Outgoing(1, "a", "send_email"),
        Outgoing(2**53, "b", "größe ändern · 日本"),
        Outgoing(3, "b", "two words\nand lines", -50),
    ]

    assert sender.publish(batch) == []
    assert sender.flush(30) == []

    found = {(trigger.job_id, trigger.queue, trigger.actor) for trigger in fetch_all(receiver, ["a", "b"], 3)}
    assert found == {(item.job_id, item.queue, item.actor) for item in batch}


@on_carrying
def test_a_settled_trigger_is_gone_and_a_queue_empty(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(20)))
    fetch_all(receiver, ["a"], 20)
    receiver.close()

    assert is_empty(ends.receiver().fetch(["a"], 50, 0.3))
    assert ends.transport.depth(["a"]) == {"a": 0}


@on_carrying
def test_best_band_first_and_in_order_within_a_band(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    priorities = [0, 100, -100, 1, 0, 10, -100, 5, 2, 0, 50, 1]
    sender.publish([Outgoing(number, "a", "x", priority) for number, priority in enumerate(priorities)])
    sender.flush(30)

    found = [trigger.job_id for trigger in fetch_all(receiver, ["a"], len(priorities), limit=3)]

    assert found == sorted(range(len(priorities)), key=lambda number: (band(priorities[number]), number))


@on_carrying
def test_two_receivers_share_a_queue_and_each_gets_the_best_first(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow the machine, none of the two puts anything back.
    monkeypatch.setattr(brokers.rabbitmq, "ROOM_WINDOW", 60.0)
    sender, receivers = ends.sender(), [ends.receiver(), ends.receiver()]
    sender.publish([Outgoing(number, "a", "x", -(number % 3)) for number in range(60)])
    sender.flush(30)

    found: list[list[int]] = [[], []]
    deadline = monotonic() + 30
    while sum(map(len, found)) < 60:
        assert monotonic() < deadline, found
        for receiver, mine in zip(receivers, found, strict=True):
            fetched = receiver.fetch(["a"], 4, 0.05)
            receiver.settle(fetched.triggers)
            mine += [trigger.job_id for trigger in fetched.triggers]

    assert sorted(found[0] + found[1]) == list(range(60))
    for mine in found:
        bands = [band(-(number % 3)) for number in mine]
        assert mine
        assert bands == sorted(bands)


@on_carrying
def test_order_holds_over_many_batches(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    for start in range(0, 3000, 300):
        sender.publish(_batch(range(start, start + 300)))

    assert [trigger.job_id for trigger in fetch_all(receiver, ["a"], 3000, limit=170)] == list(range(3000))


@on_carrying
def test_a_long_queue_does_not_starve_a_short_one(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(1000), "a"))
    sender.publish(_batch([5000, 5001, 5002], "b"))
    sender.flush(30)

    found = [trigger.job_id for trigger in fetch_all(receiver, ["a", "b"], 200, limit=10)]

    assert {5000, 5001, 5002} <= set(found)


@on_carrying
def test_an_idle_receiver_wakes_at_once(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch([0]))
    fetch_all(receiver, ["a", "b"], 1)
    latencies = []
    for number in range(1, 6):
        arrived: list[float] = []

        def wait(arrived: list[float] = arrived) -> None:
            fetched = receiver.fetch(["a", "b"], 10, 5.0)
            arrived.append(monotonic())
            receiver.settle(fetched.triggers)

        thread = threading.Thread(target=wait)
        thread.start()
        # Long enough for the receiver to block, so that it is the wake-up that is measured.
        thread.join(0.05)
        sent = monotonic()
        sender.publish(_batch([number], "b"))
        thread.join(10)
        latencies.append(arrived[0] - sent)
    # Asleep, each would take the five seconds of its wait.
    assert sorted(latencies)[2] < 2.0, latencies


@on_carrying
@pytest.mark.parametrize("timeout", [0.0, 0.4])
def test_an_empty_fetch_takes_its_timeout(ends: Ends, timeout: float) -> None:
    receiver = ends.receiver()
    receiver.fetch(["a", "b"], 1, 0.0)

    started = monotonic()
    assert is_empty(receiver.fetch(["a", "b"], 5, timeout))

    assert timeout * 0.9 <= monotonic() - started < timeout + 3.0


@on_carrying
def test_waiting_costs_no_cpu(ends: Ends) -> None:
    receiver = ends.receiver()
    receiver.fetch(["a", "b"], 10, 0.0)

    before = time.thread_time()
    receiver.fetch(["a", "b"], 10, 1.0)

    assert time.thread_time() - before < 0.2


@on_carrying
def test_a_limit_is_kept_and_zero_takes_nothing(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(10)))
    sender.flush(30)

    started = monotonic()
    assert is_empty(receiver.fetch(["a"], 0, 5.0))
    assert is_empty(receiver.fetch([], 5, 5.0))
    assert monotonic() - started < 4.0
    assert ends.transport.depth(["a"]) == {"a": 10}
    first = receiver.fetch(["a"], 3, 1.0)
    assert 1 <= len(first.triggers) <= 3


@on_carrying
def test_what_cannot_be_read_is_dropped_and_its_neighbours_arrive(ends: Ends, settings: Settings) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    foreign = [b"nonsense", b"12", b"\xff\xfe", b"9" * 40 + b" forged", b"7 \xff", b"-3 x", b" x", b'{"queue_name": "a"}']
    sender.publish(_batch([1, 2]))
    sender.flush(30)
    put_raw(settings, "a", foreign)
    sender.publish(_batch([3, 4]))
    sender.flush(30)

    found: list[int] = []
    dropped: list[bytes] = []
    deadline = monotonic() + 10
    while len(found) < 4 or len(dropped) < len(foreign):
        assert monotonic() < deadline, (found, dropped)
        fetched = receiver.fetch(["a"], 3, 0.5)
        receiver.settle(fetched.triggers)
        found += [trigger.job_id for trigger in fetched.triggers]
        dropped += fetched.undecodable

    assert sorted(found) == [1, 2, 3, 4]
    assert sorted(dropped) == sorted(foreign)
    receiver.close()
    assert is_empty(ends.receiver().fetch(["a"], 50, 0.3))


@on_carrying
def test_what_is_given_back_comes_again_before_what_is_newer(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(6)))
    sender.flush(30)
    taken = wait_until(lambda: receiver.fetch(["a"], 3, 1.0).triggers, 30)

    receiver.give_back(taken)
    receiver.close()
    other = ends.receiver()

    assert [trigger.job_id for trigger in fetch_all(other, ["a"], 6)] == list(range(6))


@on_carrying
def test_settling_or_giving_back_twice_is_harmless(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch(range(10)))
    taken = fetch_all(receiver, ["a"], 10)
    receiver.settle(taken)
    sender.publish(_batch(range(10, 20)))
    assert len(fetch_all(receiver, ["a"], 10)) == 10
    receiver.close()

    receiver.settle(taken)
    sender.publish(_batch(range(20, 30)))
    assert sorted(trigger.job_id for trigger in fetch_all(receiver, ["a"], 10)) == list(range(20, 30))


@on_carrying
def test_a_second_copy_does_no_harm(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish(_batch([1, 2, 1]))
    sender.publish(_batch([2, 3]))
    sender.flush(30)

    found: set[int] = set()
    deadline = monotonic() + 10
    while found != {1, 2, 3}:
        assert monotonic() < deadline, found
        found |= {trigger.job_id for trigger in fetch_all(receiver, ["a"], 1)}


@on_carrying
def test_queues_may_change_between_fetches(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish([*_batch([1], "a"), *_batch([2], "b"), *_batch([3], "c")])
    sender.flush(30)

    assert [trigger.job_id for trigger in fetch_all(receiver, ["a"], 1)] == [1]
    assert [trigger.job_id for trigger in fetch_all(receiver, ["c", "a"], 1)] == [3]
    assert is_empty(receiver.fetch(["a", "c"], 5, 0.2))
    assert [trigger.job_id for trigger in fetch_all(receiver, ["a", "b", "c"], 1)] == [2]


@on_carrying
def test_two_hundred_queues_are_served_by_one_receiver(ends: Ends) -> None:
    queues = ends.queues = [f"many{number}" for number in range(200)]
    sender, receiver = ends.sender(), ends.receiver()
    sender.publish([Outgoing(number, queue, "x") for number, queue in enumerate(queues)])

    found = fetch_all(receiver, queues, 200, limit=16, timeout=20)

    assert sorted(trigger.job_id for trigger in found) == list(range(200))
    assert all(trigger.queue == f"many{trigger.job_id}" for trigger in found)


@on_carrying
def test_depth_counts_what_waits_and_knows_nothing_of_strangers(ends: Ends) -> None:
    ends.sender().publish([*_batch(range(7), "a"), *_batch(range(3), "b")])

    wait_until(lambda: ends.transport.depth(["a", "b", "never"]) == {"a": 7, "b": 3, "never": 0}, 30)


@pytest.mark.parametrize("broker_name", brokers.TRANSPORTS)
def test_nobody_listening_is_transport_down_with_the_ids(make_ends, settings: Settings, broker_name: str) -> None:
    port = free_port()
    unreachable = settings.model_copy(
        update={
            name: type(settings.redis_url)(f"{scheme}://127.0.0.1:{port}/x")
            for name, scheme in (("redis_url", "redis"), ("rabbitmq_url", "amqp"), ("database_url", "postgresql"))
        }
    )
    ends = make_ends(unreachable)
    carries = ends.transport.carries_triggers
    for _ in range(2):
        with pytest.raises(TransportDown) as refused:
            ends.sender().publish(_batch([1, 2, 3]))
        assert refused.value.unpublished == ([1, 2, 3] if carries else [])
        if carries:
            with pytest.raises(TransportDown):
                ends.receiver().fetch(["a"], 1, 0.1)
        for queues in ([], ["a"]):
            with pytest.raises(TransportDown):
                ends.transport.depth(queues)


def test_an_unknown_broker_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="no transport 'kafka'; write one of postgres, redis, rabbitmq"):
        brokers.transport_class("kafka")


@pytest.mark.parametrize(("name", "driver"), [("redis", "redis"), ("rabbitmq", "pika")])
def test_a_missing_driver_names_the_extra(name: str, driver: str) -> None:
    # In a process of its own: this one has imported the driver long ago.
    script = f"import sys; sys.modules[{driver!r}] = None; import brokers; brokers.transport_class({name!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"BROKER: {name} needs a driver that is not installed: pip install 'switchyard[{name}]'" in done.stderr


def test_constructing_connects_to_nothing_and_a_broken_url_names_its_setting(settings: Settings) -> None:
    for name in brokers.TRANSPORTS:
        transport = brokers.make_transport(name, settings)
        transport.sender().close()
        transport.close()
    for name, scheme in (("redis", "redis"), ("rabbitmq", "amqp")):
        field = f"{name}_url"
        broken = settings.model_copy(update={field: type(settings.redis_url)(f"{scheme}://:secret@host:port/0")})
        with pytest.raises(SettingsError, match=field.upper()) as error:
            brokers.make_transport(name, broken).receiver()
        assert "secret" not in str(error.value)


def test_bands_keep_the_order_of_priorities() -> None:
    priorities = sorted([-(10**6), -100, -99, -10, -9, -5, -1, 0, 1, 2, 5, 10, 20, 50, 100, 10**6])
    bands = [band(priority) for priority in priorities]
    assert bands == sorted(bands)
    assert (bands[0], bands[-1], len(set(bands))) == (0, BANDS - 1, BANDS)
    assert band(-1) < band(0) < band(1) < band(2)
