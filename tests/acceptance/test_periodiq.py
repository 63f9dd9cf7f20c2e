"""The real ``periodiq`` command beside us: it runs, and doubles nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from settings import Settings, variables
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import wait_until

MODULE = "tests.acceptance.periodic_worker"


@pytest.fixture
def periodiq(settings: Settings, tmp_path):
    """Starts ``periodiq``; it sends at once what is due in the minute in which it starts."""
    started: list[Child] = []

    def start() -> Child:
        environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        log = tmp_path / f"periodiq-{len(started)}.log"
        started.append(
            Child([str(Path(sys.executable).with_name("periodiq")), "-v", MODULE], log=log, env=environment, cwd=tmp_path)
        )
        return started[-1]

    yield start
    for child in started:
        child.kill()


def test_periodiq_sends_and_every_minute_has_one_job(system, periodiq, worker_process):
    def rows():
        return system.rows("SELECT tick_at, state FROM switchyard.job WHERE schedule = 'every_minute' ORDER BY 1")

    # Before there is any worker, two of them at once: the doubles of every periodiq that was started twice.
    pair = [periodiq(), periodiq()]
    for child in pair:
        wait_until(lambda child=child: "Nothing to do until" in child.output(), 60, child.output)
    alone = rows()
    worker = worker_process(MODULE, threads=1)
    wait_until(lambda: rows() and {state for _, state in rows()} == {"completed"}, 60, worker.output)
    # And beside a worker, whose keeper makes the ticks.
    third = periodiq()
    wait_until(lambda: "Nothing to do until" in third.output(), 60, third.output)

    ticks = [tick for tick, _ in rows()]
    assert alone
    assert len(ticks) == len(set(ticks))
    for child in (*pair, third):
        assert child.running
        assert "Scheduling" in child.output()
        assert "every_minute@default" in child.output()
        assert "rror" not in child.output()
