"""Actors for real worker processes: ``dramatiq tests.acceptance.worker``. What they do is on record in a table of the test's ledger."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker
from dramatiq.asyncio import get_event_loop_thread

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

    @dramatiq.actor(broker=broker, max_retries=0)
    def crashes() -> None:
        leave_trace("crashes")
        ctypes.string_at(0)

    @dramatiq.actor(broker=broker, max_retries=0, on_worker_lost="dead")
    def exits_once() -> None:
        leave_trace("exits")
        os._exit(9)

    @dramatiq.actor(broker=broker, max_retries=0)
    def swells(limit: int | None = None) -> None:
        """Takes memory until there is none: more than ``limit`` bytes beyond what the process has now are refused to it."""
        leave_trace("swells")
        if limit is not None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + limit, resource.RLIM_INFINITY))
        try:
            hoard = []
            while True:
                hoard.append(bytearray(2**24))
        finally:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    @dramatiq.actor(broker=broker, max_retries=0)
    def is_killed() -> None:
        """What becomes of a process that takes more memory than there is."""
        leave_trace("is killed")
        os.kill(os.getpid(), signal.SIGKILL)

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=60_000, time_limit=300)
    def hangs_in_c(seconds: float) -> None:
        leave_trace("started")
        # It lets the others run, and no exception reaches it.
        ctypes.CDLL(None).usleep(int(seconds * 1_000_000))
        leave_trace("returned")

    @dramatiq.actor(broker=broker, max_retries=0, time_limit=600_000)
    def keeps_the_interpreter() -> None:
        leave_trace("started")
        re.match("(a+)+$", "a" * 64 + "b")

    @dramatiq.actor(broker=broker)
    def holds_memory(mebibytes: int) -> int:
        _held.append(bytearray(b"x") * (mebibytes * 2**20))
        return os.getpid()

    @dramatiq.actor(broker=broker)
    def process_id() -> int:
        return os.getpid()

    @dramatiq.actor(broker=broker, max_retries=0)
    def sabotages(part: str, how: str) -> None:
        """Breaks a part of the worker process that runs it: its thread ``dies`` or ``hangs``."""
        leave_trace("sabotage")
        sabotage(broker, part, how)

    return SimpleNamespace(**{name: value for name, value in locals().items() if isinstance(value, dramatiq.Actor)})


_held: list[bytearray] = []


def sabotage(broker: Any, part: str, how: str) -> None:
    """Have the loop of one of this process's threads end, or stand still, in its next round."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        if how == "hangs":
            threading.Event().wait()
        raise SystemExit

    side, node = broker.middleware[0], broker.node
    if part == "fetcher":
        side.consumption.fetchers["redis"]._round = broken
    elif part == "flusher":
        node.flusher._settle = broken
    elif part == "heartbeat":
        node.heartbeat.beat = broken
    elif part == "keeper":
        broker.services[0]._relay = broken
    elif part == "publisher":
        # It begins with the first offer.
        broker.publisher.offer("redis", ())
        broker.publisher._collect = broken
    elif part == "event loop":
        loop = get_event_loop_thread().loop
        loop.call_soon_threadsafe(loop.stop if how == "dies" else broken)
    elif part == "worker thread":
        node.queue._wait = broken
