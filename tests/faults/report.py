"""What came of it: the cumulative count in var/faults.json, and the table in docs/reliability.md.

The count adds up over runs, so that evidence grows: no failure in n trials bounds the rate of failures at 3/n (95 %).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.runner import Result, figures, percentile
from tests.faults.scenarios import Scenario
from tests.rig.processes import ROOT

COUNTS = ROOT / "var" / "faults.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
#: Recovery times kept per scenario and broker, for the percentiles.
KEPT = 5_000


def load(path: Path = COUNTS) -> dict[str, Any]:
    """The cumulative count; empty before the first run."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def trials_so_far(scenario: Scenario, broker: str, path: Path = COUNTS) -> int:
    """How many trials of a scenario are on record for a broker."""
    return int(load(path).get(f"{scenario.name}/{broker}", {}).get("trials", 0))


def add(result: Result, path: Path = COUNTS) -> dict[str, Any]:
    """Add a result to the cumulative count, written at once, so that an interrupted run keeps what it did."""
    counts = load(path)
    entry = counts.setdefault(f"{result.scenario.name}/{result.broker}", {"runs": 0, "recoveries": []})
    entry["runs"] += 1
    for name, value in figures(result).items():
        entry[name] = entry.get(name, 0) + value
    entry["recoveries"] = (entry["recoveries"] + [round(seconds, 3) for seconds in result.verdict.recoveries])[-KEPT:]
    entry["last"] = {"seed": result.seed, "commit": commit(), "date": datetime.now(UTC).date().isoformat(), "green": result.green}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    fresh.replace(path)
    return counts


def commit() -> str:
    """The commit of the checkout, with a plus when it holds more than that and the table."""
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        return name + (
            "+" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{DOCUMENT.relative_to(ROOT)}") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table(scenarios: Iterable[Scenario], counts: dict[str, Any]) -> str:
    """The cumulative count as a Markdown table."""
    lines = [
        "| scenario | broker | faults | jobs | lost | fenced twice | stuck | refused late ends | recovery p50 / p99 | last run |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    trials = jobs = 0
    for scenario in scenarios:
        for broker in scenario.brokers:
            entry = counts.get(f"{scenario.name}/{broker}")
            if entry is None:
                continue
            trials, jobs = trials + entry["trials"], jobs + entry["jobs"]
            times = entry["recoveries"]
            recovery = f"{percentile(times, 0.5):.1f} / {percentile(times, 0.99):.1f} s" if times else "–"
            last = entry["last"]
            outcome = "" if last["green"] else ", **broke**"
            lines.append(
                f"| {scenario.name} {scenario.title} | {broker} | {entry['trials']:,} {scenario.unit} | {entry['jobs']:,} "
                f"| {entry['lost']} | {entry['fenced_duplicates']} | {entry['stuck']} | {entry['zombies']:,} | {recovery} "
                f"| {last['date']}, {last['commit']}{outcome} |"
            )
    bound = f" No loss among {jobs:,} jobs bounds the rate at {3 / jobs:.1e} per job (95 %)." if jobs else ""
    lines += ["", f"{trials:,} faults injected, {jobs:,} jobs.{bound}"]
    return "\n".join(lines)


def publish(scenarios: Iterable[Scenario], counts: dict[str, Any], document: Path = DOCUMENT) -> None:
    """Write the table into the document, between its markers."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{document} has no {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{table(scenarios, counts)}\n{END}{after}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
