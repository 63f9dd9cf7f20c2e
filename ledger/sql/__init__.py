"""The hot statements: plain SQL in ``*.sql`` files beside this one, each introduced by ``-- name:`` and a line of purpose.

``SQL["claim_by_id"]`` is the text, loaded once. Values are always bound, nothing is ever formatted into a statement.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Final, LiteralString, cast

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load() -> dict[str, LiteralString]:
    statements: dict[str, LiteralString] = {}
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".sql"):
            continue
        parts = _NAME.split(entry.read_text(encoding="utf-8"))
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            if name in statements:
                raise ValueError(f"statement {name!r} is defined twice, the second time in {entry.name}")
            # The files are part of the package, so their text is as literal as a string in the source.
            statements[name] = cast("LiteralString", body.strip().rstrip(";"))
    return statements


SQL: Final[dict[str, LiteralString]] = _load()
