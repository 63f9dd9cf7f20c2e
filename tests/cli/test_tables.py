"""Lists in any width: what is copied from them is there whole, nothing is cut, and a pipe gets each row in a line."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from cli import tables
from cli.tables import listing, print_details, print_listing, print_paragraph

ID = "21760a03-6001-4aa5-ad2e-1a8cdcf50de9"
#: Headings, those that stand whole, those that may go below, and a row.
LISTS = {
    "jobs": (
        ("id", "state", "actor", "queue", "age", "waits for"),
        ("id", "state", "age"),
        ("waits for",),
        (ID, "completed", "deliver_webhook", "webhooks", "22s", "concurrency"),
    ),
    "dead letters": (
        ("id", "died", "actor", "reason", "group", "error"),
        ("id", "died", "group"),
        ("error", "group", "reason"),
        (ID, "2026-11-28 10:18:19 UTC", "charge", "max_retries", "cdd47c76c7373b80", "ValueError: no card " + "x" * 90),
    ),
    "schedules": (
        ("name", "actor", "cron", "time zone", "last", "next", "state"),
        ("name",),
        ("actor", "last", "time zone"),
        ("hourly", "statistics", "0 * * * *", "UTC", "", "2026-11-28 10:00:00 UTC", "retired: declared by no living worker"),
    ),
    "batches": (
        ("batch", "name", "state", "jobs", "done", "dead", "cancelled", "age"),
        ("batch", "state", "age"),
        ("name",),
        (ID, "sizes of summer", "succeeded", "100,000", "100 %", "0", "0", "3d"),
    ),
}


def shown(capsys, monkeypatch, headings, whole, below, row, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = listing(*headings, whole=whole, below=below)
    table.add_row(*row)
    print_listing(table)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 100, 140])
@pytest.mark.parametrize("name", LISTS)
def test_nothing_is_cut_no_line_is_too_long_and_ids_are_whole(capsys, monkeypatch, name, columns):
    headings, whole, below, row = LISTS[name]

    out = shown(capsys, monkeypatch, headings, whole, below, row, columns)

    assert max(map(len, out.splitlines())) <= columns
    assert all(value in out for heading, value in zip(headings, row, strict=True) if heading in whole and heading not in below)
    letters = re.sub(r"\s", "", out)
    # Broken cells stand in pieces, one under another; every character is there.
    assert all(sorted(letters).count(letter) >= "".join(row).count(letter) for letter in set("".join(row)) - {" "})


def test_what_goes_below_stands_under_its_row_by_its_name(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, *LISTS["dead letters"], 80)

    first, second, *_ = out.splitlines()[1:]
    assert re.fullmatch(rf"{ID} +2026-11-28 10:18:19 UTC +charge +max_retries", first)
    assert second.startswith("    group: cdd47c76c7373b80  error: ValueError: no card")


def test_a_column_that_may_go_below_and_has_no_value_is_left_out(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, ("id", "error"), ("id",), ("error",), ("1", None), 80)

    assert out == "id\n1\n"


def test_a_pipe_gets_each_row_in_a_line(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = listing("id", "error", whole=("id",), below=("error",))
    table.add_row(ID, "a long story " * 100)

    print_listing(table)

    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_is_not_there_is_said(capsys):
    print_listing(listing("id"), "no jobs")

    assert capsys.readouterr().out == "no jobs\n"


def test_numbers_stand_to_the_right(capsys):
    table = listing("jobs", "group", numbers=("jobs",))
    table.add_row(3, "a")

    print_listing(table)

    assert capsys.readouterr().out == "jobs  group\n   3  a\n"


def test_wide_characters_take_the_room_that_they_take(capsys, monkeypatch):
    out = shown(capsys, monkeypatch, ("a", "b"), (), (), ("写真" * 30, "x"), 40)

    assert sum(line.count("写") for line in out.splitlines()) == 30
    assert max(len(line) + len(re.findall("[写真]", line)) for line in out.splitlines()) <= 40


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "a\nb", "\u202eevil", "[red]x[/red]", ":smile:"])
def test_other_peoples_text_is_no_markup_and_steers_nothing(capsys, text):
    table = listing("error")
    table.add_row(text)

    print_listing(table)
    print_details([("error", text)])
    print_paragraph("note  ", text)

    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)
    assert len(out.splitlines()) == 4
    assert not text.startswith(("[red]", ":")) or out.count(text) == 3


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_states_are_coloured_on_a_terminal_alone_and_not_where_nobody_wants_it(capsys, monkeypatch, variables, coloured):
    environment = {"TERM": "xterm-256color", **variables}
    terminal = Console(force_terminal=True, width=80, _environ=environment, markup=False, soft_wrap=True)
    monkeypatch.setattr(tables, "console", lambda: terminal)
    table = listing("state")
    table.add_row("dead")

    print_listing(table)

    assert ("\x1b[31mdead" in capsys.readouterr().out) is coloured


def test_details_stand_one_under_another_and_go_on_beside_their_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")

    print_details([("id", 1), ("error", "one two three four five six"), ("gone", None)], indent=2)

    assert capsys.readouterr().out.splitlines() == ["  id     1", "  error  one two three four", "         five six"]


def test_a_paragraph_goes_on_under_itself(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")

    print_paragraph("note  ", "one two three four", "five")

    assert capsys.readouterr().out.splitlines() == ["note  one two three", "      four", "      five"]
