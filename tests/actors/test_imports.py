"""import_csv against real tables: once, resumed after a kill, shared by rivals."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import Connection

import switchyard
from actors import import_csv, imports
from actors.storage import storage
from settings import variables
from switchyard import Permanent
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until

COUNTS = ("records", "inserted", "updated", "invalid")


def rows(begin: int, end: int, name: str = "Person") -> Iterator[str]:
    return (f"person{number}@example.org,{name} {number},Company {number % 7}" for number in range(begin, end))


def store(lines: Any, key: str = "imports/a.csv") -> str:
    content = "\n".join(["email,name,company", *lines]).encode()
    storage().put(key, content)
    return hashlib.sha256(content).hexdigest()


def run(key: str = "imports/a.csv") -> tuple[dict[str, Any], Any]:
    with switchyard.job_context(id="0190d5a4-7b1e-7c3a-9f00-000000000005", attempt=1) as job:
        return import_csv(key), job


def counts(result: dict[str, Any]) -> tuple[int, ...]:
    return tuple(result[name] for name in COUNTS)


def one(connection: Connection[Any], statement: Any, *values: Any) -> Any:
    row = connection.execute(statement, values).fetchone()
    return row[0] if row is not None and len(row) == 1 else row


CONTACTS = "SELECT count(*) FROM switchyard_jobs.contact"


def test_five_thousand_rows_arrive_once_with_progress(database: Connection[Any]) -> None:
    sha256 = store(rows(0, 5_000))

    result, job = run()

    assert counts(result) == (5_000, 5_000, 0, 0)
    assert (result["sha256"], result["repeated"], result["errors"]) == (sha256, False, [])
    assert one(database, CONTACTS) == 5_000
    percents = [percent for percent, _ in job.progress_calls]
    assert percents == sorted(percents)
    assert (len(percents), percents[-1]) == (11, 100)
    assert one(database, "SELECT name, company FROM switchyard_jobs.contact WHERE email = 'person8@example.org'") == (
        "Person 8",
        "Company 1",
    )


def test_the_same_content_is_imported_once_whatever_it_is_called(database: Connection[Any]) -> None:
    store(rows(0, 700))
    first, _ = run()
    store(rows(0, 700), "imports/copy.csv")
    database.execute("DELETE FROM switchyard_jobs.contact WHERE email = 'person1@example.org'")

    second, _ = run("imports/copy.csv")

    assert counts(second) == counts(first) == (700, 700, 0, 0)
    assert second["repeated"]
    assert one(database, CONTACTS) == 699


def test_wrong_lines_are_counted_and_reported_with_their_line(database: Connection[Any]) -> None:
    sha256 = store(["ada@example.org,Ada,", "bob,Bob,", "", "carl@example.org,,x", "dora@example.org,Dora,D"])

    result, _ = run()

    assert counts(result) == (4, 2, 0, 2)
    assert result["errors"] == [
        {"line": 3, "reason": "email: is no e-mail address"},
        {"line": 5, "reason": "name: is missing"},
    ]
    assert one(database, "SELECT count(*) FROM switchyard_jobs.import_error WHERE sha256 = %s", sha256) == 2


def test_only_the_first_thousand_wrong_lines_are_kept_and_twenty_shown(database: Connection[Any]) -> None:
    store(f"wrong{number},x," for number in range(1_700))

    result, _ = run()

    assert counts(result) == (1_700, 0, 0, 1_700)
    assert [error["line"] for error in result["errors"]] == list(range(2, 22))
    assert one(database, "SELECT count(*), max(line) FROM switchyard_jobs.import_error") == (1_000, 1_001)


def test_a_known_contact_is_updated_and_empty_fields_keep_what_is_there(database: Connection[Any]) -> None:
    store(["ada@example.org,Ada,Engines", "bob@example.org,Bob,"])
    run()
    store(["ADA@example.org,Ada Lovelace,", "ada@example.org,Ada L.,", "bob@example.org,Bob,Bricks", "carl@example.org,Carl,"])

    result, _ = run()

    assert counts(result) == (4, 1, 3, 0)
    found = database.execute("SELECT email, name, company FROM switchyard_jobs.contact ORDER BY email").fetchall()
    assert found == [
        ("ada@example.org", "Ada L.", "Engines"),
        ("bob@example.org", "Bob", "Bricks"),
        ("carl@example.org", "Carl", None),
    ]


def test_three_jobs_with_one_file_import_it_once_and_agree(database: Connection[Any]) -> None:
    store([*rows(0, 3_000), "wrong,x,"])

    with ThreadPoolExecutor(3) as pool:
        results = [future.result()[0] for future in [pool.submit(run) for _ in range(3)]]

    assert {counts(result) for result in results} == {(3_001, 3_000, 0, 1)}
    assert one(database, CONTACTS) == 3_000
    assert one(database, "SELECT count(*) FROM switchyard_jobs.contact WHERE updated_at <> created_at") == 0


SCRIPT = """
import switchyard
from actors import import_csv
with switchyard.job_context():
    import_csv("imports/a.csv")
