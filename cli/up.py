"""``switchyard up``: the stack, until Ctrl-C or SIGTERM.

Nothing is restarted behind anybody's back: when a process of the stack ends, all of it stops, and the exit code says so.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from cli.signals import Signals, Stopped
from cli.stack import Stack
from settings import variables

#: How often the processes are looked at, in seconds.
_INTERVAL: Final = 0.2


def run_up(actors: Sequence[str]) -> None:
    """Start the stack, say where everything is, and stay until a signal comes.

    Raises:
        SettingsError, StackError, LedgerUnavailable: the stack cannot be started, or a part of it ended.
    """
    with Signals() as signals, Stack(signals, actors) as stack:
        try:
            click.echo(f"Starting {stack.title} …")
            stack.start()
            click.echo(_where(stack))
            while True:
                stack.require()
                time.sleep(_INTERVAL)
        except Stopped as stopped:
            click.echo(f"{stopped}: running jobs may finish (once more: at once)")
            killed = stack.stop()
            click.echo(f"killed: {', '.join(killed)}" if killed else "everything has ended")


def _where(stack: Stack) -> str:
    """What runs where, and the variables that lead another shell there."""
    values = variables(stack.settings)
    lines = [f"  {name:10}{place}" for name, place in stack.places]
    lines += ["", "In another shell, for `dramatiq`, `python` or `switchyard`:", ""]
    here = Path(sys.executable).parent
    if shutil.which("switchyard") != str(here / "switchyard"):
        lines.append(f'export PATH={shlex.quote(str(here))}:"$PATH"')
    lines += [f"export {name}={shlex.quote(values[name])}" for name in stack.exports()]
    lines += [
        "",
        "Ctrl-C stops it: running jobs get " + f"{stack.settings.shutdown_grace:g} s, whatever waits stays in the ledger.",
    ]
    return "\n".join(["", *lines])
