"""Actors for real worker processes: ``dramatiq tests.acceptance.worker``. What they do is on record in a table of the test's ledger."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import dramatiq
from dramatiq import Broker

import switchyard
from middleware.current_job import current_job

#: Where bodies leave their traces.
TABLE = (
    "CREATE TABLE effect (job uuid NOT NULL, attempt int NOT NULL, what text NOT NULL, at timestamptz DEFAULT clock_timestamp())"
)


def leave_trace(what: str) -> None:
    """Record, committed at once, that the current job has come this far."""
    job = current_job()
    switchyard.database().run(
        lambda c: c.execute("INSERT INTO effect (job, attempt, what) VALUES (%s, %s, %s)", (job.id, job.attempt, what))
    )


def declare(broker: Broker) -> SimpleNamespace:
    """Declare the actors on a broker."""

    @dramatiq.actor(broker=broker)
    def quick(n: int = 0) -> int:
        return n

    @dramatiq.actor(broker=broker)
    def traced() -> None:
        leave_trace("ran")

    @dramatiq.actor(broker=broker)
    def brief(seconds: float = 0.05) -> None:
        time.sleep(seconds)

    @dramatiq.actor(broker=broker, max_retries=0)
    def wait_for_file(path: str) -> int:
        """Ends once the file exists; the last line of its log is written only by the job's valid holder."""
        leave_trace("started")
        while not Path(path).exists():
            time.sleep(0.02)
        attempt = current_job().attempt
        current_job().log(f"done in attempt {attempt}")
        return attempt

    @dramatiq.actor(broker=broker, max_retries=0)
    def stubborn(seconds: float) -> None:
        leave_trace("started")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                time.sleep(deadline - time.monotonic())
            except BaseException:
                continue

    @dramatiq.actor(broker=broker, max_retries=0)
    def exits() -> None:
        leave_trace("exits")
        os._exit(9)

    return SimpleNamespace(quick=quick, traced=traced, brief=brief, wait_for_file=wait_for_file, stubborn=stubborn, exits=exits)
