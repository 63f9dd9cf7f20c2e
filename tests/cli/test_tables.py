"""Lists in 80 columns: what is copied from them is there whole, and nothing is cut."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest

from cli.tables import listing, print_listing


@pytest.mark.parametrize(
    ("headings", "whole", "row"),
    [
        (
            ("id", "state", "actor", "queue", "age", "waits for"),
            ("id", "state", "age"),
            (str(uuid4()), "completed", "deliver_webhook", "default", "22.2 s", "concurrency"),
        ),
        (
            ("died (UTC)", "id", "actor", "reason", "error", "group"),
            ("id", "group"),
            ("2026-11-28 10:18:19", str(uuid4()), "charge", "max_retries", "ValueError: no card", "cdd47c76c7373b80"),
        ),
        (
            ("name", "actor", "cron", "time zone", "last", "next", "state"),
            ("name",),
            ("hourly_statistics", "hourly_statistics", "0 * * * *", "UTC", "-", "-", "retired: declared by no living worker"),
        ),
        (
            ("batch", "name", "state", "jobs", "done", "dead", "cancelled", "created"),
            ("batch",),
            (str(uuid4()), "sizes of summer", "succeeded", "100,000", "100 %", "0", "0", "2026-11-28 10:26:58"),
        ),
    ],
    ids=["jobs", "dead letters", "schedules", "batches"],
)
def test_in_80_columns_nothing_is_cut_and_ids_and_names_are_whole(capsys, monkeypatch, headings, whole, row):
    monkeypatch.setenv("COLUMNS", "80")
    table = listing(*headings, whole=whole)
    table.add_row(*row)

    print_listing(table)

    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(dict(zip(headings, row, strict=True))[heading] in shown for heading in whole)
    assert sorted(re.sub(r"\s", "", shown)) == sorted(re.sub(r"\s", "", "".join((*headings, *row))))


def test_a_pipe_gets_each_row_in_a_line(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = listing("id", "error", whole=("id",))
    table.add_row(str(uuid4()), "x" * 120)

    print_listing(table)

    assert "x" * 120 in capsys.readouterr().out
