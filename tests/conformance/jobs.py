"""The actors of the conformance cases, declared on any broker, in this process or in a worker's."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker
from dramatiq.errors import Retry

from errors import Permanent, Snooze
from middleware.current_job import current_job

#: Bodies that ran in this process, by a key that the test chooses.
runs: Counter[str] = Counter()
#: What bodies saw, in the order they ran, by key.
seen: dict[str, list[Any]] = {}
_lock = threading.Lock()
_gates: dict[str, threading.Event] = {}

#: Back-offs for tests, in milliseconds.
FAST: dict[str, Any] = {"min_backoff": 50, "max_backoff": 100}

#: What may stand in ``Retry(delay=)`` by mistake: by name, since JSON has some of them not.
ODD_DELAYS: dict[str, Any] = {
    "minus infinity": -math.inf, "nan": math.nan, "negative": -5, "infinity": math.inf, "huge": 10**400, "text": "100",
    "timedelta": timedelta(seconds=1), "truth": True,
}  # fmt: skip


def note(key: str, value: Any = None) -> None:
    """Remember that a body ran."""
    with _lock:
        runs[key] += 1
        seen.setdefault(key, []).append(value)


def gate(key: str) -> threading.Event:
    """The event that ``wait_at_gate(key)`` waits for."""
    with _lock:
        return _gates.setdefault(key, threading.Event())


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
    _declare_failing(actor, actors)
    _declare_reporting(actor, actors)
    _declare_async(actor)
    return actors


def _declare_plain(actor: Any) -> None:
    @actor()
    def add(a: int, b: int) -> int:
        return a + b

    @actor()
    def echo(value: Any = None) -> Any:
        return value

    @actor(store_results=False)
    def quiet() -> int:
        return 5

    @actor()
    def unstorable() -> Any:
        return object()

    @actor()
    def huge() -> str:
        return "x" * 300_000

    @actor(queue_name="parked")
    def parked(value: Any = None) -> None:
        """Its queue is consumed by nobody in the shared system."""

    @actor(tags=["blue", "big"])
    def tagged() -> None:
        return None

    @actor()
    def typed(count: int, name: str, ratio: float = 1.0, flags: list[str] | None = None) -> None:
        return None

    @actor(queue_name="counted")
    def count(key: str, value: Any = None) -> None:
        note(key, value)

    @actor(queue_name="gated")
    def wait_at_gate(key: str) -> str:
        note(key)
        if not gate(key).wait(30):
            raise TimeoutError(key)
        return "through"


def _declare_failing(actor: Any, actors: SimpleNamespace) -> None:
    @actor(max_retries=3, **FAST)
    def fails_until(attempt: int) -> int:
        if current_job().attempt < attempt:
            raise ValueError(f"not yet, attempt {current_job().attempt}")
        return current_job().attempt

    @actor(max_retries=2, **FAST)
    def always_fails(text: str = "no") -> None:
        raise ValueError(text)

    @actor(max_retries=0)
    def fails_once() -> None:
        raise ValueError("once")

    @actor(max_retries=None, **FAST)
    def unbounded() -> int:
        if current_job().attempt < 5:
            raise ValueError("again")
        return current_job().attempt

    @actor(throws=KeyError, **FAST)
    def throws() -> None:
        raise KeyError("expected")

    @actor(**FAST)
    def permanent() -> None:
        raise Permanent("no use")

    @actor(max_retries=2, min_backoff=60_000)
    def retry_soon() -> int:
        if current_job().attempt == 1:
            raise Retry("soon", delay=100)
        return current_job().attempt

    @actor(max_retries=1, **FAST)
    def retry_after(kind: str) -> int:
        if current_job().attempt == 1:
            raise Retry("later", delay=ODD_DELAYS[kind])
        return current_job().attempt

    @actor(max_retries=0, retry_when=lambda failures, error: isinstance(error, OSError) and failures < 2, **FAST)
    def retry_when(kind: str) -> None:
        raise OSError(kind) if kind == "os" else ValueError(kind)

    @actor(max_retries=0)
    def snoozes() -> int:
        if current_job().attempt < 3:
            raise Snooze(0.05)
        return current_job().attempt

    @actor(max_retries=0)
    def enqueues_itself() -> str:
        job = current_job()
        if job.attempt == 1:
            message = dramatiq.Message(
                queue_name=job.queue, actor_name=job.actor, args=(), kwargs={}, options={}, message_id=job.id
            )
            actors.enqueues_itself.broker.enqueue(message, delay=50)
        return f"attempt {job.attempt}"

    @actor(time_limit=100, max_retries=0)
    def too_slow(key: str = "", seconds: float = 10.0) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.005)
        return "done"

    @actor(max_age=50)
    def ages() -> str:
        return "young"

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @actor(max_retries=1, **FAST)
    def unprintable() -> None:
        raise Unprintable

    def undecided(failures: int, error: BaseException) -> bool:
        raise RuntimeError("cannot tell")

    @actor(max_retries=1, retry_when=undecided, **FAST)
    def retry_when_raises() -> None:
        raise ValueError("first")

    @actor(max_retries=0)
    def exits() -> None:
        raise SystemExit("out")


def _declare_reporting(actor: Any, actors: SimpleNamespace) -> None:
    @actor()
    def reports() -> None:
        job = current_job()
        job.progress(10, "first")
        job.progress(60, "second")
        job.log("line one")
        job.log("line two \x00 \ud800")

    @actor()
    def reports_a_lot(seconds: float) -> int:
        job, calls = current_job(), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            calls += 1
            job.progress(50, str(calls))
        for number in range(20):
            job.log(str(number))
        return calls

    @actor(max_retries=0)
    def reports_then_fails() -> None:
        current_job().progress(10, "first")
        current_job().progress(70, "second")
        raise ValueError("late")

    @actor()
    def parent() -> str:
        child: str = actors.echo.send("child").message_id
        return child

    @actor(max_retries=0)
    def sends_and_fails(key: str) -> None:
        note(key, actors.echo.send("child").message_id)
        if not gate(key).wait(30):
            raise TimeoutError(key)
        raise ValueError("after it has sent")

    @actor()
    def who_am_i() -> dict[str, Any]:
        job = current_job()
        return {"id": job.id, "actor": job.actor, "queue": job.queue, "attempt": job.attempt, "max_attempts": job.max_attempts}

    @actor()
    def on_success(message: dict[str, Any], result: Any) -> None:
        note("success " + message["message_id"], result)

    @actor()
    def on_failure(message: dict[str, Any], error: dict[str, str]) -> None:
        note("failure " + message["message_id"], error)

    @actor()
    def on_exhausted(message: dict[str, Any], info: dict[str, int]) -> None:
        note("exhausted " + message["message_id"], info)

    @actor(on_success="on_success", on_failure="on_failure", on_retry_exhausted="on_exhausted", max_retries=1, **FAST)
    def with_callbacks(fail: bool) -> int:
        if fail:
            raise ValueError("told to")
        return 7


def _declare_async(actor: Any) -> None:
    @actor()
    async def async_add(a: int, b: int) -> int:
        await asyncio.sleep(0.001)
        return a + b

    @actor()
    async def async_who() -> dict[str, Any]:
        await asyncio.sleep(0.001)

        async def inner() -> str:
            current_job().log("from a nested task")
            return current_job().id

        return {"id": current_job().id, "task": await asyncio.create_task(inner())}

    @actor(max_retries=1, **FAST)
    async def async_fails() -> int:
        if current_job().attempt == 1:
            raise ValueError("async")
        return current_job().attempt

    @actor(time_limit=100, max_retries=0)
    async def async_too_slow() -> None:
        await asyncio.sleep(30)
