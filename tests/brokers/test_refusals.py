"""Refused queues: asked for again ever less often, said once, and recognised in what RabbitMQ says."""

from __future__ import annotations

import pytest
from pika.exceptions import ChannelClosedByBroker

from brokers import refusals as module
from brokers.amqp import queue_name, refused_queue
from brokers.refusals import Refusals
from brokers.transport import QueueRefused, TransportDown
from middleware.log_context import configure_structlog


class Clock:
    """The time, as the test says."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
def refusals() -> Refusals:
    return Refusals("rabbitmq", "publish")


def _refused(queue: str = "a", reason: str = "declared otherwise") -> QueueRefused:
    return QueueRefused(queue, reason, "delete it")


def test_the_pauses_double_up_to_half_a_minute_whether_it_is_refused_or_cannot_be_asked(refusals: Refusals, clock: Clock) -> None:
    pauses = []
    for round_ in range(8):
        if round_ == 2:
            refusals.put_off(["a", "unknown"])
        else:
            refusals.note(_refused())
        began = clock.now
        while not refusals.due():
            assert refusals.rests("a")
            clock.now += 0.5
        assert not refusals.rests("a")
        pauses.append(clock.now - began)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert list(refusals) == ["a"]

    refusals.accept("a")
    assert not refusals
    refusals.note(_refused())
    clock.now += module.RETRY_MIN
    assert refusals.due() == ["a"]


def test_a_refusal_is_said_once_for_each_reason(refusals: Refusals, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    configure_structlog()
    for reason in ("one", "one", "other", "other"):
        refusals.note(_refused(reason=reason))
    refusals.note(_refused("b", "one"))

    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING"] * 3
    assert ["'error': 'one'" in text for _, text in said] == [True, False, True]
    assert all("delete it" in text for _, text in said)


def test_a_round_of_asking_ends_in_time_and_the_next_one_asks_the_others(refusals: Refusals, clock: Clock) -> None:
    for queue in ("a", "b", "c"):
        refusals.note(_refused(queue))
        clock.now += 0.1
    clock.now += module.RETRY_MIN
    asked: list[str] = []

    def slow(queue: str) -> None:
        asked.append(queue)
        clock.now += module.ROUND
        if queue == "a":
            raise _refused(queue)

    refusals.ask(refusals.due(), slow)
    assert asked == ["a"]
    refusals.ask(refusals.due(), slow)
    assert asked == ["a", "b"]
    assert sorted(refusals) == ["a", "c"]


@pytest.mark.parametrize(
    ("code", "text", "found"),
    [
        (
            406,
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue '{a}' in vhost '/': received 'true' but current is 'false'",
            "a",
        ),
        (403, "ACCESS_REFUSED - access to queue '{a}' in vhost '/' refused for user 'me'", "a"),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{ab}' in vhost '/'", "ab"),
        (403, "ACCESS_REFUSED - access to exchange 'p.a.epoch.1f' in vhost '/' refused for user 'me'", "a"),
        (406, "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'p.ab.p...", "ab"),
        (404, "NOT_FOUND - home node 'r@h' of durable queue '{a}' in vhost '/' is down or inaccessible", "a"),
        (404, "NOT_FOUND - queue '{ab}' in vhost '/' process is stopped by supervisor", "ab"),
        (404, "NOT_FOUND - queue '{ab}' in vhost '/' has crashed and failed to restart", "ab"),
        # Of all queues, of none of ours, of nothing that an operator could do anything about.
        (403, "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'me'", None),
        (406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'other' in vhost '/'", None),
        (406, "PRECONDITION_FAILED - unknown delivery tag 7", None),
        (404, "NOT_FOUND - no queue '{a}' in vhost '/'", None),
    ],
)
def test_what_closed_a_channel_is_a_matter_of_one_queue_or_of_the_broker(code: int, text: str, found: str | None) -> None:
    names = {queue: queue_name("p", queue) for queue in ("a", "ab")}
    error = TransportDown("rabbitmq", text)
    error.__cause__ = ChannelClosedByBroker(code, text.format(**names))

    refused = refused_queue(error, "p", names)

    assert (refused and refused.queue) == found
    if refused is not None:
        assert names[refused.queue] in refused.advice
