"""The actors of the cases about cancelling, pausing and priorities."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

from errors import Cancelled
from middleware.current_job import current_job
from tests.conformance.jobs import gate, note

#: Long enough for a test to step in, in seconds; nothing waits for it.
LONG = 30.0


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
    _declare_stopping(actor)
    return actors


def _declare_plain(actor: Any) -> None:
    @actor()
    def echo(key: str, value: Any = None) -> Any:
        note(key, value)
        return value

    @actor(queue_name="other")
    def elsewhere(key: str, value: Any = None) -> Any:
        note(key, value)
        return value

    @actor()
    def plug(key: str) -> None:
        """Keeps a thread busy until the test opens its gate."""
        note(key)
        if not gate(key).wait(LONG):
            raise TimeoutError(key)

    @actor(max_retries=1, min_backoff=1, max_backoff=1)
    def fails_first(key: str) -> None:
        note(key)
        if current_job().attempt == 1:
            raise ValueError("once")

    @actor()
    def snoozes_once(key: str) -> int:
        note(key)
        if current_job().attempt == 1:
            current_job().snooze(0.05)
        return current_job().attempt


def _declare_stopping(actor: Any) -> None:
    @actor(min_backoff=1, max_backoff=1)
    def spins(key: str) -> None:
        note(key)
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            time.sleep(0.005)

    @actor(min_backoff=1, max_backoff=1)
    def cleans_up(key: str, then: str) -> str:
        note(key)
        until = time.monotonic() + LONG
        try:
            while time.monotonic() < until:
                time.sleep(0.005)
        except Cancelled:
            note(key, "cleaned up")
            if then == "raise":
                raise
            if then == "fail":
                raise ValueError("during the clean-up") from None
        return "done all the same"

    @actor()
    def asks(key: str) -> str:
        """Stands for a library that swallows what is raised in it; asks between two calls."""
        note(key)
        never = threading.Event()
        while True:
            try:
                if current_job().cancelled:
                    return "asked"
                never.wait(0.05)
            except Cancelled:
                continue

    @actor()
    def stops_itself(key: str) -> None:
        note(key)
        raise Cancelled("no longer wanted")

    @actor(max_retries=0)
    async def sleeps(key: str) -> None:
        note(key)
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            note(key, "task cancelled")
            raise
