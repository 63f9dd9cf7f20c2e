"""``python -m tests.faults``: every scenario on every broker for about an hour; ``make faults`` calls it.

    MINUTES=10            time for all (default 60), shared by the scenarios; each has 10 trials, and one of each kind, all the same
    ONLY=F5,F6            these scenarios
    BROKER=redis          this broker
    SEED=7                the seed of everything left to chance (default: new, and printed)
    FULL=1                the counts of trials that the plan asks for, less those on record: it can be interrupted and goes on where it was
    --mutations [NAME...] instead: take out one guard after the other, and see that the checker notices

Ends with 1 when an invariant broke; the evidence (events, logs, verdict) then stays in var/faults. Ends at once with 2 where the machine
lacks what a scenario needs.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from time import monotonic

from settings import Settings
from tests.faults import report
from tests.faults.mutations import MUTATIONS
from tests.faults.runner import Result, percentile, run
from tests.faults.scenarios import ALL, Plan, Scenario, load
from tests.faults.servers import Servers
from tests.rig.processes import GUARD
from tests.rig.service import Unavailable

#: Least trials of a scenario on a broker, unless it has more kinds of them.
TRIALS = 10
#: Most trials that a FULL run does in one go before it writes down what it has.
PORTION = 50
#: Trials of a scenario with and without a guard.
MUTATION_TRIALS = 4


def main() -> int:
    """Run what the environment asks for; returns the exit code."""
    chosen = {name: os.environ.get(name, "") for name in ("ONLY", "BROKER", "SEED", "MINUTES", "FULL")}
    # Nothing of the caller's may reach the processes of a scenario.
    Settings.model_config["env_file"] = None
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    scenarios = load()
    unknown = [name for name in filter(None, chosen["ONLY"].split(",")) if name not in scenarios]
    if unknown or (chosen["BROKER"] and chosen["BROKER"] not in ALL):
        sys.stderr.write(f"faults: there are the scenarios {', '.join(scenarios)} and the brokers {', '.join(ALL)}\n")
        return 2
    seed = int(chosen["SEED"] or random.randrange(1_000_000))
    print(f"seed {seed}", flush=True)
    wanted = [scenarios[name] for name in chosen["ONLY"].split(",") if name] or list(scenarios.values())
    brokers = [chosen["BROKER"]] if chosen["BROKER"] else list(ALL)
    if "--mutations" not in sys.argv[1:] and (lacking := _lacking(wanted)):
        others = ",".join(each.name for each in wanted if each.name not in lacking)
        for name, reason in lacking.items():
            sys.stderr.write(f"faults: {name} cannot be run here: {reason}\n")
        sys.stderr.write(f"faults: install what is missing, or leave it out: ONLY={others} make faults\n")
        return 2
    servers = Servers()
    try:
        if "--mutations" in sys.argv[1:]:
            return _mutations(scenarios, servers, seed)
        return _all(wanted, brokers, servers, seed, float(chosen["MINUTES"] or 60) * 60, bool(chosen["FULL"]))
    finally:
        servers.close()
        GUARD.dismiss()


def _lacking(wanted: list[Scenario]) -> dict[str, str]:
    """The scenarios that cannot be run on this machine, each with the reason."""
    lacking = {}
    for each in wanted:
        try:
            if each.needs is not None:
                each.needs()
        except Unavailable as error:
            lacking[each.name] = str(error)
    return lacking


def _all(wanted: list[Scenario], brokers: list[str], servers: Servers, seed: int, seconds: float, full: bool) -> int:
    broken = []
    for scenario, broker, plan in _plans(wanted, brokers, seconds, full):
        print(f"{scenario.name} on {broker}: {scenario.title}", flush=True)
        try:
            result = run(scenario, servers, broker, plan, seed)
        except Unavailable as error:
            sys.stderr.write(f"{scenario.name} on {broker} cannot be run here: {error}\n")
            broken.append(f"{scenario.name} on {broker}")
            continue
        _show(result)
        counts = report.add(result)
        if not result.green:
            broken.append(f"{scenario.name} on {broker}")
        report.publish(load().values(), counts)
        seed += 1
    print(f"table written to {report.DOCUMENT.name}, counts to {report.COUNTS}", flush=True)
    for name in broken:
        sys.stderr.write(f"BROKEN  {name}\n")
    return 1 if broken else 0


def _plans(wanted: list[Scenario], brokers: list[str], seconds: float, full: bool) -> Iterator[tuple[Scenario, str, Plan]]:
    """What to run, with its share of the time that is left when its turn comes."""
    began = monotonic()
    turns = [(scenario, broker) for scenario in wanted for broker in scenario.brokers if broker in brokers]
    for at, (scenario, broker) in enumerate(turns):
        if full:
            while (left := scenario.full - report.trials_so_far(scenario, broker)) > 0:
                portion = min(left, PORTION)
                yield scenario, broker, Plan(0.0, portion, most=portion, full=True)
        else:
            weights = sum(other.weight for other, _ in turns[at:])
            # Starting and settling take their part of a share.
            share = max(0.0, (began + seconds - monotonic()) * scenario.weight / weights - 20.0)
            yield scenario, broker, Plan(share, max(TRIALS if scenario.least is None else scenario.least, scenario.kinds))


def _show(result: Result) -> None:
    verdict = result.verdict
    times = verdict.recoveries
    recovery = f", recovery p50 {percentile(times, 0.5):.1f} s, p99 {percentile(times, 0.99):.1f} s" if times else ""
    print(
        f"  {'ok    ' if result.green else 'BROKEN'} {result.trials} {result.scenario.unit} in {result.seconds:.0f} s, "
        f"{verdict.jobs:,} jobs, {verdict.lost} lost, {verdict.fenced_duplicates} fenced twice, {verdict.stuck} stuck, "
        f"{verdict.zombies} late ends refused{recovery} (seed {result.seed})",
        flush=True,
    )
    for violation in verdict.violations:
        print(f"  {violation}", flush=True)
    if not result.green:
        print(f"  evidence: {result.directory}", flush=True)


def _mutations(scenarios: dict[str, Scenario], servers: Servers, seed: int) -> int:
    """Each guard with its scenario: green with the guard, and the right complaint without it."""
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    unnoticed = []
    for name, mutation in MUTATIONS.items():
        scenario = scenarios[mutation.scenario]
        if names and name not in names:
            continue
        with_it = run(scenario, servers, mutation.broker, Plan(0.0, MUTATION_TRIALS, small=True), seed)
        without = run(scenario, servers, mutation.broker, Plan(0.0, MUTATION_TRIALS, small=True), seed, env={"MUTATION": name})
        noticed = with_it.green and any(mutation.complaint in violation for violation in without.verdict.violations)
        print(f"{name} ({scenario.name} on {mutation.broker}): {'noticed' if noticed else 'NOT NOTICED'}", flush=True)
        for violation in (without if with_it.green else with_it).verdict.violations:
            print(f"  {violation[:300]}", flush=True)
        if noticed:
            shutil.rmtree(without.directory, ignore_errors=True)
        else:
            unnoticed.append(name)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
