"""``switchyard up``: runs jobs that other processes send with what it printed, stops in order, and says so when a part of it dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.stacks import PYTHON, Switchyard, groups, leftovers, members, switchyard
from tests.rig.processes import Child
from tests.rig.waiting import wait_until

__all__ = ["switchyard"]

pytestmark = pytest.mark.timeout(300)

#: What somebody might write to try it.
SCRIPT = """
from actors import flaky
print(flaky.send(failures=1).get_result(block=True, timeout=60_000))
"""


def up(switchyard: Switchyard, *arguments: str, **variables: str) -> tuple[Child, dict[str, str]]:
    """Start it; returns the process, and the variables that it printed."""
    child = switchyard("up", *arguments, **variables)
    wait_until(lambda: "Ctrl-C" in child.output() or not child.running, 90, child.output)
    assert child.running, child.output()
    lines = re.findall(r"^export \w+=.*$", child.output(), re.MULTILINE)
    names = [re.findall(r"\w+", line)[1] for line in lines]
    # Pasted into a shell that has nothing but the system's commands.
    script = "\n".join([*lines, *(f"printf '%s\\0' \"${name}\"" for name in names)])
    shell = subprocess.run(["sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    return child, dict(zip(names, shell.stdout.split("\0"), strict=False))


def run_script(program: str, variables: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=PYTHON | variables, cwd=folder, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_a_script_with_the_printed_variables_gets_its_job_run(
    switchyard: Switchyard, broker: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    stack, variables = up(switchyard, BROKER=broker)
    started = groups(tmp_path)

    answer = run_script(SCRIPT, variables, tmp_path_factory.mktemp("elsewhere"))
    found = shutil.which("switchyard", path=variables["PATH"])
    stack.terminate()

    assert found == str(Path(sys.executable).parent / "switchyard")

    assert answer == "{'attempts': 2}\n"
    assert stack.wait(60) == 0
    assert stack.output().splitlines()[-1] == "everything has ended"
    assert all(members(group) == [] for group in started)
    assert leftovers(tmp_path) == []


def test_jobs_wait_in_the_ledger_while_it_is_down(switchyard: Switchyard, database_url: str, tmp_path: Path):
    sent = run_script(
        "from actors import flaky; print(flaky.send(failures=0).message_id)", {"DATABASE_URL": database_url}, tmp_path
    )

    stack, _ = up(switchyard, DATABASE_URL=database_url)
    state = f"import switchyard; print(switchyard.wait({sent.strip()!r}, timeout=60).state)"

    assert run_script(state, {"DATABASE_URL": database_url}, tmp_path) == "completed\n"
    # A URL that the caller has set already is not shown: it may hold a password.
    assert "DATABASE_URL=" not in stack.output()


def test_actors_of_ones_own_are_run(switchyard: Switchyard, database_url: str, tmp_path: Path):
    (tmp_path / "shop.py").write_text(
        "import dramatiq, switchyard\nswitchyard.configure()\n\n@dramatiq.actor\ndef add(a: int, b: int) -> int:\n    return a + b\n"
    )

    up(switchyard, "--actors", "shop", DATABASE_URL=database_url)
    program = "from shop import add; print(add.send(1, 2).get_result(block=True, timeout=60_000))"

    assert (
        run_script(program, {"DATABASE_URL": database_url, "PYTHONPATH": f"{tmp_path}:{PYTHON['PYTHONPATH']}"}, tmp_path) == "3\n"
    )


def test_the_end_of_the_workers_ends_it_with_a_word(switchyard: Switchyard, database_url: str, tmp_path: Path):
    stack, _ = up(switchyard, DATABASE_URL=database_url)

    os.killpg(int((tmp_path / "var" / "run" / "worker.pid").read_text()), signal.SIGKILL)

    assert stack.wait(60) == 1
    assert "switchyard: worker ended with SIGKILL; the end of var/log/worker.log:" in stack.output()
    assert leftovers(tmp_path) == []


def test_a_second_signal_does_not_wait_for_running_jobs(switchyard: Switchyard, database_url: str, tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        "import dramatiq, switchyard, time\nswitchyard.configure()\n\n@dramatiq.actor\ndef sleep() -> None:\n    time.sleep(600)\n"
    )
    stack, _ = up(switchyard, "--actors", "slow", DATABASE_URL=database_url, SHUTDOWN_GRACE="600")
    variables = {"DATABASE_URL": database_url, "PYTHONPATH": f"{tmp_path}:{PYTHON['PYTHONPATH']}"}
    run_script(
        "import time, switchyard; from slow import sleep; id = sleep.send().message_id\n"
        "while switchyard.get_job(id).state != 'running': time.sleep(0.05)",
        variables,
        tmp_path,
    )

    stack.send(signal.SIGINT)
    wait_until(lambda: "running jobs may finish" in stack.output(), 60, stack.output)
    stack.send(signal.SIGINT)

    assert stack.wait(60) == 0
    assert stack.output().splitlines()[-1] == "killed: worker"
    assert leftovers(tmp_path) == []
