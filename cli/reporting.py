"""What goes wrong in a way we know is one line on standard error and an exit code, never a traceback.

0        done
1        not done: the line says why; of `status`: something is wrong
2        the command was typed wrongly
3        `worker`: no process could start
128 + n  ended by the signal n: 130 after Ctrl-C, 143 after SIGTERM
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Final, ParamSpec

import click

from cli.refusals import database_refusal
from cli.signals import Stopped
from errors import LedgerNotMigrated, LedgerUnavailable, SettingsError, SwitchyardError
from settings import load

P = ParamSpec("P")

#: What shells report for a process that a signal ended: this plus its number.
SIGNALLED: Final = 128


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our errors into one line and an exit code."""

    @functools.wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SwitchyardError as error:
            click.echo(f"switchyard: {explained(error)}", err=True)
            sys.exit(1)
        except Stopped as stopped:
            click.echo(f"switchyard: {stopped}", err=True)
            sys.exit(SIGNALLED + stopped.number)
        except KeyboardInterrupt:
            # The terminal has shown ^C on the line.
            click.echo(err=True)
            sys.exit(SIGNALLED + signal.SIGINT)

    return reported


def explained(error: SwitchyardError) -> str:
    """An error in a line; of a database that cannot be reached, the variable and the way out."""
    if isinstance(error, LedgerUnavailable) and not isinstance(error, LedgerNotMigrated):
        try:
            return str(database_refusal(error, load()))
        except SettingsError:
            # Settings given in code may be right where those of the environment are not.
            return str(error).splitlines()[0]
    return str(error)
