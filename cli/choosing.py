"""Options by which commands choose jobs, wrong values of them as one line that names the option, and the question before many are
touched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import click

from cli.knowing import alike
from cli.moments import Moment
from ledger.states import STATE_WORDS, SYNONYMS, State, states_named
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


class Once(click.Option):
    """An option that is refused when it is given twice. click takes the last, and a filter that is dropped without a word chooses other
    jobs than those that were meant."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Have all values kept."""
        parser.add_option(obj=self, opts=self.opts, dest=self.name, action="append", nargs=self.nargs)

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> Any:
        """The one value. Raises: click.UsageError: there are two."""
        given = opts.get(self.name or "")
        if isinstance(given, list):
            if len(given) > 1:
                raise click.UsageError(f"{' or '.join(self.opts)} was given twice; give it once", ctx)
            opts = {**opts, self.name or "": given[0]}
        return super().consume_value(ctx, opts)


class StateWord(click.ParamType[str]):
    """A state, or another queue's word for one or two of them."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        word = str(value).lower()
        try:
            states_named(word)
        except ValueError as error:
            self.fail(f"{error}{alike(word, (*State, *SYNONYMS))}", param, ctx)
        return word


def chosen_by(command: Callable[P, None]) -> Callable[P, None]:
    """Give a command the options that choose jobs: ``states, actor, queue, tag, batch, created_after, created_before``."""
    for option in reversed(
        (
            click.option(
                "--state", "states", type=StateWord(), multiple=True, metavar="STATE", help=f"{STATE_WORDS}. May be repeated."
            ),
            click.option("--actor", cls=Once, metavar="NAME", help="Jobs of this actor."),
            click.option("--queue", cls=Once, callback=queue_name, metavar="NAME", help="Jobs of this queue."),
            click.option("--tag", cls=Once, metavar="TAG", help="Jobs with this tag."),
            click.option("--batch", cls=Once, metavar="ID", help="Jobs of this group."),
            click.option(
                "--created-after", cls=Once, type=Moment(), metavar="WHEN", help="Not older: an age such as 2h, or a time (UTC)."
            ),
            click.option("--created-before", cls=Once, type=Moment(), metavar="WHEN", help="Older than this."),
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


#: The option that answers the question of ``confirm``.
answered = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask before many jobs are touched, on standard error, which is no part of what a script reads.

    Raises:
        click.UsageError: nobody answered, and nobody said --yes.
        KeyboardInterrupt: Ctrl-C.
        click.exceptions.Exit: the answer is no; the exit code is 1.
    """
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            # As anywhere else, where it has an exit code of its own.
            raise KeyboardInterrupt from None
        click.echo(err=True)
        raise click.UsageError("nobody answered, so nothing was done; say --yes to do it without being asked") from None
    if not agreed:
        click.echo("nothing was done", err=True)
        raise click.exceptions.Exit(1)