"""


def test_a_killed_import_goes_on_behind_its_last_committed_batch(database: Connection[Any], database_url: str) -> None:
    sha256 = store(rows(0, 5_000))
    done = "SELECT records FROM switchyard_jobs.import_run WHERE sha256 = %s"
    environment = base_environment() | variables(switchyard.settings()) | {"PYTHONPATH": str(ROOT), "BROKER": "stub"}
    with psycopg.connect(database_url) as blocker:
        # Somebody else has a contact of the sixth batch in an open transaction, so the import waits in the middle of that batch.
        blocker.execute("INSERT INTO switchyard_jobs.contact (email, name) VALUES ('person2700@example.org', 'Blocker')")
        child = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        try:
            wait_until(lambda: one(database, waiting) == 1, 30, "the import waits in its sixth batch")
            assert one(database, done, sha256) == 2_500
        finally:
            child.kill()
            child.wait(10)
        blocker.rollback()
    before = database.execute("SELECT email, xmin FROM switchyard_jobs.contact ORDER BY id").fetchall()

    result, job = run()

    assert counts(result) == (5_000, 5_000, 0, 0)
    assert job.log_lines == ["goes on after 2500 records that are stored already"]
    assert one(database, CONTACTS) == 5_000
    # What was stored before the kill was not written again.
    assert len(before) == 2_500
    assert database.execute("SELECT email, xmin FROM switchyard_jobs.contact ORDER BY id LIMIT 2500").fetchall() == before


def test_an_error_in_a_batch_loses_neither_the_batches_before_nor_a_line(
    database: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = store(rows(0, 2_000))
    real, calls = imports._distinct, []

    def breaks(batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 3:
            raise ConnectionError("the network is gone")
        return real(batch)

    monkeypatch.setattr(imports, "_distinct", breaks)
    with pytest.raises(ConnectionError):
        run()
    assert one(database, "SELECT records, status FROM switchyard_jobs.import_run WHERE sha256 = %s", sha256) == (1_000, "running")

    result, _ = run()

    assert counts(result) == (2_000, 2_000, 0, 0)
    assert calls == [500] * 5


def test_another_batch_size_after_a_deploy_resumes_at_the_right_record(
    database: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = store(rows(0, 1_000))
    real = imports._store
    with monkeypatch.context() as old:
        old.setattr(imports, "BATCH", 300)
        old.setattr(imports, "_store", lambda c, s, begin, batch: real(c, s, begin, batch) if begin < 600 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    assert one(database, "SELECT records FROM switchyard_jobs.import_run WHERE sha256 = %s", sha256) == 600

    result, _ = run()

    assert counts(result) == (1_000, 1_000, 0, 0)
    assert one(database, CONTACTS) == 1_000


@pytest.mark.parametrize("key", ["imports/missing.csv", "../a.csv", "/etc/passwd"])
def test_a_file_that_is_not_there_is_refused(database: Connection[Any], key: str) -> None:
    with pytest.raises(Permanent, match="storage key"):
        run(key)


def test_a_file_without_a_header_is_refused_and_may_be_mended(database: Connection[Any]) -> None:
    storage().put("imports/a.csv", b"")
    with pytest.raises(Permanent, match="first line"):
        run()

    store(["ada@example.org,Ada,"])
    assert counts(run()[0]) == (1, 1, 0, 0)


def test_a_file_above_the_limit_is_refused(database: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store(rows(0, 100))
    monkeypatch.setattr(imports, "MAX_FILE_BYTES", 1_000)

    with pytest.raises(Permanent, match="larger than"):
        run()
