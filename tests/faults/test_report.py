"""The count adds up over runs, and the table says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.checker import Verdict
from tests.faults.runner import Result
from tests.faults.scenarios import Plan, load


def result(directory: Path, **verdict: object) -> Result:
    """Ten kills on Redis."""
    return Result(load()["F1"], "redis", 7, 10, 60.0, Verdict(**verdict), directory)


def test_results_add_up_and_stand_in_the_table(tmp_path: Path):
    path = tmp_path / "faults.json"
    report.add(result(tmp_path, jobs=1_000, recoveries=[1.0, 2.0]), path)

    counts = report.add(result(tmp_path, jobs=500, lost=1, recoveries=[3.0], violations=["I1: 1 jobs"]), path)

    assert report.load(path) == counts
    assert report.trials_so_far(load()["F1"], "redis", path) == 20
    row = next(line for line in report.table(load().values(), counts).splitlines() if line.startswith("| F1"))
    assert "| redis | 20 kills | 1,500 | 1 | 0 | 0 | 0 | 2.0 / 3.0 s |" in row
    assert "**broke**" in row


def test_the_table_takes_its_place_between_the_markers_and_nothing_else_changes(tmp_path: Path):
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")

    report.publish(load().values(), {}, document)

    text = document.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n| scenario")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text


def test_a_document_without_markers_is_refused(tmp_path: Path):
    document = tmp_path / "reliability.md"
    document.write_text("nothing")

    with pytest.raises(ValueError, match="faults:begin"):
        report.publish(load().values(), {}, document)


def test_a_plan_goes_on_until_its_time_is_over_and_its_trials_are_done():
    assert len(list(Plan(0.0, 3))) == 3
    assert len(list(Plan(3_600.0, 3, most=5))) == 5
