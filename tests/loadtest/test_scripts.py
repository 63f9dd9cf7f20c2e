"""The load tests run, say what they found, leave nothing behind, and fail when a job did not end as it must. No figure is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import psycopg
import pytest

from ledger import write
from loadtest import drain, report
from loadtest.counted_jobs import started, wrong
from loadtest.stand import LoadtestFailed, Stand, stand
from settings import Settings, variables
from tests.ledger.factory import new_job
from tests.rig.processes import ROOT, base_environment

RATES = {"send", "send published", "bulk", "bulk published", "drain", "cpu", "commit"}


def run(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def left_behind(settings: Settings) -> list[str]:
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'switchyard_loadtest_%'").fetchall()
    return [name for (name,) in rows]


def test_a_drain_is_measured_and_verified_on_every_broker(settings, broker_name):
    words = ["-m", "loadtest.drain", "--broker", broker_name, "--jobs", "60", "--threads", "2", "--rounds", "1", "--json"]
    before = left_behind(settings)

    done = run(settings, *words)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["switchyard"]) == RATES
    assert all(value[0] > 0 for name, value in found["switchyard"].items() if name != "cpu")
    assert found["machine"]["postgres"]
    assert set(left_behind(settings)) <= set(before)


def test_the_baseline_stands_beside_it_and_the_script_runs_as_a_file(settings, redis_url):
    words = ["loadtest/drain.py", "--broker", "postgres", "--jobs", "40", "--threads", "2", "--rounds", "1", "--baseline"]

    done = run(settings, *words)

    assert done.returncode == 0, done.stderr
    assert "Dramatiq, redis" in done.stdout
    assert "Every row completed" in done.stdout
    drained = next(line for line in done.stdout.splitlines() if line.startswith("drain"))
    assert drained.endswith(" x")


def test_latency_and_idling_are_measured(settings):
    words = ["loadtest/latency.py", "--broker", "postgres", "--jobs", "5", "--pause", "0.01", "--idle", "0.2", "--json"]

    done = run(settings, *words)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["switchyard"]
    assert 0 < found["p50"] <= found["p90"] <= found["p99"]


def test_a_drain_that_takes_too_long_fails(settings):
    words = ["-m", "loadtest.drain", "--broker", "postgres", "--jobs", "40", "--rounds", "1", "--nap", "20000", "--timeout", "5"]

    done = run(settings, *words)

    assert done.returncode == 1
    assert "--timeout" in done.stderr


def test_a_row_that_is_not_completed_fails_the_run(settings):
    place = Stand(settings)
    write.enqueue_many(place.database, [new_job()])

    with pytest.raises(LoadtestFailed, match=r"\(1, 0, 0, 0\)"):
        drain.verify(place, 1)

    place.close()


def test_servers_elsewhere_are_refused(settings, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@db.example.org/switchyard")

    with pytest.raises(LoadtestFailed, match=r"db\.example\.org"), stand("postgres"):
        pass


def test_figures_are_medians_with_their_range():
    assert report.spread([3.0, 1000.0, 2000.4]) == "1,000 (3-2,000)"
    assert report.ratio([300.0, 100.0], [50.0]) == "4.00 x"
    assert report.table([["", "a"], ["row", "1"]]) == "     a\nrow  1"


def test_the_keepers_costs_and_its_punctuality_are_measured(settings, broker_name):
    words = ["-m", "loadtest.keeper", "--broker", broker_name, "--idle", "2", "--scheduled", "1000", "--jobs", "300"]

    done = run(settings, *words, "--rate", "300", "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["switchyard"]
    assert found["worker"]["cpu"] >= 0
    assert found["later"]["after"] > 0
    # A trigger that was forgotten would be a minute late; that one is punctual depends on who else uses the machine.
    assert 0 <= found["late"]["p50"] <= found["late"]["max"] < 60


@pytest.mark.parametrize("broker_name", ["redis", "rabbitmq"])
def test_a_backlog_is_watched_lost_triggers_come_back_and_so_does_a_wiped_broker(settings, broker_name):
    words = ["-m", "loadtest.backlog", "--broker", broker_name, "--jobs", "50", "--lost", "5", "--sweeps", "6", "--json"]

    done = run(settings, *words)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["switchyard"]
    assert (found["published, times"], found["published for it, times"]) == (1, 1)
    assert found["rounds"] >= 1
    assert found.get("published for them", 5) == 5
    assert found["completed"] == 50


def test_a_switch_under_load_loses_none_and_runs_none_twice_by_the_count_of_the_actors(settings):
    words = [
        "-m",
        "loadtest.switch",
        "redis",
        "postgres",
        "--switches",
        "1",
        "--pending",
        "60",
        "--running",
        "4",
        "--scheduled",
        "10",
    ]

    done = run(settings, *words, "--processes", "2", "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["switchyard"]
    (switch,) = found["switches"]
    assert (switch["pending before"], switch["running before"], switch["scheduled before"]) >= (60, 4, 10)
    assert found["jobs"] >= 74


def test_executions_that_are_missing_or_too_many_are_found(tmp_path):
    executions = tmp_path / "executions"
    assert wrong(executions, ["a"]) == {"no start": ["a"], "no end": ["a"]}

    executions.write_text("start a\nend a\nstart b\nend b\n")
    assert wrong(executions, ["b", "a"]) == {}
    assert wrong(executions, ["a"]) == {"started again": ["b"], "ended again": ["b"]}

    with executions.open("a") as file:
        file.write("start b\nstart c\n")
    assert wrong(executions, ["a", "b", "c"]) == {"started again": ["b"], "no end": ["c"]}
    assert started(executions)["b"] == 2


@pytest.mark.parametrize("broker_name", ["redis", "rabbitmq"])
def test_a_wiped_broker_gets_everything_back_and_each_job_runs_once_by_the_count_of_the_actors(settings, broker_name):
    # Whether it is quick enough is judged by the figures, not here.
    done = run(settings, "-m", "loadtest.flush", broker_name, "--jobs", "50", "--within", "600", "--timeout", "60", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["switchyard"]["published again, times"] >= 1
