"""Does a switch of brokers under load lose a job, or run one twice?

    python -m loadtest.switch redis rabbitmq --switches 20

Postgres and both brokers are servers of the run's own. A fleet works on the first broker, and this process never stops sending. Then, as
often as asked, there and back in turn, a rolling restart with another BROKER:

    1. 1,000 jobs occupy every thread of the old fleet, 10,000 wait, 1,000 are scheduled for the next seconds
    2. a fleet with the other BROKER starts; its broker becomes the route
    3. the old fleet gets SIGTERM, then its running jobs end, and it leaves
    4. everything that was accepted until then ends

Executions are counted in a file that the actors append to, not in the ledger; at the end each accepted job has to have been started once
and ended once, and the ledger has to say the same: all completed, one attempt each. Exit code 1 otherwise.

Caveats. A fleet can win again only a lease after it has left, so a switch takes longer than that; --lease makes it shorter. On a machine so
busy that heartbeats are late by a lease, jobs are rescued and run again, which is no matter of the switch; the complaint then says "lost".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import switchyard
from loadtest.counted_jobs import CountedJobs, declare, started, wrong
from loadtest.private import private_servers
from loadtest.report import command, machine, table
from loadtest.stand import LoadtestFailed, Stand, WorkerProcesses, stand

#: Time between two looks, in seconds.
LOOK: Final = 0.1
#: When the scheduled jobs come due: from so many seconds after they were sent, over so many.
DUE_FROM, DUE_OVER = 15.0, 10.0
#: The stream: one send in so many seconds, each fifth for so many milliseconds later.
STREAM_PAUSE: Final = 0.02
STREAM_DELAY: Final = 700
#: Most jobs of one call of ``enqueue_many``.
BULK: Final = 1_000

_STATES: Final = "SELECT state, count(*) FROM switchyard.job WHERE state <> 'completed' GROUP BY state"
#: The route, and whether the broker has been declared by nobody for a lease.
_ROUTE: Final = "SELECT broker FROM switchyard.route WHERE queue = '*'"
_DECLARED: Final = "SELECT count(*) FROM switchyard.declaration WHERE queue = '*' AND broker = %s AND until >= clock_timestamp()"
_PLACED: Final = "SELECT count(*) FROM switchyard.job WHERE state = 'pending' AND broker <> %s"
_HISTORY: Final = """
    SELECT j.id, j.attempt, j.lost, j.state, j.broker, j.created_at::text, a.attempt, a.outcome, a.worker, a.started_at::text, a.error
    FROM switchyard.job AS j
    LEFT JOIN switchyard.attempt AS a ON a.job_id = j.id
    WHERE j.message_id = %s
    ORDER BY a.attempt
