"""``switchyard secrets``: a key, and changing it."""

from __future__ import annotations

import json
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner

import switchyard
from cli import main
from ledger import batches, write
from ledger.database import Database
from ledger.records import JobControl, NewBatch, SentKey
from runtime.fingerprint import fingerprint_keys, fingerprints
from runtime.secrets import Keyring, new_key
from settings import load
from tests.ledger.factory import new_job

OLD, NEW = new_key(), new_key()


@pytest.fixture
def run(database_url, monkeypatch):
    """Runs ``switchyard secrets`` on a ledger with one job, with a key of its sender, and one batch, whose secrets the old key sealed."""
    settings = load(secret_keys=OLD)
    ring = Keyring(settings.secret_key_bytes)
    payload = json.dumps({"args": [1.10, ring.seal("work", "card", "4111", "id")], "kwargs": {}})
    (fingerprint, _) = fingerprints(fingerprint_keys(settings), "work", '{"args": [1.10, "4111"], "kwargs": {}}', {})
    job = new_job(payload=payload, control=JobControl(idempotency_key="k", sent=SentKey(fingerprint=fingerprint, ttl=60.0)))
    callbacks = write.controlled_rows([new_job(payload=payload)])
    batch = NewBatch(id=str(uuid4()), root_id=str(uuid4()), on_success=callbacks)
    database = Database(database_url)
    database.run(lambda connection: write.enqueue(connection, job))
    database.run(lambda connection: batches.make(connection, [batch]))

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

    said = (
        "1 of 1 jobs with secrets {0} encrypted with the first key\n"
        "1 of 1 batches with secret callbacks {0}\n"
        "1 of 1 idempotency keys {0} given a fingerprint of the first key\n"
    )
    assert (dry.exit_code, dry.stdout) == (0, said.format("would be"))
    assert (done.exit_code, done.stdout) == (0, said.format("were"))
    assert json.loads(again.stdout) == {
        "looked_at": 1, "rotated": 0, "batches": 1, "batches_rotated": 0, "keys": 1, "keys_rotated": 0, "keys_left": 0,
        "unreadable": 0, "running": 0, "missed": 0,
    }  # fmt: skip


def test_what_no_key_opens_is_told(run):
    result = run("rotate", keys=NEW)

    assert result.exit_code == 1
    assert result.stderr == "2 cannot be read with any key of SECRET_KEYS: add the key they were sent with\n"


def test_a_key_whose_job_is_gone_is_told(run, database_url):
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE switchyard.idempotency SET message_id = gen_random_uuid()")

    result = run("rotate", keys=f"{NEW},{OLD}")

    assert result.exit_code == 1
    assert result.stderr.startswith("1 idempotency keys need an older key until they expire")
    assert "idempotency" not in run("rotate", keys=NEW).stderr


def test_without_a_key_it_says_what_to_do(run):
    result = run("rotate")

    assert result.exit_code == 1
    assert result.stderr.startswith("switchyard: SECRET_KEYS: is not set")
    assert "switchyard secrets new-key" in result.stderr
