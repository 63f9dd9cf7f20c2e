"""The public face: its names, that configuring it does nothing yet, and that unit tests need no server."""

from __future__ import annotations

import os
import subprocess
import sys

import dramatiq
import pytest

import switchyard
from tests.rig.processes import ROOT, base_environment

#: Names that apps and actors import. Adding one is a decision, removing one breaks somebody.
PUBLIC = {
    "Attempt", "Batch", "BatchCallback", "BatchClosed", "BatchNotFound", "CancelCount", "Cancelled", "Counts", "CronError",
    "DeadGroup", "DeadLetter", "DeadPage", "Discards", "EnlistRefused", "IdempotencyConflict", "Job", "JobExists", "JobNotFound",
    "KeyBinding", "KeyInUse", "LeaseLost", "LedgerForbidden", "LedgerNotMigrated", "LedgerUnavailable", "LogLine", "OptionError",
    "Page", "Pause", "PayloadError", "Permanent", "Replay", "Replays", "Retry", "Schedule", "ScheduleError", "ScheduleExists",
    "ScheduleNotFound",
    "SettingsError", "Snooze", "State", "SwitchyardError", "Tick", "add_to_batch", "attempts", "batch", "cancel", "cancel_many",
    "children", "configure", "counts", "create_schedule", "cron", "current_job", "database", "dead_groups", "dead_letters",
    "delete_schedule", "discard", "discard_many", "edit", "enlist", "enqueue_many", "find_by_key", "forget_key", "get_job",
    "get_schedule", "group", "job_context", "limits", "list_batches", "list_jobs", "logs", "pause", "pause_schedule", "paused",
    "pipeline", "replay", "replay_many", "reset_limit", "resume", "resume_schedule", "run_schedule", "schedule_ticks",
    "schedules", "set_limit", "settings", "try_replay", "update_schedule", "wait",
}  # fmt: skip


def run(script: str, **environment: str) -> str:
    """Run a script in a process of its own, warnings as errors, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, env=base_environment() | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these():
    assert set(switchyard.__all__) == PUBLIC
    assert all(getattr(switchyard, name, None) is not None for name in PUBLIC)
    assert switchyard.Retry is dramatiq.Retry


@pytest.mark.parametrize("broker", ["postgres", "redis", "rabbitmq", "stub"])
def test_importing_and_configuring_opens_no_socket_thread_or_file(broker):
    script = """
import threading, psutil
me = psutil.Process()
before = {f.path for f in me.open_files()}
import dramatiq, switchyard, actors
assert switchyard.configure() is dramatiq.get_broker()
assert threading.active_count() == 1, threading.enumerate()
assert not me.net_connections(), me.net_connections()
assert {f.path for f in me.open_files()} <= before, me.open_files()
assert me.children() == []
"""
    run(script, BROKER=broker, DATA_DIR="var/never-made-by-tests")

    assert not os.path.exists(ROOT / "var" / "never-made-by-tests")


def test_what_only_migrations_or_a_few_jobs_need_is_not_loaded_at_the_start():
    script = """
import sys
import actors, cli
print(*sorted({"PIL", "alembic", "openpyxl", "reportlab", "sqlalchemy"} & sys.modules.keys()))
"""
    assert run(script).split() == []


def test_configuring_twice_is_fine_and_with_other_settings_refused():
    script = """
import switchyard
broker = switchyard.configure(broker="redis", lease=10)
assert switchyard.configure() is broker
assert switchyard.configure(broker="redis", lease=10) is broker
for other in ({"broker": "postgres"}, {"lease": 20}):
    try:
        switchyard.configure(**other)
    except switchyard.SettingsError as error:
        assert error.variable in ("BROKER", "LEASE"), error
    else:
        raise AssertionError("not refused")
try:
    switchyard.configure(leese=3)
except switchyard.SettingsError as error:
    assert "leese" in str(error), error
else:
    raise AssertionError("not refused")
"""
    run(script, BROKER="redis", LEASE="10")


def test_with_the_stub_actors_run_in_unit_tests_without_any_server():
    script = """
import dramatiq, switchyard
broker = switchyard.configure()

@dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1, tags=["x"])
def work(n: int) -> int:
    job = switchyard.current_job()
    job.progress(50, "half")
    job.log("a line")
    if job.attempt == 1:
        raise ValueError("once")
    return n * job.attempt

try:
    work.send("1")
except switchyard.PayloadError as error:
    assert "'n'" in str(error)
else:
    raise AssertionError("not refused")

worker = dramatiq.Worker(broker, worker_timeout=50)
worker.start()
message = work.send(21)
assert message.get_result(block=True) == 42
switchyard.enqueue_many([work.message(1), work.message(2)])
broker.join("default")
worker.join()
worker.stop()

with switchyard.job_context(attempt=2) as job:
    assert work(3) == 6
assert job.progress_calls == [(50.0, "half")] and job.log_lines == ["a line"]
try:
    switchyard.current_job()
except RuntimeError as error:
    assert "job_context" in str(error)
else:
    raise AssertionError("no error outside an actor")
"""
    run(script, BROKER="stub", DATABASE_URL="postgresql://nobody@127.0.0.1:9/nothing")


@pytest.mark.parametrize("percent", [-1, 101, float("nan"), "10", None])
def test_progress_takes_percents_only(percent):
    with switchyard.job_context() as job, pytest.raises(ValueError, match="progress"):
        job.progress(percent)
