"""What does the keeper cost while there is nothing to do, what do jobs scheduled for later cost the workers, and how punctual is the relay?

    python -m loadtest.keeper --broker redis

Three phases. At rest: ``switchyard keeper`` and then a worker are left alone, and their processor time and the transactions of their
database are counted (a statement outside a block is a transaction). Later: a million jobs are scheduled for tomorrow beside the worker,
whose memory is read before and after, and the relay's question is timed. Punctuality: jobs come due at a steady rate; late is the time
from a job's ``run_at`` to its ``started_at``, which is after its trigger was published and fetched, so publishing is earlier than that.

Exit code 1 when a job did not complete.

Caveats. On a machine that others use too, p99 says how busy they are. The transactions are those of the whole process, so a worker's
count its heartbeat and its fetcher as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, sleep
from typing import Any, Final
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ledger import write
from ledger.records import NewJob
from ledger.sql import SQL
from loadtest.report import command, machine, table
from loadtest.stand import QUEUE, LoadtestFailed, Stand, WorkerProcesses, stand

#: Time between two looks at the ledger, in seconds.
LOOK: Final = 0.1
#: How long a process may take to start, in seconds.
START: Final = 60.0
#: How long a process may settle down after its start before it counts as idle, in seconds.
SETTLE: Final = 4.0
#: How long before the first due time the jobs are written, in seconds.
LEAD: Final = 3.0
#: How often the relay's question is timed.
QUESTIONS: Final = 50

_LATER = """
    INSERT INTO switchyard.job (message_id, queue, actor, broker, payload, state, run_at, next_publish_at)
    SELECT gen_random_uuid(), %(queue)s, 'noop', %(broker)s, '{"args": [1, {}], "kwargs": {}}', 'scheduled', due, due
    FROM (SELECT now() + interval '1 day' + i * interval '1 ms' AS due FROM generate_series(1, %(jobs)s) AS i) AS later
"""
_KEEPERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'switchyard keeper'"
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"


def at_rest(place: Stand, process: WorkerProcesses, seconds: float) -> dict[str, float]:
    """Processor use in percent of a core, and transactions per second, of a process that has nothing to do. Raises: LoadtestFailed."""
    deadline = monotonic() + START
    while not place.query(_KEEPERS)[0]:
        process.check()
        if monotonic() > deadline:
            raise LoadtestFailed(f"no keeper within {START:g} s of its start")
        sleep(LOOK)
    sleep(SETTLE)
    # Asking is a transaction as well, which counts for the second answer.
    transactions, cpu, began = place.query(_TRANSACTIONS)[0], process.cpu_seconds(), monotonic()
    sleep(seconds)
    elapsed = monotonic() - began
    process.check()
    found = place.query(_TRANSACTIONS)[0] - transactions - 1
    return {"cpu": (process.cpu_seconds() - cpu) / elapsed * 100, "transactions": found / elapsed}


def later(place: Stand, worker: WorkerProcesses, jobs: int) -> dict[str, float]:
    """What jobs scheduled for tomorrow do to a worker's memory (megabytes) and to the relay's question (milliseconds)."""
    before = worker.memory()
    place.database.execute(_LATER, {"queue": QUEUE, "broker": place.settings.broker, "jobs": jobs})
    place.database.execute("VACUUM ANALYZE switchyard.job")
    sleep(SETTLE)
    times = []
    for _ in range(QUESTIONS):
        began = monotonic()
        place.database.execute(SQL["next_due"], {"actors": []})
        times.append((monotonic() - began) * 1000)
    return {"before": before, "after": worker.memory(), "question": median(times)}


def punctuality(place: Stand, worker: WorkerProcesses, jobs: int, rate: float, timeout: float) -> dict[str, float]:
    """How late jobs start that come due at a steady rate, in seconds. Raises: LoadtestFailed."""
    sent = [
        NewJob(
            message_id=str(uuid4()), queue=QUEUE, actor="noop", payload='{"args": [1, {}], "kwargs": {}}',
            broker=place.settings.broker, delay=LEAD + number / rate,
        )
        for number in range(jobs)
    ]  # fmt: skip
    write.enqueue_many(place.database, sent)
    deadline = monotonic() + LEAD + jobs / rate + timeout
    while place.query("SELECT count(*) FROM switchyard.job WHERE state = 'completed'") != (jobs,):
        worker.check()
        if monotonic() > deadline:
            raise LoadtestFailed(f"not all of {jobs} jobs completed in time (--timeout)")
        sleep(LOOK)
    rows = place.database.execute(
        "SELECT extract(epoch FROM started_at - run_at)::float8 FROM switchyard.job WHERE state = 'completed'"
    )
    late = [row[0] for row in rows]
    cuts = quantiles(late, n=100, method="inclusive")
    return {"p50": median(late), "p99": cuts[98], "max": max(late)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All three phases. Raises: LoadtestFailed."""
    with stand(options.broker) as place:
        facts = machine(place)
        with place.keeper() as keeper:
            alone = at_rest(place, keeper, options.idle)
        with place.worker("loadtest.jobs", processes=1, threads=8) as worker:
            beside = at_rest(place, worker, options.idle)
            scheduled = later(place, worker, options.scheduled)
            punctual = punctuality(place, worker, options.jobs, options.rate, options.timeout)
        figures = {"keeper": alone, "worker": beside, "later": scheduled, "late": punctual}
        return {"options": vars(options), "machine": facts, "switchyard": figures}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    figures, options = result["switchyard"], result["options"]
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    rows = [
        ["", f"Switchyard, {options['broker']}"],
        ["keeper alone at rest, % of a core", f"{figures['keeper']['cpu']:.2f}"],
        ["  statements per second", f"{figures['keeper']['transactions']:.2f}"],
        ["worker at rest, % of a core", f"{figures['worker']['cpu']:.2f}"],
        ["  statements per second", f"{figures['worker']['transactions']:.2f}"],
        [f"worker's memory before {options['scheduled']:,} scheduled jobs, MB", f"{figures['later']['before']:.1f}"],
        ["  with them, MB", f"{figures['later']['after']:.1f}"],
        ["  the relay's question, ms", f"{figures['later']['question']:.2f}"],
        [f"start after the due time at {options['rate']:g} due per second, p50, s", f"{figures['late']['p50']:.3f}"],
        ["  p99, s", f"{figures['late']['p99']:.3f}"],
        ["  largest, s", f"{figures['late']['max']:.3f}"],
    ]
    return f"{facts}\n\n{table(rows)}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.keeper", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--broker", choices=["postgres", "redis", "rabbitmq"], required=True)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of watching each process at rest (default 20)")
    parser.add_argument("--scheduled", type=int, default=1_000_000, help="jobs scheduled for tomorrow (default 1,000,000)")
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs that come due (default 10,000)")
    parser.add_argument("--rate", type=float, default=1_000.0, help="how many of them per second (default 1,000)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that the last job may be late (default 120)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if not 2 <= options.jobs <= 1_000_000:
        parser.error("--jobs: 2 to 1,000,000")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.keeper", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
