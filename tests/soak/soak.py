"""One broker's run: traffic, rolls, samples, then the drain and the verdict."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from brokers import make_transport
from tests.faults.checker import Verdict
from tests.faults.recorder import Event
from tests.faults.runner import percentile
from tests.faults.servers import Servers
from tests.rig.processes import ROOT
from tests.rig.waiting import Timeout, wait_until
from tests.soak import limits, probe, witness
from tests.soak.jobs import QUEUES
from tests.soak.judge import Point, Trend, slower, trend
from tests.soak.stand import Stand

#: Where results are kept, and the logs of a run that was not green.
HOME = ROOT / "var" / "soak"
#: Windows of latency and rate in a run.
WINDOWS = 15
_ACTIVE = "SELECT count(*) FROM switchyard.job WHERE state IN ('scheduled', 'pending', 'retrying', 'running')"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how much, how often."""

    #: Seconds of traffic.
    seconds: float
    #: Sends a second; some 1.2 jobs each.
    rate: float = 12.0
    #: Seconds at the beginning that are not judged.
    warm_up: float
    #: Seconds between two samples, and between two of RabbitMQ.
    every: float = 5.0
    slowly: float = 20.0
    #: Seconds that ended jobs are kept, dead ones twice as long.
    keep: float = 30.0
    #: Seconds between two rolls; jobs after which a process is recycled.
    roll: float = 60.0
    max_jobs: int = 400
    #: Whether the drain waits until batches and keys are gone as well, which keepers look for once a minute.
    patient: bool = True
    #: Latency in the end against the beginning: times, and seconds on top.
    ratio: float = limits.LATENCY_RATIO
    slack: float = limits.LATENCY_SLACK
    #: How many times as much as usual everything may rise, where there is no time to warm up.
    leeway: float = 1.0
    #: The rate in the end against the beginning: at least this share.
    share: float = limits.RATE_SHARE

    @classmethod
    def of_length(cls, seconds: float, rate: float) -> Plan:
        """The usual plan: a sixth of it is warm-up, at least a minute if it is long enough for that."""
        warm_up = min(max(60.0, seconds / 6), seconds / 2)
        judged = seconds - warm_up
        return cls(seconds=seconds, rate=rate, warm_up=warm_up, every=min(5.0, judged / 40), slowly=min(20.0, judged / 20))


@dataclass(kw_only=True)
class Result:
    """What a run on a broker came to."""

    broker: str
    plan: Plan
    verdict: Verdict = field(default_factory=Verdict)
    trends: dict[str, Trend] = field(default_factory=dict)
    #: Per window: jobs ended a second, and due-to-start in seconds.
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    rolls: int = 0
    recycled: int = 0
    load: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def green(self) -> bool:
        """Whether nothing grew, drifted or leaked, and every job ended as it had to."""
        return not self.problems


