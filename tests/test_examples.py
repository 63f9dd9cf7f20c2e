"""The programs of docs/examples run as written, against a real worker, and print what they say they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import brokers
from settings import Settings, variables
from tests.rig.processes import ROOT, base_environment
from tests.rig.workers import Workers

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


# Each on one broker, in turn: that features are the same on all of them is the conformance suite's business.
@pytest.mark.parametrize(
    ("path", "broker_name"),
    [
        pytest.param(path, brokers.TRANSPORTS[number % len(brokers.TRANSPORTS)], id=path.stem)
        for number, path in enumerate(EXAMPLES)
    ],
)
def test_an_example_prints_what_it_says(path: Path, broker_name: str, settings: Settings, worker_process: Workers):
    says = re.search(r"^# Prints:\n((?:#.*\n?)+)\Z", path.read_text(), re.MULTILINE)
    assert says, f"{path.name} does not end in a comment that begins with '# Prints:'"
    wanted = re.sub(r"^# ?", "", says[1], flags=re.MULTILINE).strip()

    worker_process(path.stem, path=path.parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", path.name],
        env=base_environment() | variables(settings) | {"PYTHONPATH": f"{path.parent}:{ROOT}"},
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.strip() == wanted
