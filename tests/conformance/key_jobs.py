"""Actors whose jobs have keys, for ``test_idempotency`` and ``test_unique``."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

from middleware.current_job import current_job
from tests.conformance.jobs import gate, note

#: Queues that no worker of these tests consumes.
RESTING = {"parked"}


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
    def charge(key: str, cents: int = 0) -> str:
        note(key, cents)
        return f"charged {cents}"

    @actor()
    def note_message(message: dict[str, Any], result: Any) -> None:
        note("after " + message["message_id"], result)

    @actor()
    def fans_out(key: str) -> list[str]:
        job = current_job()
        with job.transaction():
            first = charge.send_with_options(args=(key, 1), idempotency_key=key)
            second = charge.send_with_options(args=(key, 1), idempotency_key=key)
            job.result = [first.message_id, second.message_id, second.options.get("replayed")]
        return []

    @actor(queue_name="parked", unique_key=("account",))
    def rebuild(account: int, reason: str = "") -> None:
        note(f"rebuild {account}", reason)

    @actor(unique_key=lambda key, value: key)
    def gated(key: str, value: int) -> int:
        note(key, value)
        if not gate(key).wait(30):
            raise TimeoutError(key)
        return value

    @actor(unique_for=3600)
    def hourly(key: str) -> None:
        note(key)

    @actor(unique_for=timedelta(hours=1), unique_mode="throttle", unique_key=("key",), max_retries=0)
    def throttled(key: str, value: int) -> None:
        note(key, value)
        raise ValueError("no")

    @actor(unique_key=("key",), unique_mode="debounce", unique_max_wait=timedelta(minutes=10))
    def index(key: str, value: int) -> None:
        note(key, value)
        if value < 0 and not gate(key).wait(30):
            raise TimeoutError(key)

    return actors
