"""A user of the database who lacks rights, and any other failure at boot: one line and code 3, never a worker that does nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from settings import variables
from tests.rig.processes import ROOT, base_environment

BOTH = pytest.mark.parametrize("supervised", [False, True], ids=["dramatiq", "switchyard"])
ACTORS = """
import dramatiq, switchyard

broker = switchyard.configure()

@dramatiq.actor
def add(a, b):
    return a + b
"""
BEFORE = """
def fail(*arguments):
    raise RuntimeError("no more of this")

broker.limits.declare = fail
"""
AFTER = """
class Service:
    def start(self, node):
        raise RuntimeError("no more of this")
    def stop(self):
        pass

broker.services.append(Service())
"""


@pytest.fixture
def bare(bare_url):
    """URL and name of the user without rights."""
    return bare_url, conninfo_to_dict(bare_url)["user"]


def refused(worker):
    """The one line with which it ended."""
    assert worker.wait(60) == 3, worker.output()
    output = worker.output()
    assert "Traceback" not in output
    assert "ready for action" not in output
    lines = {line for line in output.splitlines() if line.startswith("switchyard: ") and "process" not in line}
    assert len(lines) == 1, output
    return lines.pop()


@BOTH
def test_a_worker_whose_user_may_not_use_the_schema_says_so(worker_process, tmp_path, bare, supervised):
    (tmp_path / "shop.py").write_text(ACTORS)

    line = refused(worker_process("shop", path=tmp_path, supervised=supervised, env={"DATABASE_URL": bare[0]}))

    assert line.startswith(f'switchyard: DATABASE_URL: user "{bare[1]}" may not use schema switchyard; GRANT USAGE ON SCHEMA')


@BOTH
def test_a_worker_whose_user_may_only_read_is_told_of_the_table(worker_process, tmp_path, database_url, bare, supervised):
    (tmp_path / "shop.py").write_text(ACTORS)
    grant(database_url, f"USAGE ON SCHEMA switchyard TO {bare[1]}", f"SELECT ON ALL TABLES IN SCHEMA switchyard TO {bare[1]}")

    line = refused(worker_process("shop", path=tmp_path, supervised=supervised, env={"DATABASE_URL": bare[0]}))

    assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON switchyard.worker TO {bare[1]}" in line


@BOTH
@pytest.mark.parametrize("wrong", [BEFORE, AFTER], ids=["before", "after"])
def test_whatever_fails_at_boot_ends_the_worker(worker_process, tmp_path, wrong, supervised):
    (tmp_path / "shop.py").write_text(ACTORS + wrong)

    line = refused(worker_process("shop", path=tmp_path, supervised=supervised))

    assert line == "switchyard: the worker cannot start: RuntimeError: no more of this"


def test_a_worker_with_the_rights_that_the_line_names_runs_jobs(worker_process, tmp_path, database_url, bare):
    (tmp_path / "shop.py").write_text(ACTORS)
    first = refused(worker_process("shop", path=tmp_path, env={"DATABASE_URL": bare[0]}))
    statements = first.partition("; ")[2].partition(" (")[0]
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(statements)

    worker = worker_process("shop", path=tmp_path, env={"DATABASE_URL": bare[0]})
    environment = worker_process._environment | {"DATABASE_URL": bare[0], "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    script = "import shop, switchyard; print(switchyard.wait(shop.add.send(1, 2).message_id, timeout=60).result)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )

    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr + worker.output()
    assert worker.stop() == 0
    assert "permission denied" not in worker.output()


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["workers"], ["jobs"], ["migrate"]], ids=" ".join)
def test_a_command_says_so_in_one_line(settings, tmp_path, bare, command):
    environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT), "DATABASE_URL": bare[0], "COLUMNS": "400"}

    done = subprocess.run(
        [sys.executable, "-m", "cli", *command],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    said = f'DATABASE_URL: {"cannot migrate: " if command == ["migrate"] else ""}user "{bare[1]}" may not use schema switchyard; '
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if command[-1] == "--json":
        (problem,) = json.loads(done.stdout)["problems"]
        assert problem["text"].startswith(said)
    elif command == ["status"]:
        assert "PROBLEM" in done.stdout
        assert said in done.stdout
    else:
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"switchyard: {said}")


def grant(database_url, *rights):
    """Grant these, as the owner."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        for right in rights:
            owner.execute(f"GRANT {right}")
