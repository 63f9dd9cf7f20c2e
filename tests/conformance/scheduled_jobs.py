"""Actors that come by the clock, for the conformance cases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

from control.schedules import cron
from middleware.current_job import current_job
from tests.conformance.jobs import note

#: A schedule whose ticks do not come during a test: midnight of a leap day.
NEVER = "0 0 29 2 *"


def declare(broker: Broker) -> SimpleNamespace:
    """Declare them on a broker and return them by name."""
    actors = SimpleNamespace()

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            made = dramatiq.actor(broker=broker, **options)(fn)
            setattr(actors, fn.__name__, made)
            return made

        return register

    @actor(periodic=cron("* * * * * *"))
    def every_second() -> str:
        job = current_job()
        note(f"{job.schedule} {job.tick_at}", job.id)
        return f"{job.schedule} {job.tick_at}"

    @actor(periodic="@hourly")
    def every_hour() -> None:
        return None

    @actor(queue_name="leap", priority=3, max_retries=1, periodic=cron(NEVER, timezone="Europe/Berlin", args=["eu"]))
    def leap(region: str) -> str:
        return region

    @actor()
    def plain(value: Any = None) -> Any:
        return value

    return actors
