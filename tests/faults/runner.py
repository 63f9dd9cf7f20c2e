"""Runs one scenario on one broker: rig, trials, settling, checking; keeps the evidence when something broke."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tests.faults.checker import Verdict
from tests.faults.rig import LEASE, SWEEP, Rig
from tests.faults.scenarios import Plan, Scenario
from tests.faults.servers import Servers
from tests.rig.processes import ROOT
from tests.rig.service import Unavailable

#: Where evidence and the cumulative count live.
HOME = ROOT / "var" / "faults"


@dataclass
class Result:
    """What one run of a scenario on a broker came to."""

    scenario: Scenario
    broker: str
    seed: int
    trials: int
    seconds: float
    verdict: Verdict
    directory: Path

    @property
    def green(self) -> bool:
        """Whether every invariant held."""
        return not self.verdict.violations


def run(
    scenario: Scenario,
    servers: Servers,
    broker: str,
    plan: Plan,
    seed: int,
    *,
    env: dict[str, str] | None = None,
    home: Path = HOME,
) -> Result:
    """Run it, and remove the evidence if every invariant held.

    Parameters:
        env: more variables for the workers, such as a mutation.
    """
    directory = home / f"{scenario.name}-{broker}-{seed}"
    shutil.rmtree(directory, ignore_errors=True)
    began = monotonic()
    own = scenario.servers(servers) if scenario.servers is not None else servers
    try:
        rig = Rig(own, broker, directory, seed, **scenario.settings)
        rig.more = env or {}
        verdict = _tried([(scenario, plan)], rig)
    finally:
        if own is not servers:
            own.close()
    if verdict.violations:
        (directory / "verdict.txt").write_text("\n".join([f"seed {seed}", *verdict.violations]))
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return Result(scenario, broker, seed, plan.done, monotonic() - began, verdict, directory)


def tour(entries: Sequence[tuple[Scenario, Plan]], servers: Servers, broker: str, seed: int, directory: Path) -> Verdict:
    """Several scenarios one after the other in one rig: what starting and settling costs is spent once."""
    return _tried(entries, Rig(servers, broker, directory, seed))


def _tried(entries: Sequence[tuple[Scenario, Plan]], rig: Rig) -> Verdict:
    """The trials, and what the checker says in the end; the rig is closed."""
    scenario, plan = entries[0]
    try:
        complaint = None
        try:
            for each, trials in entries:
                each.run(rig, trials)
        except Unavailable:
            raise
        except Exception as error:
            complaint = f"the scenario broke off: {error}\n{traceback.format_exc(limit=-4)}"
        rig.unhurt()
        verdict = rig.verdict(scenario.quiet if complaint is None else 20.0, ends=scenario.ends)
        if complaint is not None:
            verdict.violations.append(complaint)
        elif scenario.after is not None:
            scenario.after(rig, verdict)
        if scenario.bounded and not plan.small and verdict.recoveries:
            bound, worst = LEASE + SWEEP + 5.0, percentile(verdict.recoveries, 0.99)
            verdict.complain("P2", f"recoveries took longer than {bound:g} s (99 %)", [f"{worst:.1f} s"] if worst > bound else [])
        return verdict
    finally:
        rig.close()


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def figures(result: Result) -> dict[str, Any]:
    """A result as numbers, to be added up."""
    verdict = result.verdict
    return {
        "trials": result.trials,
        "jobs": verdict.jobs,
        "lost": verdict.lost,
        "stuck": verdict.stuck,
        "fenced_duplicates": verdict.fenced_duplicates,
        "zombies": verdict.zombies,
        "overlaps": verdict.overlaps,
        "reruns": verdict.reruns,
        "recovered": verdict.recovered,
        "violations": len(verdict.violations),
    }
