"""Rows into a file, one at a time: CSV, JSON lines, XLSX. Memory stays the same however many rows there are.

A cell that a spreadsheet would run as a formula is given a leading apostrophe in CSV and XLSX, so that an exported e-mail
address like ``=HYPERLINK(...)`` stays a text. Only texts are touched: a number is written as a number, so -5 stays -5. JSON
lines are for programs: values keep their type and their characters.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, BinaryIO, Final, Protocol
from uuid import UUID

from switchyard import Permanent

#: What a worksheet holds at most; Excel's own bounds.
XLSX_MAX_ROWS: Final = 1_048_576
XLSX_MAX_TEXT: Final = 32_767
#: The largest whole number that a spreadsheet's floats keep exactly.
_EXACT_INTEGER: Final = 2**53

_OPERATORS: Final = frozenset("=+-@")
_CONTROLS: Final = frozenset("\t\r\n\x00")


class Writer(AbstractContextManager["Writer"], Protocol):
    """Writes rows to a binary file that the caller opened and closes. Leaving the block writes what is still held."""

    def row(self, values: Sequence[Any]) -> None:
        """Write one row of values as they came from Postgres, in the order of the columns."""


def defuse(text: str) -> str:
    """Make a text harmless as a spreadsheet's cell: one that begins like a formula gets a leading apostrophe.

    Blanks, control and invisible characters and full-width forms do not hide a formula: spreadsheets drop or fold them.
    """
    shown = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c)[0] not in "ZC")
    dangerous = next(shown, "") in _OPERATORS or text[:1] in _CONTROLS
    return f"'{text}" if dangerous else text


class CsvWriter(Writer):
    """RFC 4180 in UTF-8: a header line, every field quoted, times in ISO 8601, nothing for null."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        self._csv = csv.writer(self._text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        self._csv.writerow(columns)

    def row(self, values: Sequence[Any]) -> None:
        self._csv.writerow([_cell(value) for value in values])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._text.flush()
        self._text.detach()  # the file is the caller's to close


class JsonLinesWriter(Writer):
    """One JSON object a line in UTF-8, times in ISO 8601."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns

    def row(self, values: Sequence[Any]) -> None:
        record = dict(zip(self._columns, map(_plain, values), strict=True))
        self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is held."""


class XlsxWriter(Writer):
    """One worksheet with a header row. Rows go to a temporary file as they come, and are packed at the end."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        # Not at the top: the library is part of the extra "jobs", and CSV has to work without it.
        import xlsxwriter

        # constant_memory keeps one row in memory; the strings_to_* options turn texts into something that runs.
        safe = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
        self._book = xlsxwriter.Workbook(file, safe)
        self._sheet = self._book.add_worksheet("export")
        self._line = 0
        self.row(columns)

    def row(self, values: Sequence[Any]) -> None:
        if self._line >= XLSX_MAX_ROWS:
            raise Permanent(f"format: a worksheet ends at {XLSX_MAX_ROWS:,} rows; export as csv, or filter")
        for column, value in enumerate(map(_cell, values)):
            if isinstance(value, bool):
                self._sheet.write_boolean(self._line, column, value)
            elif isinstance(value, int | float):
                self._sheet.write_number(self._line, column, value)
            elif len(value) > XLSX_MAX_TEXT:
                raise Permanent(f"format: row {self._line} has a text longer than a worksheet's {XLSX_MAX_TEXT:,} characters")
            elif value:
                self._sheet.write_string(self._line, column, value)
        self._line += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Also after an error: closing is what removes the temporary files. What it wrote goes with the storage's file.
        self._book.close()


#: The formats, by the file's ending.
WRITERS: Final[dict[str, Callable[[BinaryIO, Sequence[str]], Writer]]] = {
    "csv": CsvWriter,
    "jsonl": JsonLinesWriter,
    "xlsx": XlsxWriter,
}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value) if isinstance(value, UUID) else value


def _cell(value: Any) -> str | int | float | bool:
    """A value as a cell: numbers as they are while a spreadsheet keeps them exactly, everything else a harmless text."""
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, int | float) and abs(value) <= _EXACT_INTEGER:
        return value
    if isinstance(value, dict | list):
        return defuse(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return defuse(str(value))
