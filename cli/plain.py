"""``--json``: one JSON object on one line, the same conventions in every command.

Times are ISO 8601 in UTC, spans and ages are numbers of seconds, states are their words. Names once given are kept; new ones may join, so
a reader ignores what it does not know.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

#: The option that asks for it.
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")


def say_json(value: dict[str, Any]) -> None:
    """Print it. Only ASCII: what errors say may hold anything."""
    click.echo(json.dumps(value, default=_plain))


def _plain(value: object) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)
