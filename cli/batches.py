"""``switchyard batches``: how far groups are, what they sent, and what holds them up."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import click

import switchyard
from cli.ids import batch_id, no_batch
from cli.moments import off, span
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import listing, print_details, print_listing
from errors import BatchNotFound
from ledger.batch import Batch
from ledger.overview import clock
from ledger.states import State

#: Dead jobs that ``show`` names.
_NAMED: Final = 10


@click.group(short_help="Look at groups: how far they are, what holds them up.")
def batches() -> None:
    """Look at groups of jobs: how far they are, which of their callbacks were sent, what holds them up. docs/howto/workflows.md."""


@batches.command("list", short_help="The newest groups, with their counts.")
@click.option("--state", type=click.Choice(["waiting", "open", "failed", "succeeded"]), help="Only these. [default: all]")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many.")
@as_json
@reported
def list_(state: str | None, limit: int, as_json: bool) -> None:
    """Show the newest groups. failed: every job has ended, and not all are completed; replaying the dead ones may yet make it succeed."""
    found = switchyard.list_batches(state=state, limit=limit)
    if as_json:
        say_json({"batches": [_plain(batch) for batch in found]})
        return
    headings = ("batch", "name", "state", "jobs", "done", "dead", "cancelled", "age")
    numbers = ("jobs", "done", "dead", "cancelled")
    table = listing(*headings, whole=("batch", "state", "age"), below=("name", "cancelled", "dead", "done"), numbers=numbers)
    now = switchyard.database().run(clock) if found else None
    for batch in found:
        table.add_row(
            batch.id,
            batch.name,
            batch.state,
            f"{batch.total:,}",
            f"{batch.percent:.0f} %",
            f"{batch.counts[State.DEAD]:,}",
            f"{batch.counts[State.CANCELLED]:,}",
            None if now is None else span(now - batch.created_at),
        )
    print_listing(table, "no group was run" if state is None else f"no group is {state}")


@batches.command(short_help="One group: its jobs by state, its callbacks, its dead.")
@click.argument("id_", metavar="ID")
@as_json
@reported
def show(id_: str, as_json: bool) -> None:
    """Show one group and those within it: jobs by state, callbacks, and the jobs that are dead.

    ID may be the first eight characters or more. The exit code is 1 if there is no group with this ID.
    """
    id_ = batch_id(id_)
    try:
        batch = switchyard.batch(id_)
    except BatchNotFound:
        raise no_batch(id_) from None
    if as_json:
        say_json(_plain(batch))
        return
    _show(batch, 0, switchyard.database().run(clock))
    dead = switchyard.list_jobs(batch=id_, state=State.DEAD, limit=_NAMED + 1).jobs
    if dead:
        click.echo()
        table = listing("dead", "actor", "error", whole=("dead",), below=("error", "actor"))
        for job in dead[:_NAMED]:
            table.add_row(job.id, job.actor, ": ".join(part for part in (job.error_type, job.error) if part))
        print_listing(table)
    if len(dead) > _NAMED:
        click.echo(f"there are more: switchyard jobs --state dead --batch {id_}")


def _show(batch: Batch, indent: int, now: datetime) -> None:
    counts = ", ".join(f"{count:,} {state}" for state, count in batch.counts.items() if count)
    rows: list[tuple[str, object]] = [
        ("group", f"{batch.id} {batch.name or ''}".rstrip()),
        ("state", f"{batch.state}, {batch.percent:.0f} % of {batch.total:,} jobs"),
        ("jobs", counts or "none"),
        ("sent", off(batch.created_at, now)),
        ("first dead", off(batch.died_at, now)),
        ("ended", off(batch.completed_at, now)),
        ("waits for", batch.waits_for),
    ]
    for callback in batch.callbacks:
        sent = f"sent as {callback.id}" if callback.sent else "not sent yet"
        rows.append((callback.when, f"{callback.actor}, {sent}"))
    print_details(rows, indent)
    for inner in batch.batches:
        click.echo()
        _show(inner, indent + 4, now)


def _plain(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "name": batch.name,
        "state": batch.state,
        "total": batch.total,
        "percent": round(batch.percent, 2),
        "counts": {state.value: count for state, count in batch.counts.items()},
        "created_at": batch.created_at,
        "died_at": batch.died_at,
        "completed_at": batch.completed_at,
        "succeeded_at": batch.succeeded_at,
        "waits_for": batch.waits_for,
        "callbacks": [{"when": c.when, "id": c.id, "actor": c.actor, "sent": c.sent} for c in batch.callbacks],
        "batches": [_plain(inner) for inner in batch.batches],
    }
