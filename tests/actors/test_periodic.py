"""The periodic job types: they do their work, and running one twice changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection

import switchyard
from actors import hourly_statistics, nightly_cleanup
from actors.storage import outbox, storage
from settings import Settings, variables
from switchyard import Permanent
from tests.actors import ledger_rows
from tests.actors.conftest import Deploy
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

JOB = "0190d5a4-7b1e-7c3a-9f00-000000000007"


def script(settings: Settings, text: str) -> str:
    """Run a script with the settings in its environment, as an application would; returns what it printed."""
    environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_clean_up_removes_what_is_old_and_nothing_else(deploy: Deploy) -> None:
    settings = deploy()
    old = time.time() - 31 * 86_400
    for key in ("exports/old.csv", "reports/old.pdf", "images/old.png", "imports/old.csv"):
        storage().put(key, b"12345")
        os.utime(settings.data_dir / "storage" / key, (old, old))
    storage().put("exports/young.csv", b"1")
    outbox().put("old.eml", b"12")
    os.utime(settings.data_dir / "outbox" / "old.eml", (old, old))

    results = []
    for _ in range(2):
        with switchyard.job_context(id=JOB):
            results.append(nightly_cleanup())

    assert results == [{"files": 3, "bytes": 12}, {"files": 0, "bytes": 0}]
    left = {str(path.relative_to(settings.data_dir)) for path in settings.data_dir.rglob("*") if path.is_file()}
    assert left == {"storage/images/old.png", "storage/imports/old.csv", "storage/exports/young.csv"}


def test_clean_up_refuses_to_remove_today_s_files() -> None:
    with switchyard.job_context(id=JOB), pytest.raises(Permanent, match="keep_days"):
        nightly_cleanup(keep_days=0)


def test_clean_up_of_a_deployment_without_files_is_done_at_once(deploy: Deploy) -> None:
    deploy()

    with switchyard.job_context(id=JOB):
        assert nightly_cleanup() == {"files": 0, "bytes": 0}


def test_statistics_keep_the_first_numbers_of_an_hour(database: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ledger_rows.add(database, 3)
    ledger_rows.add(database, 2, "dead", queue="imports")
    statement = "SELECT queue, state, jobs FROM switchyard_jobs.statistics WHERE hour = %s ORDER BY queue, state"
    ancient = datetime.now(UTC) - timedelta(days=401)
    database.execute("INSERT INTO switchyard_jobs.statistics VALUES (%s, 'emails', 'dead', 1)", [ancient])

    with switchyard.job_context(id=JOB):
        first = hourly_statistics()
    ledger_rows.add(database, 1)
    with switchyard.job_context(id=JOB):
        second = hourly_statistics()

    if first["hour"] == second["hour"]:  # unless the hour struck in between
        assert (first["rows"], second["rows"]) == (2, 0)
    assert database.execute(statement, [first["hour"]]).fetchall() == [("emails", "completed", 3), ("imports", "dead", 2)]
    assert database.execute(statement, [ancient]).fetchall() == []


TWICE = f"""
import switchyard
from actors import daily_digest, weekly_report
with switchyard.job_context(id={JOB!r}) as job:
    ids = [(daily_digest("ops@example.org")["email_job"], weekly_report()["report_job"]) for _ in range(2)]
    assert ids[0] == ids[1], ids
"""


def test_a_second_attempt_sends_neither_a_second_digest_nor_a_second_report(settings: Settings) -> None:
    script(settings, TWICE)

    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        assert connection.execute("SELECT actor FROM switchyard.job ORDER BY actor").fetchall() == [
            ("generate_report",),
            ("send_email",),
        ]


def test_the_digest_arrives_with_yesterday_s_numbers(settings: Settings, worker_process: Workers, tmp_path: Path) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        ledger_rows.add(connection, 1_234, ended=yesterday)
        ledger_rows.add(connection, 3, "dead", actor="import_csv", ended=yesterday)
        worker = worker_process("actors", threads=2)
        script(settings, "from actors import daily_digest; daily_digest.send()")

        outbox_folder = settings.data_dir / "outbox"
        (mail,) = wait_until(lambda: list(outbox_folder.glob("[!.]*.eml")), 30, lambda: worker.output())
        states = "SELECT array_agg(DISTINCT state) FROM switchyard.job WHERE actor IN ('daily_digest', 'send_email') AND started_at > %s"
        wait_until(lambda: connection.execute(states, [yesterday]).fetchone() == (["completed"],), 30, worker.output)

    text = mail.read_text()
    assert "To: Switchyard <switchyard@localhost>" in text
    assert f"Subject: Background jobs on {yesterday:%Y-%m-%d}: 1,234 completed, 3 dead" in text
    assert "send_email                            1,234        0      0    0.0%" in text