class Soak:
    """Runs one broker's soak."""

    def __init__(self, stand: Stand, plan: Plan, seed: int, samples: Path, say: Callable[[str], object] = print) -> None:
        self._stand = stand
        self._plan = plan
        self._seed = seed
        self._file = samples
        self._say = say
        self._series: dict[str, list[Point]] = defaultdict(list)
        self._loads: list[float] = []
        self._steady: set[int] = set()
        self._recycled: set[int] = set()
        self.result = Result(broker=stand.broker, plan=plan)

    def run(self) -> Result:
        """Traffic, drain, verdict."""
        self._stand.send(self._plan.rate, self._seed)
        self._steady = {child.pid for child in self._stand.steady.workers()}
        began = self._traffic()
        self._drain()
        self._judge(began)
        return self.result

    def _traffic(self) -> float:
        began = monotonic()
        ends_at, roll_at, slowly_at, say_at = began + self._plan.seconds, began + self._plan.roll, began, began + 60.0
        while (now := monotonic()) < ends_at:
            self._sample(now - began, slowly=now >= slowly_at)
            if now >= slowly_at:
                slowly_at = now + self._plan.slowly
            if now >= roll_at and ends_at - now > self._plan.every:
                self._stand.roll()
                self.result.rolls += 1
                roll_at = now + self._plan.roll
            if now >= say_at:
                say_at += 60.0
                self._say(self._progress(now - began))
            # A clock's pause, no wait for a result.
            time.sleep(max(0.0, min(now + self._plan.every, ends_at) - monotonic()))
        return began

    def _sample(self, at: float, *, slowly: bool) -> None:
        measured = self._stand.measure(slowly=slowly)
        self._loads.append(os.getloadavg()[0])
        self._recycled |= {child.pid for child in self._stand.recycled.workers()}
        for name, value in measured.items():
            self._series[name].append((at, value))
        self._write({"at": round(at, 1), "load": self._loads[-1], **{name: round(value, 3) for name, value in measured.items()}})

    def _progress(self, at: float) -> str:
        latest = {name: points[-1][1] for name, points in self._series.items()}
        self._stand.reader.look()
        counts = self._stand.reader.counts
        biggest = max((value for name, value in latest.items() if name.endswith(" rss")), default=0.0)
        return (
            f"  {at / 60:3.0f} min: {counts['ok']:,} sent, {counts['end']:,} executions, {latest['job rows']:.0f} rows, biggest process "
            f"{biggest:.0f} MB, Postgres {latest['postgres connections']:.0f} connections {latest['postgres private']:.0f} MB, "
            f"{self.result.rolls} rolls, load {self._loads[-1]:.1f}"
        )

    # The drain.

    def _drain(self) -> None:
        """Everything ends by itself: the sender, the jobs, their rows, then the processes. What does not is a problem."""
        stand, problems = self._stand, self.result.problems
        gone = {child.pid for child in stand.steady.workers()} ^ self._steady
        if gone:
            problems.append(f"processes of the fleet that nobody touched have ended or are new: {sorted(gone)}")
        sender = stand.sender
        assert sender is not None
        if not sender.running:
            problems.append(f"the sender has ended with {sender.returncode}: {sender.output(2_000)}")
        sender.terminate()
        tables = (*limits.EMPTY, *(limits.EMPTY_LATER if self._plan.patient else ()))
        steps: list[tuple[str, float, Callable[[], object]]] = [
            ("the sender ends", 150, lambda: not sender.running),
            ("every job ends", 60, lambda: self._active() == 0),
            ("the broker is empty", 60, lambda: self._depth() == 0),
            (
                "retention has removed everything",
                30 + 4 * self._plan.keep + (90 if self._plan.patient else 0),
                lambda: not witness.left_in(stand.connection, tables),
            ),
            ("nothing is held", 10, lambda: not witness.held_in(stand.connection, clients=False)),
        ]
        for name, seconds, condition in steps:
            try:
                wait_until(condition, seconds, name, interval=0.2)
            except Timeout:
                problems.append(f"not drained, within {seconds:.0f} s not true: {name}; {self._left(tables)}")
        if sender.returncode != 0:
            problems.append(f"the sender has ended with {sender.returncode}: {sender.output(2_000)}")
        self._left_in_the_broker()
        problems += stand.dismiss_workers()
        self._left_of_processes()

    def _left(self, tables: tuple[str, ...]) -> str:
        left = [*witness.left_in(self._stand.connection, tables), *witness.held_in(self._stand.connection, clients=False)]
        return f"{self._active()} active, {self._depth()} in the broker, {', '.join(left) or 'nothing else left'}"

    def _left_in_the_broker(self) -> None:
        """After the drain there is no more in a broker than before it was used, whatever went through it."""
        stand = self._stand
        if stand.broker == "redis":
            keys = probe.of_redis(stand.servers.redis.url)["redis keys"]
            if keys > limits.KEYS_LEFT:
                self.result.problems.append(f"{keys:.0f} keys are left in Redis, {limits.KEYS_LEFT} are the most")
        if stand.broker == "rabbitmq":
            queues = probe.of_rabbitmq(stand.servers.rabbitmq)["rabbitmq queues"]
            most = len(QUEUES) + limits.QUEUES_LEFT
            if queues > most:
                self.result.problems.append(f"{queues:.0f} queues are left in RabbitMQ, {most} are the most")

    def _left_of_processes(self) -> None:
        """Every process is gone, with its connections and its row."""
        stand = self._stand
        try:
            wait_until(lambda: not (stand.orphans() or witness.held_in(stand.connection, clients=True)), 15, interval=0.2)
        except Timeout:
            self.result.problems.append(f"left behind: {stand.orphans()}, {witness.held_in(stand.connection, clients=True)}")
        self.result.problems += [f"left behind: {text}" for text in witness.left_in(stand.connection, ("worker",))]

    def _active(self) -> int:
        row = self._stand.connection.execute(_ACTIVE.encode()).fetchone()
        return int(row[0]) if row is not None else 0

    def _depth(self) -> int:
        transport = make_transport(self._stand.broker, self._stand.settings)
        try:
            return sum(transport.depth(list(QUEUES)).values())
        finally:
            transport.close()

    # The verdict.

    def _judge(self, began: float) -> None:
        result, plan = self.result, self._plan
        result.verdict = witness.judge_jobs(self._stand.database_url, self._stand.reader.look, self._stand.settings.max_lost)
        result.problems += result.verdict.violations
        result.recycled = len(self._recycled) - 1
        result.load = median(self._loads)
        result.trends = {
            name: trend(points, limits.limit_of(name, plan.leeway), warm_up=plan.warm_up)
            for name, points in sorted(self._series.items())
        }
        for name, found in result.trends.items():
            if found.grows:
                result.problems.append(
                    f"{name} grows: {found.first:.1f} to {found.last:.1f}, {found.per_hour:+.1f} an hour "
                    f"where {limits.limit_of(name).per_hour:g} is the most"
                )
        unjudged = [name for name, found in result.trends.items() if not found.judged]
        if unjudged and plan.patient:
            result.problems.append(f"too few samples to judge {', '.join(unjudged)}")
        self._windows(self._stand.reader.events, began)
        for name, values in (("p50", result.p50), ("p99", result.p99)):
            if slower(values, plan.ratio, plan.slack):
                result.problems.append(f"due-to-start {name} has risen: {', '.join(f'{value:.2f}' for value in values)} s")
        # The other way round: what has fallen is worse.
        if slower([-rate for rate in result.rates], plan.share, 0.0):
            result.problems.append(f"the rate has fallen: {', '.join(f'{rate:.1f}' for rate in result.rates)} a second")
        self._write({"result": result.broker, "problems": result.problems, "jobs": result.verdict.jobs, "rolls": result.rolls})

    def _windows(self, events: list[Event], began: float) -> None:
        """Rate, and time from due to start, window by window after the warm-up."""
        width = (self._plan.seconds - self._plan.warm_up) / WINDOWS
        starts: dict[str, float] = {}
        ended = [0] * WINDOWS
        late: list[list[float]] = [[] for _ in range(WINDOWS)]

        def window(at: float) -> int:
            return int((at - began - self._plan.warm_up) // width)

        for event in events:
            if event.kind == "start":
                starts.setdefault(event.job, event.at)
            elif event.kind == "end" and 0 <= window(event.at) < WINDOWS:
                ended[window(event.at)] += 1
        for event in events:
            due = event.fields.get("due")
            if due is not None and event.job in starts and 0 <= window(due) < WINDOWS:
                late[window(due)].append(starts[event.job] - due)
        self.result.rates = [count / width for count in ended]
        self.result.p50 = [percentile(times, 0.5) for times in late if times]
        self.result.p99 = [percentile(times, 0.99) for times in late if times]

    def _write(self, line: dict[str, Any]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def run(
    servers: Servers,
    broker: str,
    plan: Plan,
    seed: int,
    *,
    home: Path = HOME,
    leak: str = "",
    say: Callable[[str], object] = print,
) -> Result:
    """Soak one broker. Its samples stay in ``home`` as JSON lines; its logs too when something was found.

    Parameters:
        leak: put this leak into the workers (see ``leaks``).
    """
    home.mkdir(parents=True, exist_ok=True)
    directory = home / f"{broker}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    samples = home / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{broker}.jsonl"
    stand = Stand(servers, broker, directory, keep=plan.keep, max_jobs=plan.max_jobs, leak=leak)
    try:
        result = Soak(stand, plan, seed, samples, say).run()
    finally:
        stand.close()
    if result.green:
        shutil.rmtree(directory, ignore_errors=True)
    return result
