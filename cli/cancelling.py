"""``switchyard cancel``: stop jobs by their ids, or all that meet a filter."""

from __future__ import annotations

from typing import Any

import click

import switchyard
from cli.choosing import answered, chosen_by, confirm, values_checked
from cli.ids import NoSuchId, batch_id, job_id, no_job, require_batch
from cli.knowing import warn_of_unknown
from cli.plain import as_json, say_json
from cli.reporting import reported
from errors import JobNotFound
from ledger.states import ACTIVE, State


@click.command("cancel", short_help="Stop jobs, waiting or running.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@chosen_by
@click.option("--all", "everything", is_flag=True, help="Every job there is.")
@click.option("--dry-run", is_flag=True, help="Say how many jobs it would be, and stop none.")
@answered
@as_json
@reported
@values_checked
def cancel_command(
    ids: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, as_json: bool, states: tuple[str, ...], **filters: Any
) -> None:
    """Cancel the jobs with these IDs, or all that meet every option.

    What waits ends at once. What runs is asked to stop, which takes a second, unless it does not let itself be interrupted. Options are
    counted first, and nothing is done before a yes. The exit code is 1 if one of the IDs cannot be cancelled, or the answer is no.
    """
    filters = {name: value for name, value in filters.items() if value is not None}
    if ids:
        if filters or states or everything:
            raise click.UsageError("give IDs or options that choose jobs, not both")
        _cancel_each(ids, dry_run=dry_run, as_json=as_json)
        return
    if not (filters or states or everything):
        raise click.UsageError("say which jobs: their IDs, or --actor, --queue, --tag, --state ..., or --all")
    if "batch" in filters:
        filters["batch"] = batch_id(filters["batch"])
    if states:
        filters["state"] = list(states)
    count = switchyard.cancel_many(**filters, all=everything, dry_run=True)
    if not count.total:
        require_batch(filters.get("batch"))
    if not as_json and (count.total or dry_run):
        jobs = "1 job" if count.total == 1 else f"{count.total:,} jobs"
        click.echo(f"{'would cancel ' if dry_run else ''}{jobs}: {count.cancelled:,} wait, {count.asked:,} run")
    elif not as_json:
        click.echo("nothing to cancel: no job that waits or runs is like that")
    if not count.total:
        warn_of_unknown(**{name: filters.get(name) for name in ("queue", "actor", "tag")})
    if not dry_run and count.total:
        confirm("Cancel?" if not as_json else f"Cancel {count.total:,} jobs?", yes=yes)
        count = switchyard.cancel_many(**filters, all=everything)
        if not as_json:
            click.echo(f"cancelled {count.cancelled:,}, asked {count.asked:,} that run to stop")
    if as_json:
        say_json({"cancelled": count.cancelled, "asked": count.asked, "dry_run": dry_run})


def _cancel_each(ids: tuple[str, ...], *, dry_run: bool, as_json: bool) -> None:
    outcomes = [_cancelled(id_, dry_run=dry_run) for id_ in ids]
    if as_json:
        say_json({"jobs": outcomes, "dry_run": dry_run})
    else:
        for outcome in outcomes:
            prefix = "" if outcome["state"] is not None else "switchyard: "
            click.echo(f"{prefix}{_said(outcome, dry_run=dry_run)}", err=outcome["refused"] is not None)
    if any(outcome["refused"] is not None for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _cancelled(text: str, *, dry_run: bool) -> dict[str, Any]:
    """What became of one, as ``--json`` has it; state None: there is none, and refused says so."""
    try:
        id_ = job_id(text)
        done = not dry_run and switchyard.cancel(id_)
    except NoSuchId as error:
        return _outcome(text, refused=str(error))
    except JobNotFound:
        return _outcome(text, refused=str(no_job(text)))
    job = switchyard.get_job(id_)
    if job is None:
        return _outcome(id_, refused=str(JobNotFound(id_)))
    running = job.state is State.RUNNING
    refused = None if done or (dry_run and job.state in ACTIVE) else f"has ended before: it is {job.state}"
    return _outcome(id_, state=job.state, cancelled=done and not running, asked=done and running, refused=refused)


def _outcome(
    id_: str, *, state: State | None = None, cancelled: bool = False, asked: bool = False, refused: str | None = None
) -> dict[str, Any]:
    return {"id": id_, "state": state, "cancelled": cancelled, "asked": asked, "refused": refused}


def _said(outcome: dict[str, Any], *, dry_run: bool) -> str:
    if outcome["state"] is None:
        return str(outcome["refused"])
    if outcome["refused"]:
        return f"{outcome['id']} {outcome['refused']}"
    if dry_run:
        would = "be asked to stop" if outcome["state"] is State.RUNNING else "be cancelled"
        return f"{outcome['id']} would {would}: it is {outcome['state']}"
    became = "was asked to stop" if outcome["asked"] else f"is {outcome['state']}"
    return f"{outcome['id']} {became}"
