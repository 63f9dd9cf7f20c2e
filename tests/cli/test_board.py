"""The demo's table fits its terminal, and without one there is a line for each change and no more."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cli.demo.board import Board, Row
from switchyard import State

ROWS = [
    Row(name="e-mail", actor="send_email", state=State.COMPLETED, attempt="1/3", time="0.20 s", note="outbox/a.eml"),
    Row(name="same file again", actor="hourly_statistics", state=State.SCHEDULED, attempt="0/10", time="waits 10.2 s"),
    Row(name="import", actor="import_csv", state=State.RUNNING, attempt="1/3", progress=40.0, stage="import", time="runs 1.0 s"),
    Row(name="dies", actor="doomed", state=State.DEAD, attempt="2/2", note="RuntimeError: the card was declined"),
    Row(name="  its PDF", note="after: weekly report"),
]


def shown(*tables: list[Row], terminal: bool, width: int = 80) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, height=24, color_system=None, legacy_windows=False)
    with Board(console) as board:
        for number, rows in enumerate(tables):
            board.show(rows, number / 2)
    # A table is drawn over the one before after a carriage return.
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [80, 104, 140])
def test_the_table_fits_its_terminal_with_nothing_cut_but_what_jobs_say(width: int):
    lines = shown(ROWS, terminal=True, width=width)
    text = "\n".join(lines)

    assert max(map(len, lines)) <= width
    for row in ROWS:
        for word in (row.name, row.actor, row.state or "", row.attempt, row.stage, row.time):
            assert word in text
    assert ("the card was declined" in text) == (width == 140)


def test_without_a_terminal_every_change_is_a_line():
    moved = [Row(name="import", actor="import_csv", state=State.RUNNING, attempt="1/3", progress=80.0, stage="import")]
    ended = [Row(name="import", actor="import_csv", state=State.COMPLETED, attempt="1/3", progress=100.0, stage="done")]

    lines = shown(ROWS[2:3], ROWS[2:3], moved, moved, ended, terminal=False)

    assert [line.split() for line in lines] == [
        ["0.00", "s", "import", "import_csv", "running", "attempt", "1/3", "40", "%", "import"],
        ["1.00", "s", "import", "import_csv", "running", "attempt", "1/3", "80", "%", "import"],
        ["2.00", "s", "import", "import_csv", "completed", "attempt", "1/3", "100", "%", "done"],
    ]


def test_without_a_terminal_failures_say_why_and_what_is_not_sent_yet_is_left_out():
    lines = shown(ROWS, terminal=False)

    assert any("dead" in line and "the card was declined" in line for line in lines)
    assert not any("its PDF" in line for line in lines)
