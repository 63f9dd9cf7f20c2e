"""The same jobs on stock Dramatiq with its stock Redis broker, at its defaults: ``dramatiq loadtest.raw_jobs``.

Nothing of Switchyard's takes part but the settings that say where Redis is and under which prefix the run keeps its keys.
"""

from __future__ import annotations

import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

import settings

_settings = settings.load()

broker = RedisBroker(url=_settings.redis_url.get_secret_value(), namespace=f"{_settings.broker_prefix}-raw")
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(number: int, data: dict[str, object]) -> None:
    """Do nothing."""


@dramatiq.actor
def nap(number: int, data: dict[str, object], milliseconds: float = 50.0) -> None:
    """Occupy a thread without using the processor."""
    time.sleep(milliseconds / 1000)
