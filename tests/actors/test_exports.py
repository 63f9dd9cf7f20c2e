"""export_data against a real ledger: what comes out, what is refused, and that memory stays flat."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from typing import Any

import openpyxl
import pytest
from psycopg import Connection

import switchyard
from actors import export_data
from actors.datasets import DATASETS, select
from actors.storage import storage
from actors.writers import WRITERS
from settings import variables
from switchyard import Permanent
from tests.actors import ledger_rows
from tests.rig.processes import ROOT, base_environment

JOB = "0190d5a4-7b1e-7c3a-9f00-000000000004"


def export(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], bytes, list[tuple[float, str | None]]]:
    with switchyard.job_context(id=JOB, attempt=1) as job:
        result = export_data(*args, **kwargs)
    data = storage().get(result["key"], limit=100_000_000)
    assert len(data) == result["bytes"]
    return result, data, job.progress_calls


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def add_contacts(connection: Connection[Any], *names: str) -> None:
    for number, name in enumerate(names):
        connection.execute("INSERT INTO switchyard_jobs.contact (email, name) VALUES (%s, %s)", [f"a{number}@example.org", name])


def test_every_dataset_exports_every_column_in_every_format(database: Connection[Any]) -> None:
    ledger_rows.add(database, 2, "dead", error="=cmd")
    add_contacts(database, "=1+1", "Zoë")

    for name, dataset in DATASETS.items():
        for format in ("csv", "jsonl", "xlsx"):
            result, data, _ = export(name, format=format)
            assert (result["rows"], result["key"]) == (2, f"exports/{JOB}.{format}")
            if format == "csv":
                heads = next(csv.reader(io.StringIO(data.decode())))
            elif format == "jsonl":
                heads = list(lines(data)[0])
            else:
                heads = [cell.value for cell in openpyxl.load_workbook(io.BytesIO(data)).active[1]]
            assert heads == list(dataset.columns)


def test_columns_come_in_the_order_asked_for_and_formulas_are_defused(database: Connection[Any]) -> None:
    add_contacts(database, "=1+1", "Zoë")

    _, data, _ = export("contacts", columns=["name", "email"])

    assert data.decode() == '"name","email"\r\n"\'=1+1","a0@example.org"\r\n"Zoë","a1@example.org"\r\n'


def test_filters_select_rows(database: Connection[Any]) -> None:
    ledger_rows.add(database, 3, "completed")
    ledger_rows.add(database, 2, "dead", actor="import_csv", queue="imports")
    ledger_rows.add(database, 1, "pending", actor="import_csv", queue="imports")

    def rows(dataset: str, **filters: Any) -> int:
        result, _, _ = export(dataset, filters, format="jsonl")
        return int(result["rows"])

    assert rows("jobs") == 6
    assert rows("jobs", state="dead") == 2
    assert rows("jobs", state="waiting") == 1
    assert rows("jobs", queue="imports", actor="import_csv") == 3
    assert rows("jobs", created_from="2026-01-31T10:29:00Z", created_before="2026-01-31T10:31:00+00:00") == 6
    assert rows("jobs", created_from="2026-01-31T11:29:30+01:00") == 6
    assert rows("jobs", created_before="2026-01-31") == 0
    assert rows("attempts", outcome="failed", actor="import_csv") == 2
    assert rows("attempts", outcome="lost") == 0


def test_a_filter_s_value_is_bound_and_never_read_as_sql(database: Connection[Any]) -> None:
    add_contacts(database, "Zoë")
    hostile = "x' OR '1'='1'; DROP TABLE switchyard_jobs.contact; --"

    result, _, _ = export("contacts", {"company": hostile})

    assert result["rows"] == 0
    assert hostile not in str(select("contacts", {"company": hostile}, None).rows.as_string())
    assert database.execute("SELECT count(*) FROM switchyard_jobs.contact").fetchone() == (1,)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (("users",), "dataset: 'users'"),
        (("switchyard.job",), "dataset"),
        (("jobs", {"payload": "x"}), "filters: 'payload'"),
        (("jobs", {"1=1; --": "x"}), "filters"),
        (("jobs", {}, ["id", "payload"]), "columns: 'payload'"),
        (("jobs", {}, ["id", "id FROM pg_user; --"]), "columns"),
        (("jobs", {}, []), "columns"),
        (("jobs", {}, ["id", "id"]), "columns"),
        (("jobs", {"state": "gone"}), "filters.state"),
        (("jobs", {"state": ["dead"]}), "filters.state"),
        (("jobs", {"state": None}), "filters.state"),
        (("jobs", {"queue": ""}), "filters.queue"),
        (("jobs", {"queue": "x" * 501}), "filters.queue"),
        (("jobs", {"created_from": "yesterday"}), "filters.created_from"),
        (("jobs", {"created_from": 0}), "filters.created_from"),
        (("attempts", {"outcome": "x"}), "filters.outcome"),
    ],
)
def test_what_is_not_listed_is_refused_by_name(request_: tuple[Any, ...], named: str) -> None:
    with switchyard.job_context(id=JOB, attempt=1), pytest.raises(Permanent, match=named):
        export_data(*request_)


def test_progress_moves_with_the_rows(database: Connection[Any]) -> None:
    ledger_rows.add(database, 2_100)

    _, _, calls = export("jobs", columns=["id"])

    percents = [percent for percent, _ in calls]
    assert percents == sorted(percents)
    assert len(percents) == 6
    assert (percents[0], percents[-1]) == (0, 100)


def test_an_empty_dataset_is_a_file_with_a_header(database: Connection[Any]) -> None:
    result, data, calls = export("contacts", columns=["email"])

    assert (result["rows"], data) == (0, b'"email"\r\n')
    assert calls[-1] == (100, "done")


def test_an_export_that_fails_leaves_no_file(database: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ledger_rows.add(database, 10)

    class Full(Exception):
        pass

    class Failing:
        def __init__(self, *_: Any) -> None:
            pass

        def __enter__(self) -> Failing:
            return self

        def row(self, values: Any) -> None:
            raise Full

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setitem(WRITERS, "csv", Failing)
    with switchyard.job_context(id=JOB, attempt=1), pytest.raises(Full):
        export_data("jobs")

    assert list((switchyard.settings().data_dir / "storage" / "exports").iterdir()) == []


def test_the_exported_rows_are_those_that_were_counted(database: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ledger_rows.add(database, 500)

    with switchyard.job_context(id=JOB, attempt=1) as job:
        report = job.progress

        def meanwhile(percent: float, stage: str | None = None) -> None:
            # The first report stands between the count and the rows.
            if not job.progress_calls:
                ledger_rows.add(database, 700)
            report(percent, stage)

        monkeypatch.setattr(job, "progress", meanwhile)
        result = export_data("jobs", columns=["id"])

    assert result["rows"] == 500
    assert job.progress_calls == [(0, "export"), (100, "export"), (100, "done")]


MEASURE = """
import resource, sys, switchyard
from actors import export_data
with switchyard.job_context(id={job!r}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = export_data("jobs", columns=["id", "error"], format={format!r})["rows"]
    print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("format", ["csv", "xlsx"])
def test_a_large_export_needs_no_more_memory_than_a_small_one(database: Connection[Any], format: str) -> None:
    # 40 MB of text, if it were held.
    ledger_rows.add(database, 10_000, "dead", error="x" * 4_000)
    environment = base_environment() | variables(switchyard.settings()) | {"PYTHONPATH": str(ROOT), "BROKER": "stub"}

    measured = subprocess.run(
        [sys.executable, "-c", MEASURE.format(job=JOB, format=format)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    rows, grown = map(int, measured.stdout.split())
    assert rows == 10_000
    # ru_maxrss is in kilobytes on Linux, in bytes on macOS.
    assert grown / (1 if sys.platform != "darwin" else 1_024) < 20_000
