"""One set of private servers for the small seeds of all scenarios, and how a seed is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import runner
from tests.faults.runner import Result, run
from tests.faults.scenarios import Plan, load
from tests.faults.servers import Servers

#: Tries several scenarios in one rig, with so many trials each: ``tour("redis", F1=2, F6=1)``; returns the checker's complaints.
Tour = Callable[..., list[str]]
#: Tries a small seed of a scenario: ``seed("F1", "redis", trials=2)``.
Seed = Callable[..., Result]


@pytest.fixture(scope="session")
def fault_servers() -> Iterator[Servers]:
    """Servers that are killed, frozen and flushed."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture
def seed(fault_servers: Servers, tmp_path: Path) -> Seed:
    """Runs a scenario and returns its result; the checker's complaints are in it."""

    def try_it(name: str, broker: str, *, trials: int = 1, env: dict[str, str] | None = None) -> Result:
        plan = Plan(0.0, trials, most=trials, small=True)
        number = 1
        result = run(load()[name], fault_servers, broker, plan, number, env=env, home=tmp_path)
        print(f"{name} on {broker}, seed {number}: {result.seconds:.1f} s, {result.verdict}")
        return result

    return try_it


@pytest.fixture
def tour(fault_servers: Servers, tmp_path: Path) -> Tour:
    """Runs scenarios one after the other in one rig."""

    def try_them(broker: str, **trials: int) -> list[str]:
        entries = [(load()[name], Plan(0.0, count, most=count, small=True)) for name, count in trials.items()]
        verdict = runner.tour(entries, fault_servers, broker, 1, tmp_path / "tour")
        print(f"{', '.join(trials)} on {broker}: {verdict}")
        return verdict.violations

    return try_them
