"""Actors with schedules and without, and what became of their ticks."""

from __future__ import annotations

from types import SimpleNamespace

import dramatiq

import switchyard
from control.schedules import cron


def declare_actors(broker):
    """Plain, with a schedule, limited, debounced, with a secret."""
    actors = SimpleNamespace()

    @dramatiq.actor(broker=broker)
    def work(value=None):
        return value

    @dramatiq.actor(broker=broker, periodic=cron("0 8 * * *", "Europe/Berlin", "last", args=["morning"], jitter=60))
    def digest(what):
        return what

    @dramatiq.actor(broker=broker, rate_limit="100/minute", concurrency=2, tags=["counted"], max_retries=7)
    def limited():
        return None

    @dramatiq.actor(broker=broker, unique_mode="debounce")
    def debounced():
        return None

    @dramatiq.actor(broker=broker, secret=("card",))
    def charge(order, card=None):
        return order

    actors.work, actors.digest = work, digest
    return actors


def stored(name):
    """The schedule of that name."""
    return switchyard.get_schedule(name)


def jobs(system, name="hourly"):
    """The ticks of a schedule that have a job."""
    return [row[0] for row in system.rows("SELECT tick_at FROM switchyard.job WHERE schedule = %s ORDER BY 1", name)]
