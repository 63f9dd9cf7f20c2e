"""``switchyard cancel``: stop jobs by their ids, or all that meet a filter."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click

import switchyard
from cli.choosing import chosen_by, values_checked
from cli.reporting import reported
from errors import JobNotFound
from ledger.states import State


@click.command("cancel", short_help="Stop jobs, waiting or running.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@chosen_by
@click.option("--created-after", type=click.DateTime(), metavar="TIME", help="Not older than this (UTC).")
@click.option("--created-before", type=click.DateTime(), metavar="TIME", help="Older than this (UTC).")
@click.option("--batch", metavar="ID", help="Jobs of this group.")
@click.option("--all", "everything", is_flag=True, help="Every job there is.")
@click.option("--dry-run", is_flag=True, help="Say how many jobs it would be, and stop none.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@reported
@values_checked
def cancel_command(
    ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, states: tuple[str, ...], **filters: Any
) -> None:
    """Cancel the jobs with these IDs, or all that meet every option.

    What waits ends at once. What runs is asked to stop, which takes a second, unless it does not let itself be interrupted. The exit
    code is 1 if one of the IDs could not be cancelled.
    """
    filters = {name: value for name, value in filters.items() if value is not None}
    if ids:
        if filters or states or everything:
            raise click.UsageError("give IDs or options that choose jobs, not both")
        _cancel_each(ids, dry_run=dry_run)
        return
    if not (filters or states or everything):
        raise click.UsageError("say which jobs: their IDs, or --actor, --queue, --tag, --state ..., or --all")
    for name in ("created_after", "created_before"):
        if name in filters:
            moment: datetime = filters[name]
            filters[name] = moment.replace(tzinfo=UTC)
    if states:
        filters["state"] = list(states)
    count = switchyard.cancel_many(**filters, all=everything, dry_run=True)
    click.echo(f"{count.total:,} jobs: {count.cancelled:,} wait, {count.asked:,} run")
    if dry_run or not count.total:
        return
    if not yes and not (sys.stdin.isatty() and click.confirm("Cancel them?")):
        raise click.UsageError("nothing was cancelled; say --yes to do it without being asked")
    count = switchyard.cancel_many(**filters, all=everything)
    click.echo(f"cancelled {count.cancelled:,}, asked {count.asked:,} that run to stop")


def _cancel_each(ids: tuple[str, ...], *, dry_run: bool) -> None:
    missed = False
    for id_ in ids:
        try:
            done = not dry_run and switchyard.cancel(id_)
        except JobNotFound as error:
            click.echo(f"switchyard: {error}", err=True)
            missed = True
            continue
        job = switchyard.get_job(id_)
        if job is None:
            click.echo(f"switchyard: {JobNotFound(id_)}", err=True)
        elif dry_run:
            click.echo(f"{id_} is {job.state}")
        elif done:
            click.echo(f"{id_} {'was asked to stop' if job.state is State.RUNNING else f'is {job.state}'}")
        else:
            click.echo(f"{id_} has ended before: it is {job.state}", err=True)
        missed = missed or job is None or not (done or dry_run)
    if missed:
        sys.exit(1)
