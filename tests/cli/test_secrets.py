"""``switchyard secrets``: a key, and changing it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import switchyard
from cli import main
from ledger import write
from ledger.database import Database
from runtime.secrets import Keyring, new_key
from settings import load
from tests.ledger.factory import new_job

OLD, NEW = new_key(), new_key()


@pytest.fixture
def run(database_url, monkeypatch):
    """Runs ``switchyard secrets`` on a ledger with one job whose secret the old key sealed."""
    ring = Keyring(load(secret_keys=OLD).secret_key_bytes)
    payload = json.dumps({"args": [1.10, ring.seal("work", "card", "4111", "id")], "kwargs": {}})
    database = Database(database_url)
    database.run(lambda connection: write.enqueue(connection, new_job(payload=payload)))

    def run(*arguments, keys=""):
        monkeypatch.setattr(switchyard, "_configured", None)
        return CliRunner().invoke(main, ["secrets", *arguments], env={"DATABASE_URL": database_url, "SECRET_KEYS": keys})

    yield run
    database.close()
    if switchyard._configured is not None:
        switchyard._configured[2].close()


def test_a_new_key_is_one_that_the_settings_take(run):
    printed = [run("new-key").stdout.strip() for _ in range(2)]

    assert printed[0] != printed[1]
    assert len(load(secret_keys=",".join(printed)).secret_key_bytes) == 2


def test_rotating_counts_first_and_then_does_it_once(run):
    both = f"{NEW},{OLD}"

    dry, done, again = run("rotate", "--dry-run", keys=both), run("rotate", keys=both), run("rotate", "--json", keys=both)

    assert (dry.exit_code, dry.stdout) == (0, "1 of 1 jobs with secrets would be encrypted with the first key\n")
    assert (done.exit_code, done.stdout) == (0, "1 of 1 jobs with secrets were encrypted with the first key\n")
    assert json.loads(again.stdout) == {"looked_at": 1, "rotated": 0, "unreadable": 0, "running": 0, "missed": 0}


def test_what_no_key_opens_is_told(run):
    result = run("rotate", keys=NEW)

    assert result.exit_code == 1
    assert result.stderr == "1 cannot be read with any key of SECRET_KEYS: add the key they were sent with\n"


def test_without_a_key_it_says_what_to_do(run):
    result = run("rotate")

    assert result.exit_code == 1
    assert result.stderr.startswith("switchyard: SECRET_KEYS: is not set")
    assert "switchyard secrets new-key" in result.stderr
