"""The supervisor's arithmetic: pauses before a restart, and what the command line takes."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.commands import _size, main
from cli.supervisor import PAUSE_MAX, PAUSE_MIN, SETTLED, Slot, Supervisor
from runtime.child import Options


def test_pauses_double_while_it_keeps_dying_and_begin_again_once_it_has_worked_for_a_while():
    slot = Slot()

    pauses = [slot.vacate(lived=0.1, at_once=False) for _ in range(10)]

    assert pauses[:4] == [PAUSE_MIN, 2 * PAUSE_MIN, 4 * PAUSE_MIN, 8 * PAUSE_MIN]
    assert pauses[-1] == PAUSE_MAX
    assert slot.vacate(lived=SETTLED, at_once=False) == PAUSE_MIN


def test_who_asks_to_be_replaced_is_replaced_at_once_unless_that_was_just_done():
    slot = Slot()

    assert [slot.vacate(lived=SETTLED, at_once=True) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert [slot.vacate(lived=1.0, at_once=True) for _ in range(3)] == [PAUSE_MIN, 2 * PAUSE_MIN, 4 * PAUSE_MIN]


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 2**29), ("512m", 2**29), ("1.5GB", 3 * 2**29), ("1GiB", 2**30), ("64 kB", 2**16), ("100000", 100_000)],
)
def test_sizes_are_read(text, size):
    assert _size(click.Context(main), click.Option(["--max-memory"]), text) == size


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--max-memory", "much"], "write a size such as 512MB"),
        (["--max-memory", "0"], "write a size such as 512MB"),
        (["--processes", "0"], "0 is not in the range"),
        (["--threads", "none"], "'none' is not a valid integer"),
        (["--max-jobs", "-1"], "-1 is not in the range"),
        (["--queues", "mail,my queue"], "'my queue' is no name of a queue"),
    ],
)
def test_a_wrong_option_is_refused_by_name(words, reason):
    result = CliRunner().invoke(main, ["worker", *words])

    assert result.exit_code == 2
    assert words[0] in result.stderr
    assert reason in result.stderr


class Told:
    """A process that says what it is given, and remembers what it is told."""

    pid, grace, returncode = 7, 0.0, None

    def __init__(self, *said):
        self.said, self.ready_at, self.recycling, self.went = list(said), 0.0, False, False

    def lines(self):
        said, self.said = self.said, []
        return said

    def go(self):
        self.went = True


def test_a_process_that_recycles_goes_when_its_successor_is_ready_and_not_before():
    supervisor = Supervisor(Options(channel=-1, modules=["actors"]), 1)
    (slot,) = supervisor._slots
    old: Any = Told("recycling it has run enough")
    new: Any = Told()
    slot.current = old

    supervisor._hear(slot, old)
    assert slot.processes() == slot.leaving == [old]
    slot.current = new
    supervisor._hear(slot, new)
    assert not old.went

    new.said = ["ready 25.0"]
    supervisor._hear(slot, new)
    assert old.went
    assert new.grace == 25.0
