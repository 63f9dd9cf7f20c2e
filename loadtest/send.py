"""Sends the jobs of a load test from a process of its own and prints how long that took, as one line of JSON.

    python -m loadtest.send one --jobs 1000        actor.send() in a loop, one thread
    python -m loadtest.send many --jobs 1000       enqueue_many in thousands
    python -m loadtest.send raw --jobs 1000        stock Dramatiq's actor.send() in a loop

``seconds`` is until the last call returned, which is when the last row is committed; ``published`` until the broker had also taken
every trigger, confirms included. The first connection to Postgres or Redis is made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from time import perf_counter, sleep
from typing import Any, Final

import switchyard

#: What every job carries: about 200 bytes of JSON.
PAYLOAD: Final = {"order": 4711, "customer": "Ada Lovelace", "items": [1, 2, 3, 4, 5], "note": "x" * 110}
#: Jobs of one ``enqueue_many``.
BULK: Final = 1_000
#: How long the publisher may take for what is left, in seconds.
PUBLISH_TIMEOUT: Final = 120.0


def send(way: str, jobs: int, nap: float | None, pause: float = 0.0) -> dict[str, float]:
    """Send ``jobs`` jobs one way, with ``pause`` seconds after each single one, and return the times in seconds."""
    # Either module makes its broker Dramatiq's own when it is imported, so only one of them may be.
    module = import_module("loadtest.raw_jobs" if way == "raw" else "loadtest.jobs")
    actor, extra = (module.noop, ()) if nap is None else (module.nap, (nap,))
    connect(actor.broker)
    started = perf_counter()
    if way == "many":
        for first in range(0, jobs, BULK):
            numbers = range(first, min(first + BULK, jobs))
            switchyard.enqueue_many([actor.message(number, PAYLOAD, *extra) for number in numbers])
    else:
        for number in range(jobs):
            actor.send(number, PAYLOAD, *extra)
            if pause:
                sleep(pause)
    seconds = perf_counter() - started
    if way != "raw":
        actor.broker.publisher.close(PUBLISH_TIMEOUT)
    return {"seconds": seconds, "published": perf_counter() - started}


def connect(broker: Any) -> None:
    """Open the connection that sends will use: what is measured is sending."""
    if hasattr(broker, "database"):
        broker.database.run(lambda connection: connection.execute("SELECT 1"))
    else:
        broker.client.ping()


def main() -> None:
    """Send, and print the times."""
    parser = argparse.ArgumentParser(prog="loadtest.send", description="Send the jobs of a load test.")
    parser.add_argument("way", choices=["one", "many", "raw"])
    parser.add_argument("--jobs", type=int, required=True, help="how many")
    parser.add_argument("--nap", type=float, help="milliseconds that each job sleeps; default: it does nothing")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each single send; default: none")
    options = parser.parse_args()
    print(json.dumps(send(options.way, options.jobs, options.nap, options.pause)), flush=True)


if __name__ == "__main__":
    main()
