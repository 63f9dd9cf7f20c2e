"""Pipelines and groups without any server: on the stub broker they are Dramatiq's own."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.stub import StubBroker

from control.batches import add_to_batch
from control.composition import group, pipeline
from middleware import stub_stack


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = StubBroker(middleware=stub_stack())
    broker.emit_after("process_boot")
    yield broker
    broker.close()


@pytest.fixture
def add(broker):
    @dramatiq.actor(broker=broker)
    def add(a: int, b: int) -> int:
        return a + b

    return add


@pytest.fixture
def worker(broker) -> Iterator[Worker]:
    worker = Worker(broker, worker_timeout=100)
    worker.start()
    yield worker
    worker.stop()


def test_a_pipeline_runs_on_the_stub(broker, add, worker):
    pipe = pipeline([add.message(1, 2), add.message(10) | add.message(100)], broker=broker) | add.message(1_000)

    pipe.run()

    assert pipe.get_result(block=True) == 1_113
    assert list(pipe.get_results(block=True)) == [3, 13, 113, 1_113]
    assert (len(pipe), pipe.completed, pipe.completed_count) == (4, True, 4)


def test_a_group_runs_on_the_stub_and_calls_back_when_it_is_complete(broker, add, worker):
    done = add.message(5, 5)
    children = group([add.message(n, n) for n in range(3)], broker=broker, on_complete=done)

    children.run()

    assert list(children.get_results(block=True)) == [0, 2, 4]
    assert done.get_result(backend=broker.get_results_backend(), block=True) == 10


def test_what_needs_the_ledger_says_so(broker, add, monkeypatch):
    monkeypatch.setattr("control.access.broker", lambda: broker)

    with pytest.raises(NotImplementedError, match="a group inside a pipeline"):
        pipeline([add.message(1, 2), group([add.message(1)], broker=broker)], broker=broker).run()
    with pytest.raises(NotImplementedError, match="batches need the ledger"):
        add_to_batch("00000000-0000-7000-8000-000000000001", [])


def test_a_pipeline_needs_a_message(broker):
    with pytest.raises(ValueError, match="at least one"):
        pipeline([], broker=broker)
