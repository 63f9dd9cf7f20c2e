"""Options by which commands choose jobs, and wrong values of them as one line that names the option."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import click

from settings import check_queue

P = ParamSpec("P")


def queue_name(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Check the name of a queue; one that no queue can have is refused, for it would be looked for in vain."""
    if value is not None:
        try:
            check_queue(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


def chosen_by(command: Callable[P, None]) -> Callable[P, None]:
    """Give a command the options that choose jobs: ``state, actor, queue, tag``."""
    for option in reversed(
        (
            click.option(
                "--state", "states", multiple=True, metavar="STATE", help="Such as pending or running; may be repeated."
            ),
            click.option("--actor", metavar="NAME", help="Jobs of this actor."),
            click.option("--queue", callback=queue_name, metavar="NAME", help="Jobs of this queue."),
            click.option("--tag", metavar="TAG", help="Jobs with this tag."),
        )
    ):
        command = option(command)
    return command


def values_checked(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a ``ValueError`` of our functions into click's line about usage."""

    @functools.wraps(command)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    return checked
