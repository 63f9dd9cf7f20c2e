"""What a worker process writes, in a process of its own: the set-up is the whole process's."""

from __future__ import annotations

import subprocess
import sys

from tests.rig.processes import ROOT, base_environment

LINES = """
import logging
from middleware.log_context import configure_logging

configure_logging("DEBUG", "console")
logging.getLogger("pika.adapters.base_connection").error("connection_lost: five lines and a stack trace")
logging.getLogger("somebody").error("a line of an app's own")
"""


def test_what_pika_says_of_a_lost_connection_is_left_to_our_own_line() -> None:
    environment = base_environment() | {"PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", LINES], env=environment, capture_output=True, text=True, timeout=120, check=True)

    written = done.stdout + done.stderr
    assert "a line of an app's own" in written
    assert "connection_lost" not in written
