"""Processes of a stack: they stop in order, or are killed; a killed stack's are ended by its guard, or by the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cli.processes import Child, StackError, command_line, end_leftover, shown
from tests.cli.conftest import Launch
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until

Start = Callable[[str], Child]

#: Says so when it is ready, then ignores what would stop it, its child too.
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
print("ready")
while True: time.sleep(60)
"""
OBEDIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("goodbye"))
print("ready")
while True: time.sleep(60)
"""


def ready(child: Child) -> Child:
    wait_until(lambda: "ready" in child.log.read_text(), 30, child.log.read_text)
    return child


def group_is_gone(group: int) -> bool:
    """Whether no process of the group is left; the dead whom nobody has reaped do not count."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return False
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return True


def test_a_process_that_obeys_its_signal_stops_by_itself(python: Start):
    child = ready(python(OBEDIENT))

    assert child.stop(20, lambda: False)
    assert "goodbye" in child.log.read_text()


def test_a_process_that_does_not_is_killed_with_its_whole_group(python: Start):
    child = ready(python(STUBBORN))

    assert not child.stop(0.1, lambda: False)
    assert child.returncode == -signal.SIGKILL
    wait_until(lambda: group_is_gone(child.pid), 30)


def test_hurry_ends_the_grace(python: Start):
    child = ready(python(STUBBORN))

    assert not child.stop(3_600, lambda: True)


def test_an_end_is_reported_with_the_last_lines_of_the_log(python: Start):
    child = python("import sys; print('first'); sys.exit('no licence')")
    wait_until(lambda: child.returncode is not None, 30)

    with pytest.raises(
        StackError, match=r"(?s)program ended with exit code 1; the end of .*program\.log:\n    first\n    no licence"
    ):
        child.require()


def test_the_log_of_the_run_before_is_kept(launch: Launch):
    for word in ("one", "two"):
        child = launch("program", [sys.executable, "-I", "-c", f"print('{word}')"])
        wait_until(lambda child=child: child.returncode == 0, 30)

    assert child.log.read_text() == "two\n"
    assert child.log.with_name("program.log.1").read_text() == "one\n"


def test_a_program_that_is_not_there_is_named(launch: Launch):
    with pytest.raises(StackError, match="cannot start /nowhere/server: No such file"):
        launch("server", ["/nowhere/server"])


def test_the_guard_ends_what_a_killed_stack_leaves_and_holds_its_lock_until_then(tmp_path: Path):
    (tmp_path / "run").mkdir()
    stack = f"""
import fcntl, sys, time
from pathlib import Path
from cli.processes import Child, Guard
folder = Path({str(tmp_path)!r})
lock = (folder / "stack.lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
guard = Guard(lock.fileno())
for name, program in (("obedient", {OBEDIENT!r}), ("stubborn", {STUBBORN!r})):
    argv = [sys.executable, "-I", "-u", "-c", program]
    child = Child(name, argv, log=folder / name, run=folder / "run", env={{}}, guard=guard)
    print(child.pid, flush=True)
while True: time.sleep(60)
"""
    killed = subprocess.Popen(
        [sys.executable, "-c", stack],
        env=base_environment() | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert killed.stdout
    groups = [int(killed.stdout.readline()) for _ in range(2)]
    wait_until(lambda: all("ready" in (tmp_path / name).read_text() for name in ("obedient", "stubborn")), 30)

    killed.kill()
    killed.wait()
    killed.stdout.close()
    free = subprocess.run(["flock", "--timeout", "30", str(tmp_path / "stack.lock"), "true"], timeout=40, check=False)

    assert free.returncode == 0
    assert all(group_is_gone(group) for group in groups)
    assert "goodbye" in (tmp_path / "obedient").read_text()


def test_a_leftover_is_ended_by_the_next_start(python: Start, tmp_path: Path):
    child = ready(python(OBEDIENT))

    end_leftover("program", tmp_path / "run", "goodbye")

    assert child.returncode is not None
    assert not (tmp_path / "run" / "program.pid").exists()


def test_a_stranger_with_a_leftovers_process_id_is_left_alone(python: Start, tmp_path: Path):
    child = ready(python(OBEDIENT))

    end_leftover("program", tmp_path / "run", "the server that it was")

    assert child.returncode is None


def test_no_leftovers_or_an_unreadable_record_are_no_matter(tmp_path: Path):
    end_leftover("nothing", tmp_path, "x")
    (tmp_path / "broken.pid").write_text("")
    end_leftover("broken", tmp_path, "x")


def test_a_command_line_can_be_read():
    assert Path(sys.executable).name in command_line(os.getpid())
    assert command_line(2**22 + 1) == ""


def test_paths_are_shown_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    assert shown(tmp_path / "var" / "log") == "var/log"
    assert shown(Path("/etc/hosts")) == "/etc/hosts"
