"""``switchyard edit``: change a job that waits."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import click

import switchyard
from cli.choosing import values_checked
from cli.ids import job_id, no_job
from cli.loading import load_actors
from cli.moments import Span, Time, utc
from cli.reporting import reported
from errors import JobNotFound
from ledger.overview import clock


class JsonValue(click.ParamType["list[Any] | dict[str, Any]"]):
    """A JSON text of a certain kind."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.name = "array" if kind is list else "object"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Read it."""
        if isinstance(value, self._kind):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"is no JSON: {error}", parameter, context)
        if not isinstance(found, self._kind):
            self.fail(f"is no JSON {self.name}", parameter, context)
        return found


@click.command("edit", short_help="Change a job that waits.")
@click.argument("id_", metavar="ID")
@click.option("--args", type=JsonValue(list), metavar="JSON", help="All positional arguments, as a JSON array.")
@click.option("--kwargs", type=JsonValue(dict), metavar="JSON", help="All keyword arguments, as a JSON object.")
@click.option("--priority", type=int, metavar="N", help="Lower runs first.")
@click.option("--delay", type=Span(), metavar="DURATION", help="Run it so much later, such as 90s or 2h; 0 is now.")
@click.option(
    "--run-at", type=Time(), metavar="TIME", help="Run it then: an ISO time, in UTC or with a zone. One that has passed is now."
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="All its tags; may be repeated.")
@click.option("--no-tags", is_flag=True, help="Take its tags away.")
@click.option("--actors", "modules", multiple=True, metavar="MODULE", help="A module with actors; may be repeated.")
@reported
@values_checked
def edit_command(
    id_: str, run_at: datetime | None, tags: tuple[str, ...], no_tags: bool, modules: tuple[str, ...], **change: Any
) -> None:
    """Change what the job ID will run with, and when. It has to be scheduled, pending or retrying; the exit code is 1 if it is not.

    ID may be the first eight characters or more, if no other job's begin so. What is not named stays as it is. With --actors, arguments are
    checked against the actor, and what the job counts as (limits, unique_key) follows them. Without, arguments that do not fit make the
    job fail when it runs, and those of a job that has such keys are not changed.
    """
    if tags and no_tags:
        raise click.UsageError("give --tag or --no-tags, not both")
    if tags or no_tags:
        change["tags"] = list(tags)
    if run_at is None and all(value is None for value in change.values()):
        raise click.UsageError(
            "there is nothing to change: give --args, --kwargs, --priority, --delay, --run-at, --tag or --no-tags"
        )
    if run_at is not None and change["delay"] is not None:
        raise click.UsageError("give --run-at or --delay, not both")
    try:
        load_actors(modules)
    except ModuleNotFoundError as error:
        raise click.UsageError(str(error)) from None
    id_ = job_id(id_)
    try:
        done = switchyard.edit(id_, run_at=run_at, **change)
    except JobNotFound:
        raise no_job(id_) from None
    job = switchyard.get_job(id_)
    if job is None:
        click.echo(f"{id_} is gone", err=True)
        sys.exit(1)
    state = f"{job.state} ({job.wait_reason})" if job.wait_reason else job.state.value
    if not done:
        click.echo(f"{id_} cannot be changed so: it is {state}", err=True)
        sys.exit(1)
    when = "" if job.wait_reason or job.run_at is None else f", to run {utc(job.run_at)}"
    if run_at is not None and run_at <= switchyard.database().run(clock):
        when += f" ({utc(run_at)} has passed: it is due now)"
    click.echo(f"{id_} changed: it is {state}, priority {job.priority}{when}")
