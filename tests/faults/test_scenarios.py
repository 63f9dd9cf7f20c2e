"""A small seed of the fault scenarios, with real processes on real servers, and the checker that has to notice when a guard is gone.

``make faults`` runs them at length; docs/reliability.md has its figures.
"""

from __future__ import annotations

import pytest

from tests.faults.conftest import Seed, Tour

pytestmark = pytest.mark.timeout(420)


def test_jobs_survive_killed_and_paused_workers_lost_replies_and_outages_of_postgres(tour: Tour):
    assert tour("postgres", F1=1, F5=1, F9=3, F8=2) == []


def test_jobs_survive_deaths_at_named_points_a_flushed_and_killed_redis_and_foreign_messages(tour: Tour):
    assert tour("redis", F2=2, F3=5, F6=2, F13=1) == []


def test_jobs_survive_a_rolling_restart_without_waiting_for_a_lease_and_a_deleted_queue(tour: Tour):
    assert tour("rabbitmq", F4=1, F7=1, F13=1) == []


def test_a_job_that_ends_its_worker_is_dead_in_the_end_and_no_other(seed: Seed):
    result = seed("F12", "postgres")

    assert result.verdict.violations == []


def test_no_more_run_at_once_than_there_are_slots_whoever_holds_them_dies(seed: Seed):
    result = seed("F17", "redis", trials=2)

    assert result.verdict.violations == []


def test_jobs_survive_a_switch_of_brokers(seed: Seed):
    result = seed("F14", "postgres")

    assert result.verdict.violations == []


def test_jobs_survive_two_versions_of_the_code_at_once(seed: Seed):
    result = seed("F15", "redis")

    assert result.verdict.violations == []


def test_each_tick_of_a_schedule_has_its_job_once_whoever_dies_and_whatever_the_clock_does(seed: Seed):
    result = seed("F16", "postgres")

    assert result.verdict.violations == []


def test_the_checker_notices_when_the_fence_is_gone(seed: Seed):
    result = seed("F5", "postgres", trials=2, env={"MUTATION": "fence"})

    assert any("holds the result of another claim" in violation for violation in result.verdict.violations)
