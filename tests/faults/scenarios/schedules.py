"""F16: several schedulers, killed and begun anew, by a clock that is set forth and back: each tick makes exactly the jobs that it has to.

What has to come of it is worked out here from the positions that the clock was set to, and from nothing that the schedulers wrote.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from ledger import schedules
from ledger.schedules import Stored
from runtime.timing import ON_TIME, Timing
from tests.faults.rig import Rig
from tests.faults.scenarios import Plan, scenario

#: Noon before a night on which clocks are set back, far enough away that no keeper's own clock gets there.
BEGIN = datetime(2100, 10, 30, 12, tzinfo=UTC)
#: Hours of one trial, and of a small one.
HOURS, SMALL = 24, 4
SCHEDULERS = 3
#: What is done to the schedulers or to the clock, in turns, so often in a trial.
FAULTS, FEW = 14, 7
KINDS = ("kill", "back", "point", "outage", "kill", "jump", "kill")

SCHEDULES = {
    "fives": Timing("*/5 * * * *"),
    "sevens": Timing("*/7 * * * *", catch_up="all"),
    "hours": Timing("0 * * * *", "America/New_York", catch_up="last"),
    "nights": Timing("30 2 * * *", "Europe/Berlin", catch_up="all"),
    "spread": Timing("*/20 * * * *", catch_up="all", jitter=600),
}


@dataclass
class Clock:
    """The clock in the file, and what has to come of every position that it was set to."""

    path: Path
    now: datetime = BEGIN
    expected: dict[str, list[datetime]] = field(default_factory=lambda: {name: [] for name in SCHEDULES})
    #: The latest position of all; what is before it comes no more.
    latest: datetime = BEGIN

    def set(self, now: datetime) -> None:
        """Set it: forth, with what is due then, or back."""
        self.now = now
        # In one go, so that nobody reads half of it.
        new = self.path.with_suffix(".new")
        new.write_text(now.isoformat())
        os.replace(new, self.path)
        if now > self.latest:
            for name, timing in SCHEDULES.items():
                self.expected[name] += _due(name, timing, self.latest, now)
            self.latest = now


def _due(name: str, timing: Timing, before: datetime, now: datetime) -> list[datetime]:
    """The ticks that a step of the clock makes, by the schedule's policy."""
    spread = timedelta(seconds=timing.jitter_seconds)
    ticks = [tick for tick in timing.cron.ticks(max(BEGIN, before - spread), now) if before < timing.due(name, tick) <= now]
    on_time = [tick for tick in ticks if now - tick <= timedelta(seconds=ON_TIME)]
    return {"skip": on_time, "last": on_time or ticks[-1:], "all": ticks}[timing.catch_up]


@scenario(
    "F16",
    "3 schedulers, killed also in the middle of a tick, while the clock runs through a day, is set back, and jumps over hours",
    unit="days",
    full=100,
    weight=1,
    # A day takes a minute, and has fourteen faults.
    least=3,
)
def tick(rig: Rig, plan: Plan) -> None:
    """A day in a minute, with a clock of our own; a worker runs what comes of it."""
    rig.hire()
    clock = Clock(rig.directory / "clock")
    clock.set(BEGIN)
    with psycopg.connect(rig.database_url, autocommit=True) as connection:
        for name, timing in SCHEDULES.items():
            _store(connection, name, timing)
    command = ("-m", "tests.faults.scheduler", str(clock.path))
    for _ in range(SCHEDULERS):
        rig.hire(command=command, ready=False)
    rig.until(lambda: rig.count("scheduler") >= SCHEDULERS, 90, "the schedulers start")
    for _ in plan:
        end = clock.latest + timedelta(hours=SMALL if plan.small else HOURS)
        faults = FEW if plan.small else FAULTS
        for number in range(faults):
            _run_until(rig, clock, clock.latest + (end - clock.latest) / (faults - number))
            _hurt(rig, clock, KINDS[number % len(KINDS)], command)
        _run_until(rig, clock, end)
    _judge(rig, clock)


