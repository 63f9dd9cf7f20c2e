"""Writes ``.env.example`` and ``docs/settings.md`` from ``settings.py`` (``make reference``); a test holds them to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from settings import Settings

ROOT = Path(__file__).resolve().parents[1]

_ENV_HEADER = """\
# Every setting, with its default. Copy this file to .env and change what differs; the environment wins over .env.
# A duration is a number of seconds, or carries a unit: 500ms, 30s, 5m, 1h, 7d.
"""

_PAGE_HEADER = """\
# Settings

Each is an environment variable, or a line in a file named `.env` in the working directory; the environment wins, and
`switchyard.configure(name=value)` wins over both. An empty value means the default. A wrong one stops the start with a line
that names the variable. A duration is a number of seconds, or carries a unit: `500ms`, `30s`, `5m`, `1h`, `7d`.

What a single job type does (retries, time limit, priority) is not set here but in the options of its actor.

| variable | default | meaning |
|---|---|---|
"""


def default_of(field: FieldInfo) -> str:
    """The default as one would write it in the environment; empty when there is none."""
    value: Any = field.default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, float) and value >= 86_400 and value % 86_400 == 0:
        return f"{value / 86_400:g}d"
    if isinstance(value, float):
        return f"{value:g}"
    return str(to_jsonable_python(value)).lower() if isinstance(value, bool) else str(value)


def env_example() -> str:
    """The text of ``.env.example``."""
    fields = Settings.model_fields.items()
    return _ENV_HEADER + "".join(f"\n# {field.description}\n#{name.upper()}={default_of(field)}\n" for name, field in fields)


def reference() -> str:
    """The text of ``docs/settings.md``."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = default_of(field)
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name.upper()}` | {f'`{default}`' if default else 'unset'} | {meaning} |\n")
    return _PAGE_HEADER + "".join(rows)


if __name__ == "__main__":
    (ROOT / ".env.example").write_text(env_example())
    (ROOT / "docs" / "settings.md").write_text(reference())
