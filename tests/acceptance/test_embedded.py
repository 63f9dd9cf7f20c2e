"""A worker inside somebody else's process never ends that process; the ones that a command makes for it, it does (``test_watchdog``)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from settings import variables
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

#: What a process says of itself, and what the processes say that it forks before and after it was asked.
PROGRAM = """
import multiprocessing
from runtime import process

def say(who):
    process.worker_boots()
    print(who, process.is_ours(), process.is_supervised(), flush=True)

def fork(who):
    child = multiprocessing.get_context("fork").Process(target=say, args=(who,))
    child.start()
    child.join()

fork("early")
{before}
say("itself")
fork("late")
{after}
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_server_whose_process_holds_a_worker_that_is_out_of_order_goes_on(system, tmp_path, method):
    log = tmp_path / "server.log"
    environment = base_environment() | variables(system.settings) | {"PYTHONPATH": str(ROOT), "WATCHDOG": "4"}
    argv = [sys.executable, "-m", "tests.acceptance.embedding_server", method]
    server = Child(argv, log=log, env=environment, cwd=tmp_path)
    try:
        wait_until(lambda: "serving" in server.output(), 40, server.output)
        served_by = system.ended(system.jobs.process_id.send()).result

        system.jobs.sabotages.send("keeper", "dies")

        wait_until(lambda: "a worker in this process is out of order" in server.output(), 40, server.output)
        assert "the keeper thread has died" in server.output()
        assert system.ended(system.jobs.process_id.send(), 40).result == served_by
        assert "the process ended" not in server.output()
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("command", "before", "ours"),
    [
        (["-c"], "", ["False False", "False False", "False False"]),
        (["-c"], "process.supervised_by(print)", ["False False", "True True", "False False"]),
        (["-m", "dramatiq", "-p", "1"], "", ["False False", "True False", "False False"]),
        (["-m", "dramatiq", "-p", "1", "--use-spawn"], "", ["False False", "True False", "False False"]),
    ],
    ids=["program", "supervised", "dramatiq", "spawned"],
)
def test_a_process_is_ours_if_a_command_made_it_for_a_worker_and_what_it_forks_is_not(tmp_path, command, before, ours):
    after = "" if command == ["-c"] else "raise SystemExit(3)"
    source = PROGRAM.format(before=before, after=after)
    Path(tmp_path, "application.py").write_text(f"import switchyard\nswitchyard.configure()\n{source}")
    environment = base_environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "BROKER": "stub"}
    last = source if command == ["-c"] else "application"

    done = subprocess.run(
        [sys.executable, *command, last], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    said = dict(re.findall(r"^(early|itself|late) (\w+ \w+)$", done.stdout + done.stderr, re.MULTILINE))
    assert [said.get(who) for who in ("early", "itself", "late")] == ours, done.stderr
