"""Reading contacts: what is taken, what is refused, and on which line."""

from __future__ import annotations

import io

import pytest

from actors.contact_rows import Record, read
from switchyard import Permanent


def records(text: str | bytes) -> list[Record]:
    return list(read(io.BytesIO(text.encode() if isinstance(text, str) else text)))


def contact(text: str | bytes) -> dict[str, str | None] | None:
    (record,) = records(text)
    return record.contact


@pytest.mark.parametrize(
    "text",
    [
        "email,name,company,phone\nada@example.org,Ada,Engines,1",
        "EMAIL;Name;company;phone\r\n Ada@Example.ORG ; Ada ;Engines;1\r\n",
        "phone\tcompany\tname\temail\textra\n1\tEngines\tAda\tada@example.org\tx\n",
        '\ufeff"email","name","company","phone"\n"ada@example.org","Ada","Engines","1"\n\n\n',
        "\n".join(["name,email,phone,company", 'Ada,ada@example.org,1,"Engines"']),
    ],
    ids=["comma", "semicolon", "tab", "byte order mark", "other order"],
)
def test_columns_are_found_by_name_whatever_separates_them(text: str) -> None:
    assert contact(text) == {"email": "ada@example.org", "name": "Ada", "company": "Engines", "phone": "1"}


def test_optional_columns_may_be_missing_or_empty() -> None:
    assert contact("email,name,phone\nada@example.org,Ada") == {
        "email": "ada@example.org", "name": "Ada", "company": None, "phone": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "email\na@b.c",
        "mail,name\na@b.c,A",
        "email,name,email\n",
        "email,name,phone,phone\n",
        "email|name\n",
        b"\xff\xfe\x00",
    ],
)
def test_a_file_without_a_usable_header_is_refused(text: str | bytes) -> None:
    with pytest.raises(Permanent, match="source"):
        records(text)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b",Ada", "email: is missing"),
        (b"ada@example.org,", "name: is missing"),
        (b"ada@example.org,  ", "name: is missing"),
        (b"ada,Ada", "email: is no e-mail address"),
        (b"ada@example.org@x,Ada", "email: is no e-mail address"),
        (b"ada@example.org,Ada,x", "has 1 more fields than the header"),
        (b"ada@example.org," + b"A" * 201, "name: is longer than 200 characters"),
        (b"ada@example.org,A\xff", "name: is not UTF-8"),
        (b"ada@example.org,A\x00a", "name: holds a control character"),
        (b'ada@example.org,"A\na"', "name: holds a control character"),
        (b"ada@example.org," + b"A" * 140_000, "is no CSV: field larger than field limit (131072)"),
    ],
)
def test_a_wrong_line_is_reported_and_the_others_go_on(line: bytes, reason: str) -> None:
    found = records(b"email,name\nada@example.org,Ada\n" + line + b"\nbob@example.org,Bob\n")

    ends = 3 + line.count(b"\n")
    assert [(record.line, record.reason) for record in found] == [(2, None), (ends, reason), (ends + 1, None)]


def test_a_quote_that_is_never_closed_spoils_what_it_swallows() -> None:
    found = records('email,name\nada@example.org,Ada\nbob@example.org,"Bob\ncarl@example.org,Carl\n')

    assert [(record.line, record.reason) for record in found] == [(2, None), (4, "name: holds a control character")]
