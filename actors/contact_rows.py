"""A CSV file of contacts, read as records: each a contact that may be stored, or the reason why not.

The file is read as a stream, so its size does not matter. Comma, semicolon and tab are told apart by the header. A record that
is broken, be it by its encoding, its quotes or its values, is reported with its line and skipped; the others go on.
"""

from __future__ import annotations

import csv
import io
import itertools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from actors.addresses import is_plain_address
from switchyard import Permanent

if TYPE_CHECKING:
    import _csv  # has the type of what csv.reader returns

#: The columns that are imported, with their longest value in characters; the first two are required.
COLUMNS: Final = {"email": 254, "name": 200, "company": 200, "phone": 50}
REQUIRED: Final = ("email", "name")
_DELIMITERS: Final = (",", ";", "\t")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record: where it ends in the file (the header is line 1), and the contact, or why it is none."""

    line: int
    contact: dict[str, str | None] | None = None
    reason: str | None = None


def read(file: BinaryIO) -> Iterator[Record]:
    """Read the records of a CSV file in UTF-8, with or without a byte order mark; blank lines do not count.

    The header names the columns in any order and case; those that are not ``COLUMNS`` are ignored.

    Raises:
        Permanent: there is no header, or it lacks or repeats a column that is needed.
    """
    # Bytes that are no UTF-8 become surrogates, so that they spoil their own record and not the file.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        first = text.readline()
        delimiter = next((d for d in _DELIMITERS if "email" in _header(first, d)), None)
        if delimiter is None:
            raise Permanent("source: the first line must name the columns, email and name among them")
        header = _header(first, delimiter)
        for name in COLUMNS:
            if header.count(name) > 1 or (name in REQUIRED and name not in header):
                raise Permanent(f"source: the header must name the column {name} once")
        reader = csv.reader(itertools.chain([first], text), delimiter=delimiter)
        next(reader)
        yield from _records(reader, header)
    finally:
        text.detach()  # the file is the caller's to close


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip().casefold() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _records(reader: _csv.Reader, header: list[str]) -> Iterator[Record]:
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The reader begins afresh with the next line.
            yield Record(line=reader.line_num, reason=f"is no CSV: {error}")
            continue
        if values:
            yield _record(reader.line_num, dict(zip(header, values, strict=False)), len(values) - len(header))


def _record(line: int, values: dict[str, str], surplus: int) -> Record:
    if surplus > 0:
        return Record(line=line, reason=f"has {surplus} more fields than the header")
    contact: dict[str, str | None] = {}
    for name, limit in COLUMNS.items():
        value = values.get(name, "").strip()
        problem = _problem(value, limit) or ("is missing" if name in REQUIRED and not value else None)
        if problem:
            return Record(line=line, reason=f"{name}: {problem}")
        contact[name] = value or None
    email = (contact["email"] or "").lower()
    if not is_plain_address(email):
        return Record(line=line, reason="email: is no e-mail address")
    return Record(line=line, contact={**contact, "email": email})


def _problem(value: str, limit: int) -> str | None:
    if len(value) > limit:
        return f"is longer than {limit} characters"
    kinds = {unicodedata.category(c) for c in value}
    if "Cs" in kinds:
        return "is not UTF-8"
    return "holds a control character" if "Cc" in kinds else None
