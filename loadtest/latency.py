"""How soon does an idle worker start a job, and what does waiting cost it?

    python -m loadtest.latency --broker rabbitmq

A worker is started and left alone for some seconds, in which its processor time is taken; then jobs are sent one at a time, with a
pause between them that is long enough for everything to fall asleep again. Pick-up is from the row's ``created_at`` to its
``started_at``, both by the database's clock: from inside the send's own statement, before its commit, to the first line of the actor.

Exit code 1 when a job did not complete.

Caveats. On a machine that others use too, p99 says how busy they are. The processor time of an idle process moves in steps of 10 ms,
so let it idle for long enough.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, sleep
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.drain import verify
from loadtest.report import command, machine, table
from loadtest.stand import LoadtestFailed, Stand, WorkerProcesses, stand

#: Time between two looks at the ledger, in seconds; long enough not to keep the machine awake.
LOOK: Final = 0.05
#: How long a worker may settle down after its start before it counts as idle, in seconds.
SETTLE: Final = 2.0


def measure(place: Stand, options: argparse.Namespace) -> dict[str, float]:
    """Idle processor use in percent of a core, and pick-up times in milliseconds. Raises: LoadtestFailed."""
    with place.worker("loadtest.jobs", processes=1, threads=options.threads) as worker:
        _wait_for(place, "SELECT count(*) FROM switchyard.worker", 1, worker, options.timeout)
        sleep(SETTLE)
        before, began = worker.cpu_seconds(), monotonic()
        sleep(options.idle)
        idle = (worker.cpu_seconds() - before) / (monotonic() - began) * 100
        place.send("one", options.jobs, nap=None, pause=options.pause, timeout=options.timeout)
        _wait_for(place, "SELECT count(*) FROM switchyard.job WHERE state = 'completed'", options.jobs, worker, options.timeout)
    verify(place, options.jobs)
    rows = place.database.execute("SELECT extract(epoch FROM started_at - created_at)::float8 * 1000 FROM switchyard.job")
    pickups = [row[0] for row in rows]
    cuts = quantiles(pickups, n=100, method="inclusive")
    return {"idle": idle, "p50": median(pickups), "p90": cuts[89], "p99": cuts[98]}


def _wait_for(place: Stand, statement: str, value: int, worker: WorkerProcesses, timeout: float) -> None:
    deadline = monotonic() + timeout
    while place.query(statement) != (value,):
        worker.check()
        if monotonic() > deadline:
            raise LoadtestFailed(f"not {value} in time (--timeout): {statement}")
        sleep(LOOK)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure once. Raises: LoadtestFailed."""
    with stand(options.broker) as place:
        return {"options": vars(options), "machine": machine(place), "switchyard": measure(place, options)}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    figures = result["switchyard"]
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    rows = [
        ["", f"Switchyard, {result['options']['broker']}"],
        ["pick-up of an idle worker, p50, ms", f"{figures['p50']:.1f}"],
        ["  p90, ms", f"{figures['p90']:.1f}"],
        ["  p99, ms", f"{figures['p99']:.1f}"],
        ["idle worker, % of a core", f"{figures['idle']:.2f}"],
    ]
    return f"{facts}\n\n{table(rows)}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.latency", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--broker", choices=["postgres", "redis", "rabbitmq"], required=True)
    parser.add_argument("--jobs", type=int, default=100, help="jobs to send, one at a time (default 100)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two sends (default 0.1)")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of watching the idle worker (default 10)")
    parser.add_argument("--threads", type=int, default=8, help="threads of the worker (default 8)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one phase may take (default 120)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if not 2 <= options.jobs <= 10_000:
        parser.error("--jobs: 2 to 10,000")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.latency", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
