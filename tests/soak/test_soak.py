"""A small seed of the soak: real traffic on real servers, real workers rolled and recycled, and everything gone in the end.

``make soak`` runs it at length; docs/reliability.md has its figures. Here the machine may be busy with other tests, so latency and rate
are judged generously; what is lost, run twice, left behind or leaked is judged as ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.servers import Servers
from tests.rig.processes import ROOT
from tests.soak.soak import Plan, Result, run

pytestmark = pytest.mark.timeout(300)

#: Enough for two rolls and for jobs that fail, sleep, are cancelled, replayed and removed.
SEED = Plan(
    seconds=10.0, rate=12.0, warm_up=2.0, every=0.5, slowly=6.0, keep=3.0, roll=4.0, max_jobs=10, patient=False,
    ratio=10.0, slack=5.0, share=0.1, leeway=3.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def soak_servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


def soak(servers: Servers, broker: str, home: Path, *, leak: str = "", plan: Plan = SEED) -> Result:
    """Run a seed; what it says goes to the report of a test that fails."""
    result = run(servers, broker, plan, 1, home=home, leak=leak)
    print(f"{broker}: {result.verdict}, rates {result.rates}, p99 {result.p99}, {result.rolls} rolls, {result.recycled} recycled")
    return result


@pytest.mark.parametrize("broker", ["postgres", "redis", "rabbitmq"])
def test_nothing_grows_is_lost_or_left_behind_by_traffic_of_every_kind(soak_servers: Servers, broker: str, tmp_path: Path):
    result = soak(soak_servers, broker, tmp_path)

    assert result.problems == []
    assert result.verdict.jobs > 50
    assert result.rolls >= 1
    assert result.recycled >= 1
    assert len(list(tmp_path.glob(f"*-{broker}.jsonl"))) == 1


def test_a_leak_in_the_workers_is_found(soak_servers: Servers, tmp_path: Path):
    result = soak(soak_servers, "postgres", tmp_path, leak="files", plan=replace(SEED, seconds=14.0, every=0.3))

    assert any("steady worker" in problem and "files grows" in problem for problem in result.problems)


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"MINUTES": "soon"}, "MINUTES: write a number above 0, not 'soon'"),
        ({"MINUTES": "-1"}, "MINUTES: write a number above 0, not '-1'"),
        ({"MINUTES": "3"}, "MINUTES: write at least 6 for postgres, redis, rabbitmq; less cannot be judged"),
        ({"SEED": "0"}, "SEED: write a number above 0, not '0'"),
        ({"BROKER": "kafka"}, "BROKER: write one of postgres, redis, rabbitmq, not 'kafka'"),
        ({"LEAK": "time"}, "LEAK: write one of memory, files, threads, not 'time'"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], complaint: str):
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak"], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 2
    assert done.stderr == f"soak: {complaint}\n"
