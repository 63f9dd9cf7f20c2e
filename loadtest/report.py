"""What a load test prints: medians with their range, ratios, the facts about the machine they were measured on; and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import redis

from loadtest.stand import LoadtestFailed, Stand


def command(
    name: str,
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], dict[str, Any]],
    text: Callable[[dict[str, Any]], str],
) -> int:
    """Run a load test and print its figures, as JSON with ``--json``. Returns the exit code: 1 when they mean nothing."""
    try:
        result = run(options)
    except LoadtestFailed as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if options.json else text(result))
    return 0


def spread(values: Sequence[float], digits: int = 0) -> str:
    """``median (min-max)``."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """How many times the median of ``base`` the median of ``values`` is; nothing where one of them is nothing."""
    return f"{median(values) / median(base):.2f} x" if values and base and median(base) else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first aligned left, the others right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def machine(stand: Stand) -> dict[str, Any]:
    """What the figures depend on: processor, versions, the settings of Postgres that cost a disk its time, and the load before."""
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "python": platform.python_version(),
        "postgres": stand.query("SHOW server_version")[0],
    }
    for name in ("fsync", "synchronous_commit", "shared_buffers"):
        facts[name] = stand.query("SELECT current_setting(%s)", name)[0]
    with suppress(redis.RedisError):
        info: Mapping[str, Any] = stand.redis.info("server")
        facts["redis"] = info["redis_version"]
    for package in ("dramatiq", "psycopg", "redis", "pika"):
        try:
            facts[f"{package} (package)"] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