def _store(connection: psycopg.Connection[tuple[object, ...]], name: str, timing: Timing) -> None:
    first = timing.cron.after(BEGIN)
    assert first is not None
    stored = Stored(
        name, "plain", '{"args": [], "kwargs": {}}', timing.expression, timing.timezone, timing.catch_up,
        timing.window_seconds, timing.jitter_seconds, first, timing.due(name, first),
    )  # fmt: skip
    assert schedules.create(connection, stored)


def _run_until(rig: Rig, clock: Clock, end: datetime) -> None:
    """Let the clock run from tick to tick, each on time."""
    while True:
        _caught_up(rig, clock)
        ((due,),) = rig.rows("SELECT min(due_at) FROM switchyard.schedule")
        if due > end:
            clock.set(max(clock.latest, end))
            return
        clock.set(max(clock.latest, due) + timedelta(seconds=rig.random.uniform(0, ON_TIME - 5)))


def _caught_up(rig: Rig, clock: Clock) -> None:
    """Wait until nothing is due."""

    def overdue() -> str:
        found = rig.rows("SELECT name, due_at, error FROM switchyard.schedule ORDER BY due_at")
        return f"somebody makes what is due at {clock.now}: {found}"

    rig.until(lambda: _is_done(rig, clock), 60, overdue)


def _hurt(rig: Rig, clock: Clock, kind: str, command: tuple[str, ...]) -> None:
    """Kill schedulers, or set the clock."""
    schedulers = [worker for worker in rig.workers if worker.argv[1:4] == list(command) or command[1] in worker.argv]
    if kind == "kill":
        # In the middle of what the next step makes due.
        ((due,),) = rig.rows("SELECT min(due_at) FROM switchyard.schedule")
        clock.set(max(clock.latest, due))
        for worker in schedulers[:2]:
            rig.kill(worker)
    elif kind == "point":
        point = f"tick_commit:crash:{rig.random.randint(1, 3)}"
        before = rig.count("failpoint")
        rig.hire(command=command, ready=False, failpoint=point, passing=True)
        for worker in schedulers:
            worker.freeze()
        # It is alone now, and dies right before a commit, as often as it takes.
        end = clock.latest + timedelta(hours=1)
        while rig.count("failpoint") == before and clock.latest < end:
            ((due,),) = rig.rows("SELECT min(due_at) FROM switchyard.schedule")
            clock.set(max(clock.latest, due))
            rig.until(lambda: rig.count("failpoint") > before or _is_done(rig, clock), 60, "it makes what is due, or dies")
        for worker in schedulers:
            worker.thaw()
    elif kind == "back":
        with rig.faulty("clock set back"):
            for hours in (0.5, 3, 30):
                clock.set(clock.latest - timedelta(hours=hours))
                rig.go_on(0.2)
            clock.set(clock.latest)
    elif kind == "jump":
        with rig.faulty("clock set forth"):
            clock.set(clock.latest + timedelta(minutes=rig.random.uniform(10, 90)))
    else:
        with rig.faulty("outage"):
            rig.tended = False
            for worker in schedulers:
                rig.kill(worker)
            clock.set(clock.latest + timedelta(minutes=rig.random.uniform(10, 90)))
            rig.tended = True
            for worker in schedulers:
                rig.workers.remove(worker)
            for _ in schedulers:
                rig.hire(command=command, ready=False)


def _is_done(rig: Rig, clock: Clock) -> bool:
    return rig.rows("SELECT count(*) FROM switchyard.schedule WHERE due_at <= %s", clock.now) == [(0,)]


def _judge(rig: Rig, clock: Clock) -> None:
    """Each tick that had to has one job, and no other has any."""
    _caught_up(rig, clock)
    rows = rig.rows("SELECT schedule, tick_at FROM switchyard.job WHERE schedule IS NOT NULL")
    made = Counter((name, at.astimezone(UTC)) for name, at in rows)
    wanted = {(name, at) for name, ticks in clock.expected.items() for at in ticks}
    twice = [key for key, count in made.items() if count > 1]
    assert not twice, f"I9: ticks have several jobs: {twice[:5]}"
    assert not wanted - made.keys(), f"I9: ticks have no job: {sorted(wanted - made.keys())[:5]}"
    assert not made.keys() - wanted, f"I9: ticks have a job that were to have none: {sorted(made.keys() - wanted)[:5]}"
    assert len(wanted) > 50, "hardly anything was to be made"
