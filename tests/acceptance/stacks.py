"""The ``switchyard`` command as a process, in a folder of the test's own, as somebody would run it there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import wait_until

#: Starts ``switchyard COMMAND...`` with some variables set: ``switchyard("demo", BROKER="redis")``.
Switchyard = Callable[..., Child]

PYTHON = base_environment() | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def switchyard(tmp_path: Path) -> Iterator[Switchyard]:
    """Starts the command in ``tmp_path``; what still runs after the test is stopped, with all that it started."""
    started: list[Child] = []

    def start(*arguments: str, **variables: str) -> Child:
        command = [sys.executable, "-W", "error", "-c", "from cli import main; main(prog_name='switchyard')", *arguments]
        log = tmp_path / f"{arguments[0]}-{len(started) + 1}.out"
        started.append(Child(command, log=log, env=PYTHON | variables, cwd=tmp_path))
        return started[-1]

    yield start
    for child in started:
        if child.running:
            child.terminate()
            child.wait(60)
    # Of those that a test has killed, the guard ends the rest.
    wait_until(lambda: not leftovers(tmp_path), 40, lambda: f"left behind: {leftovers(tmp_path)}")


def groups(folder: Path) -> set[int]:
    """The process groups that the stack in a folder has recorded."""
    texts = [path.read_text().strip() for path in (folder / "var" / "run").glob("*.pid")]
    return {int(text) for text in texts if text}


def members(group: int) -> list[str]:
    """The command lines of a process group; the dead whom nobody has reaped do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def leftovers(folder: Path) -> list[str]:
    """Processes of any kind that say the folder in their command line or work in it."""
    found = []
    for process in psutil.process_iter():
        try:
            line, home = " ".join(process.cmdline()), process.cwd()
            if (str(folder) in line or home.startswith(str(folder))) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        except psutil.Error:
            continue
    return found
