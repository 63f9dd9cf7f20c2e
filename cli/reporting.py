"""What goes wrong in a way we know is one line on standard error and exit code 1, never a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Final, ParamSpec

import click

from cli.signals import Stopped
from errors import LedgerNotMigrated, LedgerUnavailable, SwitchyardError

P = ParamSpec("P")

#: What shells report for a process that a signal ended: this plus its number.
_SIGNALLED: Final = 128


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our errors into one line and an exit code."""

    @functools.wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LedgerUnavailable as error:
            # libpq goes on with advice about host and port.
            where = "" if isinstance(error, LedgerNotMigrated) else "; DATABASE_URL says where it is"
            click.echo(f"switchyard: {str(error).splitlines()[0]}{where}", err=True)
            sys.exit(1)
        except SwitchyardError as error:
            click.echo(f"switchyard: {error}", err=True)
            sys.exit(1)
        except Stopped as stopped:
            click.echo(f"switchyard: {stopped}", err=True)
            sys.exit(_SIGNALLED + stopped.number)

    return reported
