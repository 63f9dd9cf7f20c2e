"""``python -m tests.soak``: real traffic on each broker for half an hour in all, and nothing may grow; ``make soak`` calls it.

    MINUTES=30      time of traffic for all brokers together, shared equally (default 30, at least 2 each)
    BROKER=redis    this broker alone
    RATE=12         sends a second (default 12)
    SEED=7          of everything left to chance (default: new, and printed)
    LEAK=memory     put a leak into the workers (memory, files, threads), to see that it is found; nothing is published then

Twelve sends a second of all kinds are 15 to 20 executions: well below what two processors can do. Ends with 1 and the reason when something
grew, got slower, was lost or was left behind; logs and events then stay in var/soak. Samples are kept there as JSON lines; the table in
docs/reliability.md is written anew. Ends with 2 where the machine lacks a server.
"""

from __future__ import annotations

import argparse
import os
import random
import sys

from settings import Settings
from tests.faults.servers import Servers
from tests.rig.processes import GUARD
from tests.rig.service import Unavailable
from tests.soak import report
from tests.soak.leaks import KINDS
from tests.soak.limits import limit_of
from tests.soak.soak import HOME, Plan, Result, run

#: Time of traffic when MINUTES does not say.
MINUTES = 30.0
#: Fewest minutes of a broker: a minute is warm-up.
LEAST = 2
#: Of a measure's slack: what has moved by less is not shown.
WORTH = 0.1


def main() -> int:
    """Run what the environment asks for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    chosen = {name: os.environ.get(name, "") for name in ("MINUTES", "BROKER", "RATE", "SEED", "LEAK")}
    # Nothing of the caller's may reach the processes.
    Settings.model_config["env_file"] = None
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
    try:
        rate = _number(chosen, "RATE", Plan.rate)
        minutes = _number(chosen, "MINUTES", MINUTES)
        seed = _number(chosen, "SEED", random.randrange(1_000_000))
        _choice(chosen, "BROKER", report.BROKERS)
        _choice(chosen, "LEAK", tuple(KINDS))
        brokers = (chosen["BROKER"],) if chosen["BROKER"] else report.BROKERS
        if minutes < LEAST * len(brokers):
            raise ValueError(f"MINUTES: write at least {LEAST * len(brokers)} for {', '.join(brokers)}; less cannot be judged")
    except ValueError as error:
        sys.stderr.write(f"soak: {error}\n")
        return 2
    print(f"seed {seed:.0f}", flush=True)
    servers = Servers()
    try:
        return _all(servers, brokers, Plan.of_length(minutes * 60 / len(brokers), rate), int(seed), chosen["LEAK"])
    except Unavailable as error:
        sys.stderr.write(f"soak: cannot be run here: {error}\n")
        return 2
    finally:
        servers.close()
        GUARD.dismiss()


def _number(chosen: dict[str, str], name: str, default: float) -> float:
    try:
        value = float(chosen[name] or default)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: write a number above 0, not {chosen[name]!r}")
    return value


def _choice(chosen: dict[str, str], name: str, known: tuple[str, ...]) -> None:
    if chosen[name] and chosen[name] not in known:
        raise ValueError(f"{name}: write one of {', '.join(known)}, not {chosen[name]!r}")


def _all(servers: Servers, brokers: tuple[str, ...], plan: Plan, seed: int, leak: str) -> int:
    found = []
    for broker in brokers:
        print(f"{broker}: {plan.seconds / 60:g} minutes of {plan.rate:g} sends a second", flush=True)
        result = run(servers, broker, plan, seed, leak=leak, say=lambda text: print(text, flush=True))
        _show(result)
        if not leak:
            report.publish(report.keep(result))
        found += [f"{broker}: {problem}" for problem in result.problems]
    print(f"samples in {HOME}" + ("" if leak else f", table written to {report.DOCUMENT.name}"), flush=True)
    for problem in found:
        sys.stderr.write(f"FOUND  {problem}\n")
    return 1 if found else 0


def _show(result: Result) -> None:
    verdict = result.verdict
    print(
        f"  {'ok   ' if result.green else 'FOUND'} {verdict.jobs:,} jobs, {verdict.lost} lost, {result.rolls} rolls, "
        f"{result.recycled} recycled, load {result.load:.1f}",
        flush=True,
    )
    for name, each in result.trends.items():
        # The rest stood still; it is all in the samples.
        if not each.grows and abs(each.last - each.first) < WORTH * limit_of(name).slack:
            continue
        mark = "GROWS" if each.grows else "" if each.judged else "too few to judge"
        print(f"    {name:32} {each.first:10.2f} {each.last:10.2f} {each.per_hour:+12.2f}/h {mark}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
