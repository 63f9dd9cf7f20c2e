"""The actors of the workflow cases."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

import switchyard
from middleware.current_job import current_job
from tests.conformance.jobs import FAST, gate, note

_lock = threading.Lock()
_inside: set[int] = set()


def declare(broker: Broker) -> SimpleNamespace:
    """Declare all actors on a broker and return them by name."""
    actors = SimpleNamespace()

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            made = dramatiq.actor(broker=broker, **options)(fn)
            setattr(actors, fn.__name__, made)
            return made

        return register

    _declare_plain(actor)
    _declare_remembering(actor)
    _declare_growing(actor, actors)
    return actors


def _declare_plain(actor: Any) -> None:
    @actor()
    def add(a: int, b: int) -> int:
        return a + b

    @actor()
    def collect(*values: Any) -> list[Any]:
        return list(values)

    @actor(store_results=False)
    def secretive(value: Any) -> Any:
        return value

    @actor(store_results=False)
    def unstorable() -> Any:
        return object()

    @actor(pipe_ignore=True)
    def keeps_to_itself() -> str:
        return "mine"

    @actor()
    def takes_nothing() -> str:
        return "nothing"

    @actor()
    def notes(key: str, *values: Any) -> None:
        note(key, list(values))

    @actor(max_retries=0, **FAST)
    def needs(key: str, *values: Any) -> list[Any]:
        """Fails until the gate is open."""
        if not gate(key).is_set():
            raise ValueError("closed")
        return [*values, "open"]

    @actor(max_retries=0)
    def dies() -> None:
        raise ValueError("no")

    @actor(queue_name="gated")
    def waits(key: str, *values: Any) -> str:
        note(key)
        if not gate(key).wait(30):
            raise TimeoutError(key)
        return key

    @actor(queue_name="parked")
    def parked(*values: Any) -> None:
        """Its queue is consumed by nobody."""

    @actor(max_age=60_000)
    def ages(*values: Any) -> list[Any]:
        return list(values)

    @actor()
    def kills(marker: str, value: int) -> list[int]:
        """Its worker dies in the first attempt."""
        if current_job().attempt == 1:
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [value, current_job().attempt]

    @actor(concurrency=1, rate_limit="1000/second")
    def one_at_a_time(value: int) -> int:
        with _lock:
            assert not _inside, "another one is inside"
            _inside.add(value)
        time.sleep(0.002)
        _inside.discard(value)
        return value

    @actor()
    def completes_itself(value: int) -> None:
        with current_job().transaction():
            current_job().result = value + 1


def _declare_remembering(actor: Any) -> None:
    @actor(max_retries=3, **FAST)
    def remembers(key: str) -> Any:
        job = current_job()
        first = job.step("first", lambda: note(key + " first") or {"done": (1, 2)})
        second = job.step("second", int, "7")
        if job.attempt < 2 and job.generation == 1:
            raise ValueError("after the steps")
        return [first, second]

    @actor(max_retries=0)
    def remembers_and_dies(key: str) -> Any:
        value = current_job().step("once", lambda: note(key) or "kept")
        if not gate(key).is_set():
            raise ValueError("closed")
        return value

    @actor(max_retries=3, **FAST)
    async def remembers_async(key: str) -> Any:
        async def fetch(number: int) -> int:
            note(key)
            return number

        value = await current_job().step_async("fetch", fetch, 5)
        if current_job().attempt < 2:
            raise ValueError("after the step")
        return value


def _declare_growing(actor: Any, actors: SimpleNamespace) -> None:
    @actor()
    def splits(depth: int) -> int:
        batch = current_job().batch_id
        assert batch is not None
        if depth:
            switchyard.add_to_batch(batch, [actors.splits.message(depth - 1) for _ in range(2)])
        return depth
