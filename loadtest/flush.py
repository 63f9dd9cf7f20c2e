"""How soon is everything back in a broker that lost it all, and does each job then run, and only once?

    python -m loadtest.flush redis        FLUSHALL
    python -m loadtest.flush rabbitmq     the virtual host removed with all its queues, and made anew

Postgres and the broker are servers of the run's own. A worker with default settings has all its threads occupied, N jobs wait, then the
broker is wiped. From the end of that until every waiting row was published again, counted by a trigger of the database's that Switchyard
knows nothing of; then the threads are let go, and everything has to complete: each job once, by a file that the actors append to. Exit code
1 otherwise, or when it took longer than --within.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import switchyard
from brokers.broker import SwitchyardBroker
from loadtest.backlog import WITNESS
from loadtest.counted_jobs import declare, started, wrong
from loadtest.private import PrivateServers, private_servers
from loadtest.report import command, machine, table
from loadtest.stand import LoadtestFailed, Stand, WorkerProcesses, stand

#: Time between two looks, in seconds.
LOOK: Final = 0.1
#: Most jobs of one call of ``enqueue_many``.
BULK: Final = 1_000
#: Threads of the worker.
THREADS: Final = 8

#: How many rows wait whose trigger was published, and how many publishes followed the first one.
_PUBLISHED: Final = """
    SELECT
        (SELECT count(*) FROM switchyard.job WHERE state = 'pending' AND publish_count > 0),
        (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM republished)
"""


def _wipe(place: Stand, servers: PrivateServers) -> None:
    """Take everything from the broker, as an operator's mistake does."""
    if place.settings.broker == "redis":
        place.redis.flushall()
    else:
        servers.wipe_vhost()


def _until(holds: Callable[[], bool], what: str, worker: WorkerProcesses, timeout: float) -> None:
    deadline = monotonic() + timeout
    while not holds():
        worker.check()
        if monotonic() > deadline:
            raise LoadtestFailed(f"not within {timeout:g} s (--timeout): {what}")
        sleep(LOOK)


def measure(place: Stand, servers: PrivateServers, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """The whole story. Raises: LoadtestFailed."""
    settings, executions, go = place.settings, directory / "executions", directory / "go"
    broker = switchyard.configure(**{name: getattr(settings, name) for name in type(settings).model_fields})
    assert isinstance(broker, SwitchyardBroker)
    jobs = declare(broker)
    place.database.execute(WITNESS)
    try:
        with place.worker("loadtest.counted_worker", processes=1, threads=THREADS) as worker:
            held = [jobs.held.message(str(executions), str(go)) for _ in range(THREADS)]
            switchyard.enqueue_many(held)
            _until(lambda: started(executions).total() == THREADS, "the threads are occupied", worker, options.timeout)
            waiting = [jobs.brief.message(str(executions)) for _ in range(options.jobs)]
            for first in range(0, len(waiting), BULK):
                switchyard.enqueue_many(waiting[first : first + BULK])
            # The watch has seen the epoch, and everything is where it belongs.
            _until(
                lambda: place.query("SELECT count(*) > 0 FROM switchyard.epoch")[0], "the epoch is known", worker, options.timeout
            )
            transport = broker.transport(settings.broker)
            _until(lambda: transport.depth(["default"])["default"] >= options.jobs, "all is published", worker, options.timeout)
            _, before = place.query(_PUBLISHED)

            began = monotonic()
            _wipe(place, servers)
            wiped = monotonic() - began
            began = monotonic()
            _until(
                lambda: (found := place.query(_PUBLISHED))[0] == options.jobs and found[1] - before >= options.jobs,
                "all is published again", worker, options.timeout,
            )  # fmt: skip
            back = monotonic() - began
            _, after = place.query(_PUBLISHED)
            go.touch()
            completed = "SELECT count(*) FROM switchyard.job WHERE state = 'completed'"
            total = options.jobs + THREADS
            _until(lambda: place.query(completed) == (total,), "all is completed", worker, options.timeout)
            ended = monotonic() - began
    finally:
        broker.close()
    complaints = wrong(executions, [message.message_id for message in (*held, *waiting)])
    if complaints:
        raise LoadtestFailed(f"executions: { {what: len(ids) for what, ids in complaints.items()} }")
    return {
        "the wipe itself, s": wiped,
        "published again after, s": back,
        "published again, times": (after - before) / options.jobs,
        "completed after, s": ended,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure once. Raises: LoadtestFailed."""
    with (
        private_servers(options.broker) as servers,
        stand(options.broker, **servers.settings) as place,
        tempfile.TemporaryDirectory() as directory,
    ):
        facts = machine(place)
        figures = measure(place, servers, Path(directory), options)
    if figures["published again after, s"] > options.within:
        raise LoadtestFailed(f"it took longer than {options.within:g} s (--within): {figures}")
    return {"options": vars(options), "machine": facts, "switchyard": figures}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    rows = [["", f"{result['options']['jobs']:,} jobs, {result['options']['broker']}"]]
    rows += [[name, f"{value:,.2f}"] for name, value in result["switchyard"].items()]
    return f"{facts}\n\n{table([*rows, ['lost', '0'], ['run twice', '0']])}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.flush", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("broker", choices=["redis", "rabbitmq"])
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs that wait (default 10,000)")
    parser.add_argument("--within", type=float, default=30.0, help="seconds that it may take (default 30)")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds that one step may take (default 180)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if not 1 <= options.jobs <= 1_000_000:
        parser.error("--jobs: 1 to 1,000,000")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.flush", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
