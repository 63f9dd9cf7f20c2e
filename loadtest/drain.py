"""How many jobs a second are sent, and how many does one worker get done, with every job tracked in the ledger?

    python -m loadtest.drain --broker redis --jobs 20000 --baseline

In each round: half of the jobs are sent one by one, half in bulk, then a real ``dramatiq`` worker is started and watched until the
ledger says that every row is completed. With ``--baseline`` the same number of jobs goes through stock Dramatiq on Redis at its
defaults, untracked, in the same round. What is printed are medians of the rounds (min-max), and ratios to the baseline.

    send, bulk   from the first call to the return of the last: committed rows; one thread, one process
    bare INSERT  what the disk allows: single rows of a job's size, committed by one plain psycopg connection
    published    the same jobs, until the broker has taken every trigger, RabbitMQ's confirms included
    drain        from the start of the first job to the moment at which a look at the ledger finds the last one completed (raw
                 Dramatiq: from the first message taken to the last one acknowledged); looks are 10 ms apart; the start of the
                 processes is left out on both sides
    worker CPU   of the ``dramatiq`` command and its processes over the drain, per job

Exit code 1 when a row is not completed, or took more than one attempt.

A result, 2 cores of an AMD EPYC that others used too, 2026-11-21 (more in docs/performance.md):

                                   Switchyard, redis      Dramatiq, redis   ratio
    send, jobs/s                   1,236 (620-1,307)  4,334 (3,052-4,385)  0.29 x
      bare INSERT, commits/s     1,845 (1,110-2,748)                    -
    bulk, jobs/s             16,579 (10,309-23,288)                    -  3.83 x
    drain, jobs/s            12,943 (12,912-14,646)  2,024 (2,005-2,250)  6.40 x
      worker CPU, us/job                 34 (33-40)        266 (220-365)  0.13 x

Caveats. Sender, worker and servers share the machine, so the figures are of the whole system on these cores, and another tenant of
the machine moves them by a third: compare within one run only. The jobs do nothing: real ones make every ratio smaller. Raw Dramatiq
at its defaults is held up by a back-off sleep and not by its processor time; given a prefetch of 200 it drains about 1.7 times as
much. The bulk rate of one process is no limit of Postgres. Each ``send`` waits for one fsync, so it cannot be faster than a bare
INSERT; the rest of the figures hardly notices the disk.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.report import command, machine, ratio, spread, table
from loadtest.stand import QUEUE, LoadtestFailed, Stand, WorkerProcesses, stand

#: Time between two looks at how far a drain is, in seconds.
LOOK: Final = 0.01
#: Most jobs of a run; more belong on a machine of their own.
MAX_JOBS: Final = 500_000
#: The rows of the table: their titles, and the names of the figures.
ROWS: Final = (
    ("send, jobs/s", "send"),
    ("  published, triggers/s", "send published"),
    ("  bare INSERT, commits/s", "commit"),
    ("bulk, jobs/s", "bulk"),
    ("  published, triggers/s", "bulk published"),
    ("drain, jobs/s", "drain"),
    ("  worker CPU, us/job", "cpu"),
)

Figures = dict[str, list[float]]


def tracked_round(place: Stand, options: argparse.Namespace) -> dict[str, float]:
    """One round of ours. Raises: LoadtestFailed: a job did not end as it must."""
    place.empty()
    one = options.jobs // 2
    figures = {"commit": place.commits()}
    for name, way, count in (("send", "one", one), ("bulk", "many", options.jobs - one)):
        if count:
            times = place.send(way, count, nap=options.nap, timeout=options.timeout)
            figures[name] = count / times["seconds"]
            figures[f"{name} published"] = count / times["published"]
    (rows,) = place.query("SELECT count(*) FROM switchyard.job")
    if rows != options.jobs:
        raise LoadtestFailed(f"{options.jobs} jobs were sent, the ledger has {rows}")
    with place.worker("loadtest.jobs", processes=options.processes, threads=options.threads) as worker:
        figures |= _timed(_TrackedProgress(place, options.jobs), worker, options)
    verify(place, options.jobs)
    return figures


def raw_round(place: Stand, options: argparse.Namespace) -> dict[str, float]:
    """One round of stock Dramatiq on Redis. Raises: LoadtestFailed: it did not end in time."""
    times = place.send("raw", options.jobs, nap=options.nap, timeout=options.timeout)
    with place.worker("loadtest.raw_jobs", processes=options.processes, threads=options.threads) as worker:
        return {"send": options.jobs / times["seconds"]} | _timed(_RawProgress(place, options.jobs), worker, options)


def verify(place: Stand, jobs: int) -> None:
    """Raises: LoadtestFailed: not every row is completed, or one needed more than one attempt."""
    found = place.query(
        "SELECT count(*), count(*) FILTER (WHERE state = 'completed'), coalesce(max(attempt), 0), coalesce(max(lost), 0)"
        " FROM switchyard.job"
    )
    if found != (jobs, jobs, 1, 0):
        raise LoadtestFailed(f"rows, completed, most attempts, most losses are {found}, not {(jobs, jobs, 1, 0)}")


class _TrackedProgress:
    """What the ledger says of a drain."""

    def __init__(self, place: Stand, jobs: int) -> None:
        self._place = place
        self._jobs = jobs
        self._edges = list(place.query("SELECT min(id), max(id) FROM switchyard.job"))

    def begun(self) -> bool:
        return self._states()[0] != "pending"

    def ended(self) -> bool:
        # The last row is asked first: counting them all on every look would cost what is to be measured.
        if self._states()[1] != "completed":
            return False
        (completed,) = self._place.query("SELECT count(*) FROM switchyard.job WHERE state = 'completed'")
        return bool(completed == self._jobs)

    def seconds(self) -> float:
        """From the first job's start to now, both by the database's clock."""
        (seconds,) = self._place.query(
            "SELECT extract(epoch FROM clock_timestamp() - min(started_at))::float8 FROM switchyard.job"
        )
        return float(seconds)

    def _states(self) -> list[str]:
        rows = self._place.database.execute("SELECT state FROM switchyard.job WHERE id = ANY(%s) ORDER BY id", [self._edges])
        return [row[0] for row in rows] * (1 if self._edges[0] != self._edges[1] else 2)


class _RawProgress:
    """What Redis says of a drain by stock Dramatiq, which forgets a message when it is acknowledged."""

    def __init__(self, place: Stand, jobs: int) -> None:
        self._redis = place.redis
        self._queue = f"{place.settings.broker_prefix}-raw:{QUEUE}"
        self._jobs = jobs
        self._begun_at = 0.0

    def begun(self) -> bool:
        self._begun_at = monotonic()
        return int(self._redis.llen(self._queue)) < self._jobs

    def ended(self) -> bool:
        return int(self._redis.hlen(f"{self._queue}.msgs")) == 0

    def seconds(self) -> float:
        """From the first message taken to now."""
        return monotonic() - self._begun_at


def _timed(progress: Any, worker: WorkerProcesses, options: argparse.Namespace) -> dict[str, float]:
    """Watch a drain to its end."""
    deadline = monotonic() + options.timeout
    _wait_until(progress.begun, worker, deadline)
    before = worker.cpu_seconds()
    _wait_until(progress.ended, worker, deadline)
    seconds, processor = progress.seconds(), worker.cpu_seconds() - before
    return {"drain": options.jobs / seconds, "cpu": processor / options.jobs * 1e6}


def _wait_until(condition: Any, worker: WorkerProcesses, deadline: float) -> None:
    while not condition():
        worker.check()
        if monotonic() > deadline:
            raise LoadtestFailed("the drain did not end in time (--timeout)")
        sleep(LOOK)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, ours and the baseline in turn. Raises: LoadtestFailed."""
    ours: Figures = defaultdict(list)
    raw: Figures = defaultdict(list)
    with stand(options.broker) as place:
        facts = machine(place)
        for _ in range(options.rounds):
            for name, value in tracked_round(place, options).items():
                ours[name].append(value)
            for name, value in (raw_round(place, options) if options.baseline else {}).items():
                raw[name].append(value)
    return {"options": vars(options), "machine": facts, "switchyard": dict(ours), "raw": dict(raw)}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    ours, raw, options = result["switchyard"], result["raw"], result["options"]
    rows = [["", f"Switchyard, {options['broker']}", "Dramatiq, redis", "ratio"]]
    for title, name in ROWS:
        # A bulk send has no counterpart in Dramatiq: it is held against its single one.
        base = raw.get("send" if name == "bulk" else name, [])
        rows.append([title, spread(ours.get(name, [])), spread(raw.get(name, [])), ratio(ours.get(name, []), base)])
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    job = "no-op" if options["nap"] is None else f"{options['nap']:g} ms"
    where = f"{options['processes']} x {options['threads']} threads"
    head = f"{options['jobs']:,} {job} jobs, {where}, {options['rounds']} round(s)"
    return f"{head}\n{facts}\n\n{table(rows)}\n\nEvery row completed, each with one attempt."


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.drain", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--broker", choices=["postgres", "redis", "rabbitmq"], required=True)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs per round (default 20000)")
    parser.add_argument("--baseline", action="store_true", help="also measure raw Dramatiq on Redis, in the same rounds")
    parser.add_argument("--processes", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument("--threads", type=int, default=8, help="threads per process (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--nap", type=float, help="milliseconds that each job sleeps; default: it does nothing")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that one phase may take (default 300)")
    parser.add_argument("--json", action="store_true", help="print the figures of every round as JSON")
    options = parser.parse_args(words)
    if not 1 <= options.jobs <= MAX_JOBS:
        parser.error(f"--jobs: 1 to {MAX_JOBS:,}")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.drain", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
