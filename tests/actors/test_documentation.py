"""The reference page says what the code does: policies, datasets, and a receiver that really checks the signature."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import actors
from actors.datasets import DATASETS
from actors.signatures import sign
from tests.rig.processes import ROOT

PAGE = (ROOT / "docs" / "reference" / "actors.md").read_text()


def seconds(text: str) -> float:
    number, unit = re.match(r"([\d.]+) (s|min|h)", text.strip()).groups()
    return float(number) * {"s": 1, "min": 60, "h": 3_600}[unit]


def test_the_table_has_every_actor_with_its_policy() -> None:
    table = PAGE.split("\n\n")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    named = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}

    assert set(named) == set(actors.__all__)
    for name in set(named) - {"flaky", "doomed"}:
        actor, (_, queue, attempts, waits, limit, _) = getattr(actors, name), named[name]
        first, longest = [*re.findall(r"[\d.]+ (?:s|min|h)", waits), *re.findall(r"[\d.]+ (?:s|min|h)", waits)][:2]
        assert queue == f"`{actor.queue_name}`", name
        assert int(attempts) == actor.options["max_retries"] + 1, name
        assert (seconds(first), seconds(longest)) == (actor.options["min_backoff"] / 1e3, actor.options["max_backoff"] / 1e3), (
            name
        )
        assert seconds(limit) == actor.options["time_limit"] / 1e3, name


def test_the_datasets_have_their_filters_and_columns() -> None:
    for name, dataset in DATASETS.items():
        assert f"| `{name}` | `{', '.join(dataset.filters)}` | `{', '.join(dataset.columns)}` |" in PAGE


def test_the_receiver_s_ten_lines_accept_what_is_genuine_only() -> None:
    scope: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], scope)
    is_genuine: Callable[[bytes, str, bytes], bool] = scope["is_genuine"]
    now = int(time.time())

    assert is_genuine(b"k", sign(b"k", b"body", now), b"body")
    assert not is_genuine(b"x", sign(b"k", b"body", now), b"body")
    assert not is_genuine(b"k", sign(b"k", b"body", now), b"body!")
    assert not is_genuine(b"k", sign(b"k", b"body", now - 400), b"body")
    assert not is_genuine(b"k", "t=1,v1=0", b"body")
