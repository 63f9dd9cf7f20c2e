"""Jobs that write down each of their executions in a file of the load test's own, so that the ledger is not its own witness.

A line is written with one ``write`` to a file that is only appended to, so lines of different processes never mix:

    start <message id>
    end <message id>
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import dramatiq

import switchyard

#: How often a process looks for the file that its held jobs wait for, in seconds.
LOOK: Final = 0.05


class CountedJobs(NamedTuple):
    """The actors, declared on one broker."""

    #: Writes down that it ran.
    brief: dramatiq.Actor[[str], None]
    #: Occupies its thread until a file is there.
    held: dramatiq.Actor[[str, str], None]


def declare(broker: dramatiq.Broker) -> CountedJobs:
    """Declare the actors on a broker."""

    @dramatiq.actor(broker=broker)
    def brief(executions: str) -> None:
        _write(executions, "start")
        _write(executions, "end")

    @dramatiq.actor(broker=broker)
    def held(executions: str, until: str) -> None:
        _write(executions, "start")
        _exists(until).wait()
        _write(executions, "end")

    return CountedJobs(brief, held)


def _write(executions: str, what: str) -> None:
    descriptor = os.open(executions, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what} {switchyard.current_job().id}\n".encode())
    finally:
        os.close(descriptor)


@cache
def _exists(path: str) -> threading.Event:
    """Set once the file is there. One thread per process looks for it, however many jobs wait."""
    found = threading.Event()

    def look() -> None:
        while not Path(path).exists():
            time.sleep(LOOK)
        found.set()

    threading.Thread(target=look, daemon=True).start()
    return found


def started(executions: Path) -> Counter[str]:
    """How often each job was started."""
    return _counted(executions, "start")


def wrong(executions: Path, accepted: Iterable[str]) -> dict[str, list[str]]:
    """The jobs that were not started, or not ended, exactly once; and executions of what nobody sent. Empty: all is well."""
    wanted, found = Counter(accepted), {}
    for what in ("start", "end"):
        counted = _counted(executions, what)
        found[f"no {what}"] = list((wanted - counted).elements())
        found[f"{what}ed again"] = list((counted - wanted).elements())
    return {what: ids for what, ids in found.items() if ids}


def _counted(executions: Path, what: str) -> Counter[str]:
    if not executions.exists():
        return Counter()
    return Counter(line.split(" ", 1)[1] for line in executions.read_text().splitlines() if line.startswith(f"{what} "))
