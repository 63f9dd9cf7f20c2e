"""What does it cost to count jobs as a group: to send them, to end them, and to ask how far they are?

    python -m loadtest.fanout --broker postgres --jobs 100000

Postgres and the broker are servers of the run's own. In each round the same number of jobs goes through twice, in turn: sent plainly with
``enqueue_many``, and as one ``switchyard.group`` with a callback. Both are drained by a real ``dramatiq`` worker while the group is asked
now and then how far it is. What is printed are medians of the rounds (min-max), and the group's ratio to the plain jobs of the same run.

    bulk      from the call to its return: committed rows, one thread
    drain     from the start of the first job to the end of the last one, by the database's clock
    count     ``switchyard.batch(id)`` while it is at work, and after it
    ended     from the end of the last job to the commit that ended the group, its callback with it

Exit code 1 when a row is not completed, took more than one attempt, or the callback did not come exactly once.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dramatiq

import switchyard
from brokers.broker import SwitchyardBroker
from loadtest.private import private_servers
from loadtest.report import command, machine, ratio, spread, table
from loadtest.stand import LoadtestFailed, Stand, WorkerProcesses, stand

#: Time between two looks at how far a drain is, in seconds.
LOOK: Final = 0.2
#: What the jobs carry, as in the other load tests.
DATA: Final[dict[str, object]] = {"name": "fan-out", "values": [1, 2, 3], "text": "x" * 100}

_TIMES: Final = """
    SELECT count(*), count(*) FILTER (WHERE state = 'completed'), coalesce(max(attempt), 0),
        extract(epoch FROM max(finished_at) - min(started_at))::float8
    FROM switchyard.job
    WHERE actor = 'noop'
"""
_ENDED: Final = """
    SELECT extract(epoch FROM b.succeeded_at - (SELECT max(finished_at) FROM switchyard.job WHERE batch_id = b.id))::float8
    FROM switchyard.batch AS b
"""

Figures = dict[str, list[float]]


@dramatiq.actor(broker=dramatiq.brokers.stub.StubBroker())
def noop(number: int, data: dict[str, object]) -> None:
    """The worker's is in ``loadtest.jobs``."""


def _send_plain(jobs: int) -> None:
    switchyard.enqueue_many(noop.message(number, DATA) for number in range(jobs))


def _send_group(jobs: int) -> switchyard.group:
    children = [noop.message(number, DATA) for number in range(jobs)]
    return switchyard.group(children, on_success=noop.message_with_options(args=(-1, {}), tags=["callback"])).run()


def _drained(place: Stand, worker: WorkerProcesses, jobs: int, group: switchyard.group | None, timeout: float) -> Figures:
    deadline, counts = monotonic() + timeout, []
    while True:
        worker.check()
        if group is None:
            rows, completed, attempts, seconds = place.query(_TIMES)
        else:
            began = monotonic()
            over = switchyard.batch(group.id).state == "succeeded"
            counts.append((monotonic() - began) * 1000)
            rows, completed, attempts, seconds = place.query(_TIMES) if over else (0, -1, 0, 0.0)
        if rows and completed == rows and rows == jobs + (group is not None):
            break
        if monotonic() > deadline:
            raise LoadtestFailed(f"the drain did not end in time (--timeout): {completed} of {rows} rows are completed")
        sleep(LOOK)
    if attempts != 1:
        raise LoadtestFailed(f"a job took {attempts} attempts")
    figures: Figures = {"drain": [jobs / seconds]}
    if group is not None:
        (ended,) = place.query(_ENDED)
        (called,) = place.query("SELECT count(*) FROM switchyard.job WHERE tags = '{callback}'")
        if called != 1:
            raise LoadtestFailed(f"the callback came {called} times")
        figures |= {"count": counts[:-1] or counts, "count after": counts[-1:], "ended": [ended * 1000]}
    return figures


def _round(place: Stand, options: argparse.Namespace, *, grouped: bool) -> Figures:
    place.database.execute(
        "TRUNCATE switchyard.job, switchyard.attempt, switchyard.job_log, switchyard.job_step, switchyard.batch"
    )
    began = monotonic()
    group = _send_group(options.jobs) if grouped else None
    if group is None:
        _send_plain(options.jobs)
    figures: Figures = {"bulk": [options.jobs / (monotonic() - began)]}
    with place.worker("loadtest.jobs", processes=1, threads=options.threads) as worker:
        return figures | _drained(place, worker, options.jobs, group, options.timeout)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, plain and grouped in turn. Raises: LoadtestFailed."""
    plain: Figures = defaultdict(list)
    grouped: Figures = defaultdict(list)
    with private_servers(options.broker) as servers, stand(options.broker, **servers.settings) as place:
        facts = machine(place)
        settings = place.settings
        broker = switchyard.configure(**{name: getattr(settings, name) for name in type(settings).model_fields})
        assert isinstance(broker, SwitchyardBroker)
        noop.broker = broker
        broker.declare_actor(noop)
        try:
            for _ in range(options.rounds):
                for figures, whole in ((plain, False), (grouped, True)):
                    for name, values in _round(place, options, grouped=whole).items():
                        figures[name] += values
        finally:
            broker.close()
    return {"options": vars(options), "machine": facts, "plain": dict(plain), "group": dict(grouped)}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    plain, grouped, options = result["plain"], result["group"], result["options"]
    rows = [["", "plain", "group", "ratio"]]
    for title, name, digits in (
        ("bulk, jobs/s", "bulk", 0), ("drain, jobs/s", "drain", 0), ("count, ms", "count", 1), ("count after, ms", "count after", 1),
        ("ended after, ms", "ended", 1),
    ):  # fmt: skip
        base, values = plain.get(name, []), grouped[name]
        rows.append([title, spread(base, digits), spread(values, digits), ratio(values, base)])
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    head = f"{options['jobs']:,} no-op jobs, {options['broker']}, {options['threads']} threads, {options['rounds']} round(s)"
    return f"{head}\n{facts}\n\n{table(rows)}\n\nEvery row completed, each with one attempt; each callback came once."


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.fanout", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--broker", choices=["postgres", "redis", "rabbitmq"], default="postgres")
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs per round (default 100,000)")
    parser.add_argument("--threads", type=int, default=8, help="threads of the worker (default 8)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (default 1)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a drain may take (default 300)")
    parser.add_argument("--json", action="store_true", help="print the figures of every round as JSON")
    options = parser.parse_args(words)
    if not 1 <= options.jobs <= 1_000_000:
        parser.error("--jobs: 1 to 1,000,000")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.fanout", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
