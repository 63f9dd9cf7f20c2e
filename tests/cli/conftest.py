"""What the tests of the command line share: processes in a folder of the test's own, under a guard as in a stack."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.processes import Child, Guard
from tests.rig.processes import base_environment

Launch = Callable[..., Child]


@pytest.fixture
def stack_guard(tmp_path: Path) -> Iterator[Guard]:
    """A running guard, dismissed after the test."""
    with (tmp_path / "stack.lock").open("w") as lock:
        guard = Guard(lock.fileno())
        yield guard
        guard.dismiss()


@pytest.fixture
def launch(stack_guard: Guard, tmp_path: Path) -> Iterator[Launch]:
    """Starts a process, as a stack does: ``launch("name", [program, argument])``; all are gone after the test."""
    (tmp_path / "run").mkdir()
    started: list[Child] = []
    over = threading.Event()

    def reap() -> None:
        """Let the dead go, as init does for the processes of a killed stack."""
        while not over.wait(0.05):
            for child in list(started):
                _ = child.returncode

    def launch(name: str, argv: list[str], **options: Any) -> Child:
        options.setdefault("env", base_environment())
        log = tmp_path / "log" / f"{name}.log"
        started.append(Child(name, argv, log=log, run=tmp_path / "run", guard=stack_guard, **options))
        return started[-1]

    reaper = threading.Thread(target=reap, daemon=True)
    reaper.start()
    yield launch
    over.set()
    reaper.join()
    for child in reversed(started):
        if not child.stopped:
            child.stop(10, lambda: False)


@pytest.fixture
def python(launch: Launch) -> Callable[[str], Child]:
    """Starts a Python program from its text."""
    return lambda program: launch("program", [sys.executable, "-I", "-u", "-c", program])
