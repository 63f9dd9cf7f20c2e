"""A wrong setting: where a command loads the application it is one line and an exit code, anywhere else an exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.processes import ROOT, base_environment

BIN = Path(sys.executable).parent
#: An application that has all of Dramatiq's and periodiq's modules loaded, as any app of periodiq's has.
SHOP = "import dramatiq.cli, periodiq, switchyard\n\ndef configure():\n    switchyard.configure(lease='soon')\n"
#: How Dramatiq runs a function beside its workers (``--fork-function``).
FORK = """
import sys
from types import SimpleNamespace
from dramatiq.cli import fork_process
fork_process(SimpleNamespace(verbose=0, skip_logging=True), 0, "wrong:configure", sys.stderr)
"""


def run(directory, *command):
    (directory / "shop.py").write_text(SHOP)
    (directory / "wrong.py").write_text("from shop import configure\nconfigure()\n")
    environment = base_environment() | {"PYTHONPATH": f"{directory}:{ROOT}", "BROKER": "stub"}
    return subprocess.run(
        list(map(str, command)), cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "command",
    [
        [BIN / "dramatiq", "wrong", "-p", "1"],
        [BIN / "dramatiq", "shop:configure", "-p", "1"],
        [BIN / "dramatiq", "shop", "wrong", "-p", "1"],
        [sys.executable, "-m", "dramatiq", "wrong", "-p", "1"],
        [sys.executable, "-m", "dramatiq", "wrong", "-p", "1", "--use-spawn"],
        [sys.executable, "-c", FORK],
        [sys.executable, "-m", "cli", "worker", "wrong"],
        [BIN / "periodiq", "wrong"],
        [BIN / "periodiq", "shop", "wrong"],
    ],
    ids=[
        "dramatiq",
        "callable",
        "second-module",
        "python-m",
        "spawned",
        "fork-function",
        "switchyard",
        "periodiq",
        "periodiq-second",
    ],
)
def test_a_command_ends_with_one_line(tmp_path, command):
    done = run(tmp_path, *command)

    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("switchyard: ")]
    assert line.startswith("switchyard: LEASE: ")


@pytest.mark.parametrize(
    "script",
    [
        "{try_}",
        # As the processes of a web server are made.
        "import multiprocessing\n{def_}\nmultiprocessing.get_context('fork').Process(target=attempt).start()",
        "import threading\n{def_}\nthreading.Thread(target=attempt).start()",
    ],
    ids=["program", "process", "thread"],
)
def test_an_app_that_imports_periodiq_gets_the_exception(tmp_path, script):
    attempt = (
        "try:\n    shop.configure()\nexcept switchyard.SettingsError as error:\n    print('caught', error.variable, flush=True)\n"
    )
    function = "def attempt():\n" + "".join(f"    {line}\n" for line in attempt.splitlines())

    done = run(tmp_path, sys.executable, "-c", "import shop, switchyard\n" + script.format(try_=attempt, def_=function))

    assert (done.stdout, done.stderr, done.returncode) == ("caught LEASE\n", "", 0)
