"""The publisher: a broker that fails opens its circuit, and no trigger is forgotten without its row being made due."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from middleware.log_context import configure_structlog
from runtime import publisher as module
from runtime.publisher import Publisher
from runtime.triggers import Outgoing, PublishFailed
from tests.rig.forks import in_child
from tests.rig.waiting import wait_until

GRACE = 30.0


class Outlet:
    """The publishing side of a broker that the test may switch off."""

    def __init__(self) -> None:
        self.down = False
        #: Answers the probe although it takes nothing.
        self.answers = False
        self.broken: Exception | None = None
        self.published: list[int] = []
        self.refused_ids: list[int] = []
        self.calls: list[str] = []
        #: Queues that it refuses.
        self.closed_queues: list[str] = []

    def refused(self):
        return self.closed_queues

    def publish(self, batch):
        self.calls.append("publish")
        if self.broken is not None:
            raise self.broken
        if self.down:
            raise PublishFailed("fake", "down", unpublished=[trigger.job_id for trigger in batch])
        self.published += [trigger.job_id for trigger in batch]
        refused, self.refused_ids = self.refused_ids, []
        return refused

    def flush(self, timeout):
        self.calls.append("flush")
        return []

    def idle(self):
        self.calls.append("idle")
        return []

    def close(self):
        self.calls.append("close")

    def probe(self, name):
        if self.down and not self.answers:
            raise PublishFailed("fake", "still down")


@pytest.fixture
def outlet():
    return Outlet()


@pytest.fixture(autouse=True)
def _log_lines():
    """Log lines go where ``caplog`` hears them."""
    configure_structlog()


@pytest.fixture
def due():
    return []


@pytest.fixture
def publisher(outlet, due, monkeypatch):
    monkeypatch.setattr(module, "TIDY_IDLE", 0.02)
    publisher = Publisher(outlet=lambda name: outlet, probe=outlet.probe, make_due=due.extend, grace=GRACE)
    yield publisher
    publisher.close(0.5)


def triggers(*ids):
    return [Outgoing(id_, "q", "a") for id_ in ids]


def test_what_is_offered_is_published_in_order(publisher, outlet):
    for number in range(2_500):
        publisher.offer("fake", triggers(number))

    wait_until(lambda: len(outlet.published) == 2_500)
    assert outlet.published == list(range(2_500))
    assert publisher.grace("fake", "q") == GRACE


def test_a_failure_opens_the_circuit_and_makes_the_rows_due(publisher, outlet, due):
    outlet.down = True
    publisher.offer("fake", triggers(1, 2))
    wait_until(lambda: publisher.is_open("fake"))

    publisher.offer("fake", triggers(3))

    assert due == [1, 2]
    assert publisher.grace("fake", "q") == 0
    outlet.down = False
    wait_until(lambda: not publisher.is_open("fake"), message="it is tried again")
    publisher.offer("fake", triggers(4))
    wait_until(lambda: outlet.published == [4])
    assert publisher.grace("fake", "q") == GRACE
    assert due == [1, 2]


def test_what_the_broker_refuses_is_made_due(publisher, outlet, due):
    outlet.refused_ids = [8]

    publisher.offer("fake", triggers(7, 8, 9))

    wait_until(lambda: due == [8])
    assert not publisher.is_open("fake")


def test_a_broker_that_answers_and_takes_nothing_is_tried_less_and_less_often(publisher, outlet, due, monkeypatch):
    monkeypatch.setattr(module, "RETRY_MIN", 0.05)
    outlet.down = outlet.answers = True
    pauses = []
    for number in range(5):
        publisher.offer("fake", triggers(number))
        wait_until(lambda number=number: number in due, message="it fails")
        wait_until(lambda: not publisher.is_open("fake"), message="it answers, so it is tried again")
        pauses.append(publisher._circuits["fake"].pause)

    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    outlet.down = False
    publisher.offer("fake", triggers(9))
    wait_until(lambda: outlet.published == [9])
    # Something was published: the next failure begins with the shortest pause.
    wait_until(lambda: publisher._circuits["fake"].pause == 0.05)


def test_a_queue_that_the_broker_refuses_is_left_alone_and_the_others_go_on(publisher, outlet, monkeypatch):
    due = []
    # Known before its rows are due, or the relay would offer them again at once.
    monkeypatch.setattr(publisher, "_make_due", lambda ids: due.extend((id_, set(publisher.refused("fake"))) for id_ in ids))
    publisher.offer("fake", triggers(1))
    wait_until(lambda: outlet.published == [1])
    outlet.closed_queues, outlet.refused_ids = ["q"], [2]
    publisher.offer("fake", triggers(2))
    wait_until(lambda: due)

    assert due == [(2, {"q"})]
    assert publisher.refused("fake") == {"q"}
    assert not publisher.is_open("fake")
    assert (publisher.grace("fake", "q"), publisher.grace("fake", "r")) == (0, GRACE)
    publisher.offer("fake", [*triggers(3), Outgoing(4, "r", "work"), *triggers(5)])
    wait_until(lambda: 4 in outlet.published)
    assert outlet.published == [1, 2, 4]

    outlet.closed_queues = []
    wait_until(lambda: not publisher.refused("fake"), message="it is asked when idle")
    publisher.offer("fake", triggers(6))
    wait_until(lambda: outlet.published == [1, 2, 4, 6])


def test_whatever_goes_wrong_in_it_the_thread_lives_on_and_the_rows_become_due(publisher, outlet, due, caplog):
    publisher.offer("fake", triggers(1))
    wait_until(lambda: outlet.published == [1])
    outlet.broken = RuntimeError("a bug")
    publisher.offer("fake", triggers(2, 3))
    wait_until(lambda: due == [2, 3])
    assert publisher.is_open("fake")
    outlet.broken = None

    wait_until(lambda: not publisher.is_open("fake"), message="it is tried again")
    publisher.offer("fake", triggers(4))

    wait_until(lambda: outlet.published == [1, 4])
    assert [record.levelname for record in caplog.records if "publishing failed" in record.getMessage()] == ["CRITICAL"]


def test_a_probe_that_fails_in_a_way_nobody_thought_of_is_only_tried_again(outlet, due, caplog, monkeypatch):
    monkeypatch.setattr(module, "TIDY_IDLE", 0.02)
    probed = []

    def probe(name):
        probed.append(name)
        if len(probed) == 1:
            raise RuntimeError("a bug")

    publisher = Publisher(outlet=lambda name: outlet, probe=probe, make_due=due.extend, grace=GRACE)
    outlet.down = True
    publisher.offer("fake", triggers(1))
    wait_until(lambda: publisher.is_open("fake"), interval=0.001)
    outlet.down = False

    wait_until(lambda: not publisher.is_open("fake"), message="the second probe went well")
    publisher.offer("fake", triggers(2))

    wait_until(lambda: outlet.published == [2])
    publisher.close(0.5)
    assert len([record for record in caplog.records if "the probe of a broker failed" in record.getMessage()]) == 1


def test_closing_publishes_what_is_left_first(publisher, outlet):
    for number in range(500):
        publisher.offer("fake", triggers(number))

    publisher.close(5.0)

    assert outlet.published == list(range(500))
    assert outlet.calls[-2:] == ["flush", "close"]


def test_an_exit_waits_two_seconds_for_a_broker_that_takes_for_ever(publisher, outlet):
    publishing, go_on = threading.Event(), threading.Event()

    def for_ever(batch):
        publishing.set()
        go_on.wait(60)
        return []

    outlet.publish = for_ever
    publisher.offer("fake", triggers(1))
    assert publishing.wait(10)

    try:
        began = monotonic()
        publisher.close()
        took = monotonic() - began
    finally:
        go_on.set()

    assert 2 <= took < 5


def test_offers_from_many_threads_all_arrive(publisher, outlet):
    threads = [
        threading.Thread(target=lambda start=start: [publisher.offer("fake", triggers(start + n)) for n in range(500)])
        for start in range(0, 4_000, 500)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    wait_until(lambda: len(outlet.published) == 4_000)
    assert sorted(outlet.published) == list(range(4_000))


def test_nothing_runs_before_the_first_offer():
    before = threading.active_count()

    publisher = Publisher(outlet=lambda name: Outlet(), probe=lambda name: None, make_due=lambda ids: None, grace=GRACE)

    assert publisher.grace("fake", "q") == GRACE
    assert threading.active_count() == before
    publisher.close()


def test_a_child_that_was_forked_while_another_thread_began_publishes(publisher, outlet):
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with publisher._lock:
            held.set()
            forked.wait()

    def publish() -> object:
        publisher.offer("fake", triggers(1))
        wait_until(lambda: outlet.published == [1])
        return outlet.published

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        answer = in_child(publish)
    finally:
        forked.set()
        holder.join()

    assert answer == "[1]"
    assert outlet.published == []
