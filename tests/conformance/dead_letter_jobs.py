"""Actors that die in every way there is, and the hook that hears of it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

from errors import Permanent
from middleware.current_job import current_job
from tests.conformance.jobs import FAST, note


def declare(broker: Broker) -> SimpleNamespace:
    """Declare them on a broker and return them by name."""
    actors = SimpleNamespace()

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            made = dramatiq.actor(broker=broker, **options)(fn)
            setattr(actors, fn.__name__, made)
            return made

        return register

    @actor()
    def hook(letter: dict[str, Any]) -> None:
        note(f"hook {letter['id']}", letter)

    @actor(max_retries=0, on_dead=hook)
    def fails(text: str = "no", good: bool = False) -> str:
        """Unless told otherwise, or replayed."""
        note(f"ran {current_job().id}")
        if good or current_job().generation > 1:
            return text
        raise ValueError(text)

    @actor(max_retries=0)
    def always_fails(text: str = "no") -> None:
        deeper(text)

    def deeper(text: str) -> None:
        raise LookupError(text)

    @actor(max_retries=1, **FAST)
    def fails_twice() -> None:
        raise ValueError(f"attempt {current_job().attempt}")

    @actor(max_retries=1, on_retry_exhausted="exhausted", **FAST)
    def exhausts() -> None:
        raise ValueError("again")

    @actor()
    def exhausted(message: dict[str, Any], info: dict[str, int]) -> None:
        note(f"exhausted {message['message_id']}", info)

    @actor()
    def permanent() -> None:
        raise Permanent("no use")

    @actor(time_limit=100, max_retries=0)
    def too_slow() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.005)

    @actor()
    def unstorable() -> Any:
        return object()

    @actor(queue_name="parked", on_dead="hook", on_worker_lost="dead")
    def parked(value: Any = None) -> None:
        """Its queue is consumed by nobody, so that tests can hold it themselves."""

    return actors
