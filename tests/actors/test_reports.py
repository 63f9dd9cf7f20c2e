"""generate_report: the PDF can be read, and holds the ledger's numbers."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection
from pypdf import PdfReader

import switchyard
from actors import generate_report
from actors.figures import Bucket, collect, last_hours, yesterday
from actors.report_pdf import lay_out, render
from actors.storage import storage
from switchyard import Permanent
from tests.actors import ledger_rows

JOB = "0190d5a4-7b1e-7c3a-9f00-000000000006"


def run(**kwargs: Any) -> tuple[dict[str, Any], list[tuple[float, str | None]]]:
    with switchyard.job_context(id=JOB, attempt=1) as job:
        return generate_report(**kwargs), job.progress_calls


def text(pdf: bytes) -> str:
    return " ".join(" ".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages).split())


def fill(connection: Connection[Any], ended: datetime) -> None:
    ledger_rows.add(connection, 1_234, "completed", ended=ended, seconds=2.0)
    ledger_rows.add(connection, 17, "completed", actor="import_csv", queue="imports", ended=ended, seconds=63.5)
    ledger_rows.add(connection, 3, "dead", actor="import_csv", queue="imports", ended=ended)
    ledger_rows.add(connection, 41, "pending", ended=ended)


def test_a_report_holds_the_ledger_s_numbers(database: Connection[Any]) -> None:
    fill(database, datetime.now(UTC) - timedelta(hours=2))

    result, calls = run(period_hours=24)

    assert calls == [(20, "query"), (50, "format"), (80, "render"), (100, "upload")]
    assert result["key"] == f"reports/{JOB}.pdf"
    assert {name: result[name] for name in ("created", "completed", "failures", "dead")} == {
        "created": 1_295, "completed": 1_251, "failures": 3, "dead": 3,
    }  # fmt: skip
    pdf = storage().get(result["key"], limit=10_000_000)
    assert len(pdf) == result["bytes"]
    words = text(pdf)
    assert "Created Completed Failed attempts Dead Failure rate 1,295 1,251 3 3 0.2%" in words
    assert "send_email 1,234 0 0 0.0% 2.000 s 2.000 s" in words
    assert "import_csv 17 3 3 15.0% 63.500 s 63.500 s" in words
    assert "emails completed 1,234 emails pending 41 imports completed 17 imports dead 3" in words
    assert "completed jobs failed attempts" in words


def test_what_lies_outside_the_period_is_not_counted(database: Connection[Any]) -> None:
    fill(database, datetime.now(UTC) - timedelta(hours=30))

    assert run(period_hours=24)[0]["completed"] == 0
    assert run(period_hours=48)[0]["completed"] == 1_251


def test_a_report_about_nothing_says_so(database: Connection[Any]) -> None:
    result, _ = run()

    words = text(storage().get(result["key"], limit=10_000_000))
    assert "No job ended in this period." in words
    assert result["completed"] == 0


def test_throughput_is_by_the_hour_up_to_two_days_then_by_the_day(database: Connection[Any]) -> None:
    for hours, count in ((0, 5), (1, 7), (50, 2)):
        ledger_rows.add(database, count, ended=ledger_rows.ENDED - timedelta(hours=hours))
    ledger_rows.add(database, 3, "dead", ended=ledger_rows.ENDED)
    until = datetime(2026, 1, 31, 12, tzinfo=UTC)

    assert collect(*last_hours(24, until)).buckets == [
        Bucket(datetime(2026, 1, 31, 9, tzinfo=UTC), 7, 0),
        Bucket(datetime(2026, 1, 31, 10, tzinfo=UTC), 5, 3),
    ]
    assert collect(*last_hours(72, until)).buckets == [
        Bucket(datetime(2026, 1, 29, tzinfo=UTC), 2, 0),
        Bucket(datetime(2026, 1, 31, tzinfo=UTC), 12, 3),
    ]


def test_the_slowest_jobs_are_listed_slowest_first(database: Connection[Any]) -> None:
    for seconds in range(1, 15):
        ledger_rows.add(database, 1, seconds=float(seconds))

    figures = collect(*last_hours(1, ledger_rows.ENDED + timedelta(minutes=1)))

    assert [job.seconds for job in figures.slowest] == [14, 13, 12, 11, 10, 9, 8, 7, 6, 5]


def test_names_that_no_font_has_or_no_column_holds_do_not_stop_a_report(database: Connection[Any]) -> None:
    ledger_rows.add(database, 1, actor="отчёт" * 30, queue="<b>&队列</b>")

    pdf = render(lay_out(collect(*last_hours(1, ledger_rows.ENDED + timedelta(minutes=1)))))

    assert "<b>&??</b>" in text(pdf)


def test_many_actors_take_several_pages_with_their_head_repeated(database: Connection[Any]) -> None:
    for number in range(70):
        ledger_rows.add(database, 1, actor=f"actor_{number}")

    pdf = render(lay_out(collect(*last_hours(1, ledger_rows.ENDED + timedelta(minutes=1)))))

    assert len(PdfReader(io.BytesIO(pdf)).pages) >= 2
    assert text(pdf).count("Actor Completed Failed Dead Failure rate Mean 95 %") >= 2
    assert "actor_69 1 0 0" in text(pdf)


def test_the_same_figures_make_the_same_file(database: Connection[Any]) -> None:
    fill(database, ledger_rows.ENDED)
    figures = collect(*last_hours(24, datetime(2026, 1, 31, 12, tzinfo=UTC)))

    assert render(lay_out(figures)) == render(lay_out(figures))


@pytest.mark.parametrize("hours", [0, -1, 2_161])
def test_a_period_out_of_range_is_refused(hours: int) -> None:
    with pytest.raises(Permanent, match="period_hours"):
        run(period_hours=hours)


def test_yesterday_is_the_last_full_day_in_utc() -> None:
    since, until = yesterday(datetime.fromisoformat("2026-03-01T00:30:00+02:00"))

    assert (since.isoformat(), until.isoformat()) == ("2026-02-27T00:00:00+00:00", "2026-02-28T00:00:00+00:00")
