"""A small seed of the fault scenarios, with real processes on real servers, and the checker that has to notice when a guard is gone.

``make faults`` runs them at length; docs/reliability.md has its figures.
"""

from __future__ import annotations

import pytest

from tests.faults.conftest import Seed

pytestmark = pytest.mark.timeout(420)


def test_jobs_survive_workers_that_are_killed(seed: Seed):
    result = seed("F1", "redis", trials=2)

    assert result.verdict.violations == []
    assert result.verdict.faults == 2


def test_jobs_survive_a_death_at_a_named_point(seed: Seed):
    result = seed("F2", "rabbitmq", trials=3)

    assert result.verdict.violations == []
    assert result.verdict.faults == 3


def test_jobs_survive_producers_that_die_around_their_commit(seed: Seed):
    result = seed("F3", "redis", trials=10)

    assert result.verdict.violations == []
    assert result.verdict.faults >= 10


def test_jobs_survive_a_worker_that_is_paused_beyond_its_lease(seed: Seed):
    result = seed("F5", "postgres")

    assert result.verdict.violations == []


def test_the_checker_notices_when_the_fence_is_gone(seed: Seed):
    result = seed("F5", "postgres", trials=2, env={"MUTATION": "fence"})

    assert any("holds the result of another claim" in violation for violation in result.verdict.violations)
