"""An actor for each way that a job may go; ``dramatiq tests.acceptance.pooled_worker`` runs them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

import switchyard
from control.schedules import cron
from tests.acceptance import jobs


def declare(broker: Broker) -> SimpleNamespace:
    """Declare the actors, and those of ``jobs``, on a broker."""
    actors = jobs.declare(broker)

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=20, max_backoff=40)
    def fails_first() -> int:
        attempt = switchyard.current_job().attempt
        if attempt == 1:
            raise ValueError("once")
        return attempt

    @dramatiq.actor(broker=broker, max_retries=0)
    def charges() -> None:
        """An effect, a job that follows and the own completion in one commit; and everything that a session would keep."""
        job = switchyard.current_job()
        with job.transaction() as connection:
            connection.execute("INSERT INTO effect (job, attempt, what) VALUES (%s, %s, 'charged')", (job.id, job.attempt))
            actors.quick.send(7)
            connection.execute(
                "SET search_path = pg_catalog; SET timezone = 'Asia/Tokyo'; CREATE TEMP TABLE kept (); LISTEN kept"
            )
            connection.execute("SELECT pg_advisory_lock(4711)")
            job.result = "charged"

    @dramatiq.actor(broker=broker, max_retries=0)
    def runs_on() -> None:
        jobs.leave_trace("runs on")
        while True:
            time.sleep(0.01)

    @dramatiq.actor(broker=broker, concurrency=1, concurrency_key="account")
    def one_at_a_time(account: str) -> None:
        jobs.leave_trace("began")
        time.sleep(0.01)
        jobs.leave_trace("ended")

    @dramatiq.actor(broker=broker, rate_limit="2/second", rate_limit_burst=1)
    def measured() -> None:
        jobs.leave_trace("measured")

    @dramatiq.actor(broker=broker, periodic=cron("* * * * * *"))
    def every_second() -> None:
        jobs.leave_trace("tick")

    @dramatiq.actor(broker=broker, queue_name="aside")
    def aside() -> None:
        jobs.leave_trace("aside")

    made: dict[str, Any] = {name: value for name, value in locals().items() if isinstance(value, dramatiq.Actor)}
    actors.__dict__.update(made)
    return actors
