"""The table says what was measured, keeps the brokers that were not run, and stands between its markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.checker import Verdict
from tests.soak import report
from tests.soak.judge import Trend
from tests.soak.soak import Plan, Result


def result(broker: str, *, grows: bool = False) -> Result:
    """Ten minutes in which a worker went from 90 to 120 MB."""
    rss = Trend(points=100, first=90.0, last=120.0, floor_rise=30.0, per_hour=180.0, grows=grows)
    few = Trend(points=3, first=5.0, last=5.0, floor_rise=0.0, per_hour=0.0, grows=False)
    return Result(
        broker=broker, plan=Plan.of_length(600, 12.0), verdict=Verdict(jobs=8_000), trends={"steady worker 1 rss": rss, "redis keys": few},
        rates=[14.0] * 15, p50=[0.01] * 15, p99=[0.1] * 10 + [0.2] * 5, rolls=9, problems=["grew"] if grows else [],
    )  # fmt: skip


def test_results_of_several_brokers_stand_beside_each_other(tmp_path: Path):
    path = tmp_path / "last.json"
    report.keep(result("redis", grows=True), path)

    lines = report.table(report.keep(result("postgres"), path)).splitlines()

    assert lines[0] == "| | may rise by, an hour | postgres | redis |"
    assert "| resident, a worker | 20 MB | 90 → 120 MB | 90 → 120 MB, **grows** |" in lines
    assert "| Redis: keys | 20 | 5 → 5, too few to judge | 5 → 5, too few to judge |" in lines
    assert "| due to start, p99 | × 2 + 500 ms in all | 100 → 200 ms | 100 → 200 ms |" in lines
    assert lines[-1].count("**not green**") == 1


def test_the_table_takes_its_place_between_the_markers_and_nothing_else_changes(tmp_path: Path):
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{report.BEGIN}\nformer\n{report.END}\nafter\n")

    report.publish(report.keep(result("redis"), tmp_path / "last.json"), document)

    text = document.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n| |")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "former" not in text


def test_a_document_without_markers_is_refused(tmp_path: Path):
    document = tmp_path / "reliability.md"
    document.write_text("nothing")

    with pytest.raises(ValueError, match="soak:begin"):
        report.publish({}, document)
