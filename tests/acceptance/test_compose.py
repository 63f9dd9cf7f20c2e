"""What docker-compose.yml has containers run, run here: the health check of the workers tells living from dead."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

from settings import variables
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until


def healthy(settings):
    """What the health check says, run where an image has it: in the folder of the code."""
    (check,) = re.findall(r"- python\n +- -c\n +- \|\n((?: {10}.*\n)+)", (ROOT / "docker-compose.yml").read_text())
    command = [sys.executable, "-c", textwrap.dedent(check)]
    done = subprocess.run(
        command, cwd=ROOT, env=base_environment() | variables(settings), capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.returncode == 0


def test_the_health_check_of_the_workers_needs_a_heartbeat_of_this_host(settings, worker_process):
    assert not healthy(settings)

    worker = worker_process("tests.acceptance.worker", supervised=True)
    wait_until(lambda: healthy(settings), 60, worker.output)
    # Two leases of two seconds.
    worker.kill()
    wait_until(lambda: not healthy(settings), 30, "it is missed")
