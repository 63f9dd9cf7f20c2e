"""The jobs of the load tests, as Switchyard runs them: ``dramatiq loadtest.jobs``."""

from __future__ import annotations

import time

import dramatiq

import switchyard

switchyard.configure()


@dramatiq.actor
def noop(number: int, data: dict[str, object]) -> None:
    """Do nothing."""


@dramatiq.actor
def nap(number: int, data: dict[str, object], milliseconds: float = 50.0) -> None:
    """Occupy a thread without using the processor."""
    time.sleep(milliseconds / 1000)
