"""What came of it: the latest result of each broker in var/soak/last.json, and the table in docs/reliability.md."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults import report as faults
from tests.soak.judge import Trend
from tests.soak.limits import limit_of
from tests.soak.soak import HOME, Result

DOCUMENT = faults.DOCUMENT
LAST = HOME / "last.json"
BEGIN, END = "<!-- soak:begin -->", "<!-- soak:end -->"
BROKERS = ("postgres", "redis", "rabbitmq")
#: The rows of the table: which measures (how their names begin and end), what they are called, and their unit. Of several, the one that
#: rose most is shown.
ROWS = (
    ("steady worker", "rss", "resident, a worker", "MB"),
    ("steady supervisor", "rss", "resident, a supervisor", "MB"),
    ("recycled supervisor", "rss", "resident, a supervisor that recycles", "MB"),
    ("sender", "rss", "resident, a sender", "MB"),
    ("", "files", "open files, the process that rose most", ""),
    ("", "threads", "threads, the same", ""),
    ("fleets", "processes", "processes", ""),
    ("postgres", "connections", "Postgres: connections", ""),
    ("postgres", "transaction", "Postgres: oldest transaction", "s"),
    ("postgres", "private", "Postgres: memory of its processes", "MB"),
    ("job", "rows", "jobs in the ledger", ""),
    ("job", "dead", "dead tuples of jobs", ""),
    ("", "table", "table that rose most", "MB"),
    ("", "indexes", "indexes that rose most", "MB"),
    ("redis", "keys", "Redis: keys", ""),
    ("redis", "data", "Redis: memory", "MB"),
    ("rabbitmq", "queues", "RabbitMQ: queues", ""),
    ("rabbitmq", "depth", "RabbitMQ: triggers", ""),
    ("rabbitmq", "copies", "RabbitMQ: copies of dead letters (10,000 at most)", ""),
    ("rabbitmq", "channels", "RabbitMQ: channels", ""),
    ("rabbitmq", "memory", "RabbitMQ: memory", "MB"),
)


def figures(result: Result) -> dict[str, Any]:
    """A result as what is kept of it: of each row of the table its cell, and the figures above it."""
    cells = {title: _cell(result.trends, begin, end, unit) for begin, end, title, unit in ROWS}
    return {
        "date": datetime.now(UTC).date().isoformat(), "commit": faults.commit(), "green": result.green, "minutes": result.plan.seconds / 60,
        "rate": round(median(result.rates), 1) if result.rates else 0.0, "jobs": result.verdict.jobs, "lost": result.verdict.lost,
        "rolls": result.rolls, "recycled": result.recycled, "load": round(result.load, 1), "cells": cells,
        "p50": _ends(result.p50), "p99": _ends(result.p99),
    }  # fmt: skip


def _cell(trends: dict[str, Trend], begin: str, end: str, unit: str) -> str:
    found = {
        name: each
        for name, each in trends.items()
        if (not begin or name.startswith(f"{begin} ")) and name.rsplit(" ", 1)[-1] == end
    }
    if not found:
        return "–"
    name = max(found, key=lambda each: (found[each].grows, found[each].last - found[each].first))
    worst = found[name]
    digits = 1 if end in ("table", "indexes", "data", "transaction") else 0
    text = f"{worst.first:.{digits}f} → {worst.last:.{digits}f}{f' {unit}' if unit else ''}"
    named = f" ({name.rsplit(' ', 1)[0]})" if end in ("table", "indexes", "files", "threads") else ""
    return text + named + (", **grows**" if worst.grows else "" if worst.judged else ", too few to judge")


def _ends(windows: list[float]) -> str:
    """The medians of the first third of the windows and of the last, in ms."""
    if len(windows) < 3:
        return "–"
    third = len(windows) // 3
    return f"{median(windows[:third]) * 1_000:.0f} → {median(windows[-third:]) * 1_000:.0f} ms"


def keep(result: Result, path: Path = LAST) -> dict[str, Any]:
    """Put a result in the place of the broker's last one; returns all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found[result.broker] = figures(result)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found


def table(last: dict[str, Any]) -> str:
    """The latest result of each broker as a Markdown table."""
    brokers = [broker for broker in BROKERS if broker in last]

    def row(title: str, allowed: str, name: str) -> str:
        return f"| {title} | {allowed} | " + " | ".join(str(last[broker][name]) for broker in brokers) + " |"

    lines = [
        f"| | may rise by, an hour | {' | '.join(brokers)} |",
        f"|---|---:|{'---:|' * len(brokers)}",
        row("minutes", "", "minutes"),
        row("jobs", "", "jobs"),
        row("lost", "0", "lost"),
        row("executions a second", "", "rate"),
        row("due to start, p50", "× 2 + 500 ms in all", "p50"),
        row("due to start, p99", "× 2 + 500 ms in all", "p99"),
        row("commands rolled", "", "rolls"),
        row("processes recycled", "", "recycled"),
    ]
    for begin, end, title, unit in ROWS:
        cells = [last[broker]["cells"].get(title, "–") for broker in brokers]
        limit = limit_of(f"{begin} {end}")
        allowed = f"{limit.per_hour:,g}{f' {unit}' if unit else ''}"
        lines.append(f"| {title} | {allowed} | {' | '.join(cells)} |")
    runs = ", ".join(
        f"{broker} {last[broker]['date']} at {last[broker]['commit']} (load {last[broker]['load']}"
        f"{'' if last[broker]['green'] else ', **not green**'})"
        for broker in brokers
    )
    return "\n".join([*lines, "", f"{runs}."])


def publish(last: dict[str, Any], document: Path = DOCUMENT) -> None:
    """Write the table into the document, between its markers. Raises: ValueError: it has none."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{document} has no {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{table(last)}\n{END}{after}")
