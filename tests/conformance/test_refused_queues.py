"""A queue that the broker refuses, since somebody put something else in its place: its jobs wait, all others run, and once it is repaired
they run as well, without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis

from brokers import refusals
from brokers.amqp import ask, opened, queue_name
from brokers.redis import queue_key
from brokers.transport import TransportDown
from settings import Settings
from tests.conformance.system import System
from tests.rig.rabbitmq import remove_queues
from tests.rig.waiting import wait_until

#: Jobs of each queue.
JOBS = 20


class Done:
    """What ran, by queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.numbers: dict[str, set[int]] = {"good": set(), "bad": set()}

    def declare(self, broker: dramatiq.Broker) -> Any:
        """Actors ``good`` and ``bad``, each with a queue of its name."""

        def of(queue: str) -> Any:
            def run(number: int) -> None:
                with self._lock:
                    self.numbers[queue].add(number)

            return dramatiq.actor(broker=broker, actor_name=queue, queue_name=queue)(run)

        return {queue: of(queue) for queue in self.numbers}


class Spoilt:
    """Something else in the place of a queue."""

    def __init__(self, settings: Settings, queue: str) -> None:
        self._settings, self._queue = settings, queue

    def spoil(self) -> None:
        if self._settings.broker == "redis":
            with redis.Redis.from_url(self._settings.redis_url.get_secret_value()) as client:
                client.delete(self._key)
                client.set(self._key, "not a queue")
        else:
            wait_until(self._declared_otherwise, 30, "it is declared otherwise")

    def repair(self) -> None:
        if self._settings.broker == "redis":
            with redis.Redis.from_url(self._settings.redis_url.get_secret_value()) as client:
                client.delete(self._key)
        else:
            remove_queues(self._settings.rabbitmq_url.get_secret_value(), [self._key])

    @property
    def _key(self) -> str:
        prefix = self._settings.broker_prefix
        return queue_key(prefix, self._queue) if self._settings.broker == "redis" else queue_name(prefix, self._queue)

    def _declared_otherwise(self) -> bool:
        """Delete the queue and declare it without priorities, in one piece: a receiver declares it anew as soon as it hears of the end."""
        link = opened(self._settings.rabbitmq_url.get_secret_value(), "test")
        try:
            with link.writing() as channel:
                channel.queue_delete(self._key)
            ask(link, lambda channel, answer: channel.queue_declare(self._key, durable=True, callback=answer))
        except TransportDown:
            return False
        else:
            return True
        finally:
            link.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "RETRY_MIN", 0.2)
    monkeypatch.setattr(refusals, "RETRY_MAX", 0.5)


@pytest.fixture
def settings(make_settings: Callable[..., Settings], broker_name: str) -> Settings:
    if broker_name == "postgres":
        pytest.skip("its rows are the messages: there is nothing to refuse")
    return make_settings()


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_refused_queue_holds_up_nothing_but_its_own_jobs_and_goes_on_by_itself(settings: Settings, when: str) -> None:
    done, spoilt = Done(), Spoilt(settings, "bad")
    system = System(settings, declare=done.declare)
    try:
        if when == "before":
            spoilt.spoil()
        system.start(threads=2)
        if when == "amid":
            for queue, actor in system.jobs.items():
                actor.send(-1)
                wait_until(lambda queue=queue: done.numbers[queue] == {-1}, 30, f"{queue} runs")
            spoilt.spoil()
        broker = settings.broker
        sent = [system.jobs["bad"].send(0)]
        if when == "before":
            wait_until(lambda: system.broker.publisher.refused(broker) == {"bad"}, 30, "it is refused")
        for number in range(1, JOBS):
            sent.append(system.jobs["bad"].send(number))
            system.jobs["good"].send(number)
        wait_until(lambda: done.numbers["good"] >= set(range(1, JOBS)), 30, lambda: f"the others run: {done.numbers}")

        assert not system.broker.publisher.is_open(broker)
        assert {system.job(message).state for message in sent} == {"pending"}
        assert done.numbers["bad"] <= {-1}

        spoilt.repair()
        wait_until(lambda: done.numbers["bad"] >= set(range(JOBS)), 60, lambda: f"its own run: {done.numbers}")
        assert not system.broker.publisher.refused(broker)
    finally:
        system.close()
