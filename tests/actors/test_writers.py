"""Writers: what a spreadsheet would run is defused, what is a number stays one."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import writers
from actors.writers import WRITERS, defuse
from switchyard import Permanent


def written(format: str, columns: Sequence[str], *rows: Sequence[Any]) -> bytes:
    file = io.BytesIO()
    with WRITERS[format](file, columns) as writer:
        for row in rows:
            writer.row(row)
    return file.getvalue()


def read_csv(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


FORMULAS = [
    *("=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\x00=1", " =1", "\u00a0=1", "\u3000=1"),
    *("＝1", "＋1", "－1", "＠A", "﹦1", "\ufeff=1", "\u200b=1", "\u202e=1", "  \t =1", "\tplain", "\x00plain"),
]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_begins_like_a_formula_gets_an_apostrophe(text: str) -> None:
    assert defuse(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "plain", "a=1", "1-2", "a@example.org", "'=1", "ü", "#1", '"=1'])
def test_other_texts_are_left_alone(text: str) -> None:
    assert defuse(text) == text


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_no_text_cell_begins_like_a_formula_whatever_a_spreadsheet_drops(text: str) -> None:
    ((cell,),) = read_csv(written("csv", ["a"], [text]))[1:] or [[""]]

    dropped = "".join(c for c in unicodedata.normalize("NFKC", cell) if unicodedata.category(c)[0] not in "ZC")
    assert dropped[:1] not in ("=", "+", "-", "@")


@pytest.mark.parametrize("format", ["csv", "xlsx"])
def test_numbers_stay_numbers(format: str) -> None:
    data = written(format, ["a", "b", "c", "d"], [-5, Decimal("-1.50"), 2.5, "-5"])

    if format == "csv":
        assert read_csv(data)[1] == ["-5", "-1.5", "2.5", "'-5"]
    else:
        cells = openpyxl.load_workbook(io.BytesIO(data)).active[2]
        assert [(cell.value, cell.data_type) for cell in cells] == [(-5, "n"), (-1.5, "n"), (2.5, "n"), ("'-5", "s")]


def test_csv_is_quoted_utf8_with_crlf() -> None:
    when = datetime(2026, 1, 31, 8, tzinfo=UTC)
    uuid = UUID("0190d5a4-7b1e-7c3a-9f00-000000000001")

    data = written(
        "csv", ["name", "note", "when", "id"], ['Zoë "Z", Ltd', None, when, uuid], ["two\nlines", {"a": 1}, None, 2**60]
    )

    assert data.decode() == (
        '"name","note","when","id"\r\n'
        '"Zoë ""Z"", Ltd","","2026-01-31T08:00:00+00:00","0190d5a4-7b1e-7c3a-9f00-000000000001"\r\n'
        '"two\nlines","{""a"":1}","","1152921504606846976"\r\n'
    )


def test_json_lines_keep_types_and_characters() -> None:
    when = datetime(2026, 1, 31, 8, tzinfo=UTC)

    data = written("jsonl", ["a", "b", "c"], ["=1+1", Decimal("2"), when], [None, {"x": [1]}, "Zoë"])

    assert [json.loads(line) for line in data.splitlines()] == [
        {"a": "=1+1", "b": 2, "c": "2026-01-31T08:00:00+00:00"},
        {"a": None, "b": {"x": [1]}, "c": "Zoë"},
    ]
    assert "Zoë".encode() in data


@pytest.mark.parametrize("text", ['=HYPERLINK("http://evil")', "http://example.org", "mailto:a@b.c", "{=1}", "007", "1e5"])
def test_a_worksheet_holds_texts_as_texts(text: str) -> None:
    data = written("xlsx", ["a"], [text])

    cell = openpyxl.load_workbook(io.BytesIO(data)).active["A2"]
    assert (cell.value, cell.data_type, cell.hyperlink) == (defuse(text), "s", None)


def test_a_worksheet_that_would_be_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Permanent, match="32,767"):
        written("xlsx", ["a"], ["x" * 32_768])
    monkeypatch.setattr(writers, "XLSX_MAX_ROWS", 3)
    with pytest.raises(Permanent, match="a worksheet ends"):
        written("xlsx", ["a"], [1], [2], [3])


def test_a_writer_leaves_the_file_open() -> None:
    for format in WRITERS:
        file = io.BytesIO()
        with WRITERS[format](file, ["a"]) as writer:
            writer.row(["b"])
        assert not file.closed
