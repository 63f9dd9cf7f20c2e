"""``switchyard key``: which job a key stands for, and letting it go."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

import switchyard
from cli import main
from ledger import write
from ledger.database import Database
from tests.ledger.test_keys import sent, unique


@pytest.fixture
def jobs(database_url, monkeypatch):
    """A job with a sender's key ``k``, and one with the actor's key ``u``."""
    monkeypatch.setattr(switchyard, "_configured", None)
    database = Database(database_url)
    made = [sent(), unique()]
    for job in made:
        database.run(lambda connection, job=job: write.enqueue(connection, job))
    yield made
    database.close()
    if switchyard._configured is not None:
        switchyard._configured[2].close()


def run(database_url, *arguments):
    return CliRunner().invoke(main, ["key", *arguments], env={"DATABASE_URL": database_url, "COLUMNS": "100"})


def test_a_key_is_shown_with_its_job_and_its_end(jobs, database_url):
    result = run(database_url, "work", "k")

    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("k (idempotency)", "work", jobs[0].message_id, "pending"):
        assert text in result.stdout
    active = run(database_url, "work", "u", "--unique")
    assert re.search("^until +the job ends$", active.stdout, re.MULTILINE)
    assert jobs[1].message_id in active.stdout


def test_json_is_for_scripts(jobs, database_url):
    found = json.loads(run(database_url, "work", "k", "--json").stdout)["key"]

    assert (found["job_id"], found["kind"], found["state"]) == (jobs[0].message_id, "idempotency", "pending")
    assert "fingerprint" not in found
    assert json.loads(run(database_url, "work", "other", "--json").stdout) == {"key": None, "forgotten": False}


def test_a_free_key_is_said_to_be_free(jobs, database_url):
    result = run(database_url, "work", "u")

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "the idempotency key 'u' of actor 'work' is free (a key of the actor's unique_key: add --unique)"
    ]
    assert "nothing knows actor 'wrk'" in run(database_url, "wrk", "u").stderr


@pytest.mark.parametrize("arguments", [("k",), ("u", "--unique")])
def test_a_key_is_forgotten_when_asked(jobs, database_url, arguments):
    shown = run(database_url, "work", *arguments, "--forget")

    assert shown.exit_code == 0
    assert "forgotten: the next send with this key makes a new job" in shown.stdout
    assert run(database_url, "work", *arguments).exit_code == 1


def test_a_database_that_is_not_there_is_named_with_the_variable(jobs, database_url):
    result = run(database_url + "_that_nobody_made", "work", "k")

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert re.match('switchyard: DATABASE_URL: Postgres at .* has no database ".*_that_nobody_made"; create it: createdb ', line)