"""


class Stream:
    """Sends until it is stopped; knows what was accepted."""

    def __init__(self, jobs: CountedJobs, executions: str) -> None:
        self._jobs, self._executions = jobs, executions
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self.accepted: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(STREAM_PAUSE):
                delay = STREAM_DELAY if len(self.accepted) % 5 == 0 else None
                message = self._jobs.brief.send_with_options(args=(self._executions,), delay=delay)
                self.accepted.append(message.message_id)
        except Exception as error:
            self._failure = error

    def check(self) -> None:
        """Raises: LoadtestFailed: a send failed."""
        if self._failure is not None:
            raise LoadtestFailed(f"a send failed: {self._failure!r}")

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()


class Switching:
    """One run: the sender, its accepted jobs, the fleet that works now."""

    def __init__(self, place: Stand, directory: Path, options: argparse.Namespace, fleets: ExitStack) -> None:
        settings = place.settings
        broker = switchyard.configure(**{name: getattr(settings, name) for name in type(settings).model_fields})
        self._place, self._options, self._fleets, self._directory = place, options, fleets, directory
        self._jobs = declare(broker)
        self.executions = directory / "executions"
        self._accepted: list[str] = []
        self._stream = Stream(self._jobs, str(self.executions))
        self._fleet: WorkerProcesses | None = None
        self.broker = broker

    def begin(self) -> None:
        """The first fleet works."""
        self._fleet = self._start(self._options.brokers[0])
        self._until(lambda: self._place.query(_ROUTE) == (self._options.brokers[0],), "the first fleet declares its broker")

    def switch(self, number: int) -> dict[str, float]:
        """One of them. Returns its figures. Raises: LoadtestFailed."""
        options, old = self._options, self._fleet
        assert old is not None
        target = options.brokers[(number + 1) % 2]
        # What left counts as new only when nobody has declared it for a lease.
        self._until(lambda: self._place.query(_DECLARED, target) == (0,), f"nobody declares {target} any more")
        go = str(self._directory / f"go{number}")
        held = self._send([self._jobs.held.message(str(self.executions), go) for _ in range(options.running)])
        self._until(lambda: started(self.executions).keys() >= set(held), "all held jobs run")
        self._send([self._jobs.brief.message(str(self.executions)) for _ in range(options.pending)])
        self._send(
            [
                self._jobs.brief.message_with_options(
                    args=(str(self.executions),), delay=int(1000 * (DUE_FROM + DUE_OVER * at / options.scheduled))
                )
                for at in range(options.scheduled)
            ]
        )
        before = self._states()
        wanted = {"pending": options.pending, "running": options.running, "scheduled": options.scheduled}
        if any(before.get(state, 0) < count for state, count in wanted.items()):
            raise LoadtestFailed(f"the switch was to begin with {wanted}, it is {before}")
        began = monotonic()
        self._fleet = self._start(target)
        self._until(lambda: self._place.query(_ROUTE) == (target,), f"{target} is the route")
        routed, at_route = monotonic() - began, self._states()
        old.terminate()
        Path(go).touch()
        old.stop()
        self._until(lambda: self._place.query(_PLACED, target) == (0,), f"nothing waits elsewhere than in {target}")
        accepted = [*self._accepted, *self._stream.accepted]
        self._until(lambda: started(self.executions).keys() >= set(accepted), "all that was accepted has been started")
        return {f"{state} before": float(before[state]) for state in wanted} | {
            "pending at the route's change": float(at_route.get("pending", 0)),
            "route changed after, s": routed,
            "all started after, s": monotonic() - began,
        }

    def finish(self) -> int:
        """Let everything end, and count. Returns how many jobs it was. Raises: LoadtestFailed."""
        self._stream.stop()
        accepted = [*self._accepted, *self._stream.accepted]
        self._until(lambda: not self._states(), "everything completes")
        if complaints := wrong(self.executions, accepted):
            told = {what: (len(ids), self._history(ids[0])) for what, ids in complaints.items()}
            raise LoadtestFailed(f"executions: {told}")
        found = self._place.query("SELECT count(*), max(attempt), max(lost), max(generation) FROM switchyard.job")
        if found != (len(accepted), 1, 0, 1):
            raise LoadtestFailed(f"rows, most attempts, losses, generations are {found}, not {(len(accepted), 1, 0, 1)}")
        return len(accepted)

    def _start(self, broker: str) -> WorkerProcesses:
        options = self._options
        fleet = self._place.worker(
            "loadtest.counted_worker", processes=options.processes, threads=options.running // options.processes, broker=broker
        )
        return self._fleets.enter_context(fleet)

    def _send(self, messages: list[Any]) -> list[str]:
        for first in range(0, len(messages), BULK):
            switchyard.enqueue_many(messages[first : first + BULK])
        ids = [message.message_id for message in messages]
        self._accepted += ids
        return ids

    def _states(self) -> dict[str, int]:
        return {state: count for state, count in self._place.database.execute(_STATES.encode())}

    def _history(self, message_id: str) -> list[Any]:
        """What the ledger has about a job, for the complaint."""
        return self._place.database.execute(_HISTORY, [message_id]).fetchall()

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = monotonic() + self._options.timeout
        while not holds():
            self._stream.check()
            if self._fleet is not None:
                self._fleet.check()
            if monotonic() > deadline:
                raise LoadtestFailed(f"not within {self._options.timeout:g} s (--timeout): {what}; {self._states()}")
            sleep(LOOK)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All switches. Raises: LoadtestFailed."""
    switches: list[dict[str, float]] = []
    with (
        private_servers(*options.brokers) as servers,
        stand(options.brokers[0], lease=options.lease, **servers.settings) as place,
        tempfile.TemporaryDirectory() as directory,
        ExitStack() as fleets,
    ):
        facts = machine(place)
        switching = Switching(place, Path(directory), options, fleets)
        try:
            switching.begin()
            for number in range(options.switches):
                switches.append(switching.switch(number))
                print(f"switch {number + 1}: {switches[-1]}", file=sys.stderr, flush=True)
            jobs = switching.finish()
        finally:
            switching.broker.close()
    return {"options": vars(options), "machine": facts, "switchyard": {"jobs": jobs, "switches": switches}}


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    figures, options = result["switchyard"], result["options"]
    rows = [["least and most of all switches", f"{options['switches']} x {' <-> '.join(options['brokers'])}"]]
    for name in figures["switches"][0]:
        values = [switch[name] for switch in figures["switches"]]
        rows.append([name, f"{min(values):,.1f} to {max(values):,.1f}"])
    rows += [["jobs", f"{figures['jobs']:,}"], ["lost", "0"], ["run twice", "0"]]
    return f"{facts}\n\n{table(rows)}"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.switch", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("brokers", nargs=2, choices=["postgres", "redis", "rabbitmq"], help="where from and where to, and back")
    parser.add_argument("--switches", type=int, default=20, help="how many, there and back in turn (default 20)")
    parser.add_argument("--pending", type=int, default=10_000, help="jobs that wait at each switch (default 10,000)")
    parser.add_argument("--running", type=int, default=1_000, help="jobs that run at each switch (default 1,000)")
    parser.add_argument("--scheduled", type=int, default=1_000, help="jobs scheduled for the seconds around it (default 1,000)")
    parser.add_argument("--processes", type=int, default=4, help="worker processes of a fleet (default 4)")
    parser.add_argument("--lease", type=float, default=30.0, help="seconds of a lease (default 30)")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds that one step may take (default 180)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if options.brokers[0] == options.brokers[1]:
        parser.error("two different brokers")
    if not 1 <= options.switches <= 100 or not 1 <= options.pending <= 100_000 or not 1 <= options.scheduled <= 100_000:
        parser.error("--switches: 1 to 100; --pending, --scheduled: 1 to 100,000")
    if not 1 <= options.processes <= options.running <= 4_000 or options.running % options.processes:
        parser.error("--running: up to 4,000, and a multiple of --processes")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.switch", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
