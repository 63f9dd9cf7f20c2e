"""The frame of the demo: start the stack, have the jobs sent and followed, sum up, stop.

It fails, with what is missing, when a job is not in its state by the deadline, when a file or an answer is not what it should
be, and when a process of the stack ends early.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Final

from rich.console import Console

import switchyard
from cli.demo.board import Board
from cli.demo.receiver import Receiver
from cli.processes import StackError, shown
from cli.signals import Signals
from cli.stack import Stack

#: Seconds for all jobs together; on two slow cores they take some ten.
DEADLINE: Final = 45.0
#: How often the ledger is asked, in seconds.
_REFRESH: Final = 0.15


def run_demo(console: Console, *, deadline: float = DEADLINE) -> list[str]:
    """Run the demo. Returns what is wrong: nothing, if all is well.

    Parameters:
        deadline: seconds for all jobs together.

    Raises:
        SettingsError, StackError, LedgerUnavailable: the stack cannot be started, or a part of it ended.
        Stopped: by a signal; everything has been stopped.
    """
    if any(find_spec(package) is None for package in ("PIL", "reportlab", "xlsxwriter")):
        raise StackError("the demo's jobs need packages that are not installed: pip install 'switchyard[all]'")
    secret = secrets.token_hex(16)
    with Signals() as signals, Receiver(secret) as receiver:
        # E-mails go to files whatever SMTP_URL says: a demo must not write to anybody.
        fixed: dict[str, Any] = {"smtp_url": None, "webhook_secret": secret, "outbound_allow": receiver.address}
        with Stack(signals, **fixed) as stack:
            begin = time.monotonic()
            console.print(f"Starting {stack.title} …", highlight=False)
            stack.start()
            console.print(f"Ready after {time.monotonic() - begin:.1f} s, sending jobs\n", highlight=False)
            _log_to_file(stack)
            switchyard.configure(**stack.overrides)
            try:
                problems = _follow(console, stack, receiver, deadline)
            finally:
                switchyard.configure().close()
            with console.status("Stopping") if console.is_terminal else nullcontext():
                problems += [f"{name} did not stop by itself and was killed" for name in stack.stop()]
    if not problems:
        console.print(f"[green]Everything is as it should be[/], after {time.monotonic() - begin:.0f} s", highlight=False)
    return problems


def _follow(console: Console, stack: Stack, receiver: Receiver, deadline: float) -> list[str]:
    # Here and not above: actors join the broker that is set when they are imported, which is only now.
    from cli.demo.course import Course
    from cli.demo.summary import print_summary

    course = Course(receiver)
    begin = time.monotonic()
    with Board(console) as board:
        course.begin()
        while True:
            over = course.advance()
            elapsed = time.monotonic() - begin
            board.show(course.rows(), elapsed)
            if over or elapsed > deadline:
                break
            stack.require()
            time.sleep(_REFRESH)
    problems, files = course.check()
    if not over:
        problems.insert(0, f"not over after {deadline:.0f} s; what the workers say is in {shown(stack.log('worker'))}")
    print_summary(console, stack, course, files)
    return problems


def _log_to_file(stack: Stack) -> None:
    """What this process logs goes beside the workers' logs: the screen belongs to the table."""
    logging.basicConfig(filename=stack.log("demo"), filemode="w", level=stack.settings.log_level, force=True)
