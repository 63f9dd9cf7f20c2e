"""``switchyard pause``, ``resume`` and ``paused``: let queues and actors rest, fleet-wide and until they are resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import ParamSpec

import click

import switchyard
from cli.choosing import queue_name, values_checked
from cli.knowing import warn_of_unknown
from cli.moments import span, utc
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import listing, print_listing
from ledger.control import Pause
from ledger.overview import clock

P = ParamSpec("P")


def _what(command: Callable[P, None]) -> Callable[P, None]:
    for option in reversed(
        (
            click.option("--queue", callback=queue_name, metavar="NAME", help="This queue."),
            click.option("--actor", metavar="NAME", help="This actor; with --queue, in that queue alone."),
            click.option("--all", "everything", is_flag=True, help="Everything."),
        )
    ):
        command = option(command)
    return command


def _checked(queue: str | None, actor: str | None, *, everything: bool) -> str:
    """What a pause is of, in words. Raises: UsageError: nothing was said, or too much."""
    if (queue is None and actor is None) is not everything:
        raise click.UsageError("say what: --queue NAME, --actor NAME, both, or --all")
    return Pause(queue=queue, actor=actor, since=datetime.now(UTC), waiting=0).what


@click.command("pause", short_help="Let a queue, an actor or everything rest.")
@_what
@reported
@values_checked
def pause_command(queue: str | None, actor: str | None, everything: bool) -> None:
    """Start no more jobs of a queue, of an actor, or at all, on any machine, until `switchyard resume` says so.

    Running jobs go on to their end; new ones are accepted, and wait. A queue or an actor that nothing knows is paused too, with a warning.
    """
    what = _checked(queue, actor, everything=everything)
    new = switchyard.pause(queue=queue, actor=actor)
    click.echo(f"{what}: paused" if new else f"{what}: was paused already")
    warn_of_unknown(queue=queue, actor=actor)


@click.command("resume", short_help="End a pause.")
@_what
@reported
@values_checked
def resume_command(queue: str | None, actor: str | None, everything: bool) -> None:
    """End the pause that was begun with the same options; others stay, see `switchyard paused`.

    The exit code is 1 if there is no such pause.
    """
    what = _checked(queue, actor, everything=everything)
    if not switchyard.resume(queue=queue, actor=actor):
        others = ", ".join(pause.what for pause in switchyard.paused())
        click.echo(f"{what}: is not paused by itself; paused: {others or 'nothing'}", err=True)
        warn_of_unknown(queue=queue, actor=actor)
        raise SystemExit(1)
    click.echo(f"{what}: resumed")


@click.command("paused", short_help="Show what is paused.")
@as_json
@reported
def paused_command(as_json: bool) -> None:
    """Show what is paused, since when, and how many jobs wait for the end of it."""
    pauses = switchyard.paused()
    if as_json:
        say_json({"paused": [asdict(pause) | {"what": pause.what} for pause in pauses]})
        return
    table = listing("paused", "since", "for", "jobs waiting", whole=("since",), numbers=("jobs waiting",))
    now = switchyard.database().run(clock) if pauses else None
    for pause in pauses:
        table.add_row(pause.what, utc(pause.since), None if now is None else span(now - pause.since), f"{pause.waiting:,}")
    print_listing(table, "nothing is paused")
