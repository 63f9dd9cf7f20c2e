"""``switchyard batches``: how far groups are, what they sent, and what holds them up."""

from __future__ import annotations

import json
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import switchyard
from cli.reporting import reported
from cli.tables import listing, print_listing
from ledger.batch import Batch
from ledger.states import State

_FORM: Final = "%Y-%m-%d %H:%M:%S"
_DASH: Final = "-"
#: Dead jobs that ``show`` names.
_NAMED: Final = 10

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


@click.group(short_help="Look at groups: how far they are, what holds them up.")
def batches() -> None:
    """Look at groups of jobs: how far they are, which of their callbacks were sent, what holds them up. docs/howto/workflows.md."""


@batches.command("list", short_help="The newest groups, with their counts.")
@click.option("--state", type=click.Choice(["waiting", "open", "failed", "succeeded"]), help="Only these. [default: all]")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many.")
@_as_json
@reported
def list_(state: str | None, limit: int, as_json: bool) -> None:
    """Show the newest groups. failed: every job has ended, and not all are completed; replaying the dead ones may yet make it succeed."""
    found = switchyard.list_batches(state=state, limit=limit)
    if as_json:
        click.echo(json.dumps({"batches": [_plain(batch) for batch in found]}, default=str))
        return
    table = listing("batch", "name", "state", "jobs", "done", "dead", "cancelled", "created", whole=("batch",))
    for batch in found:
        table.add_row(
            batch.id,
            escape(batch.name or _DASH),
            batch.state,
            f"{batch.total:,}",
            f"{batch.percent:.0f} %",
            f"{batch.counts[State.DEAD]:,}",
            f"{batch.counts[State.CANCELLED]:,}",
            batch.created_at.strftime(_FORM),
        )
    _print(table, "no group was run" if state is None else f"no group is {state}", empty=not found)


@batches.command(short_help="One group: its jobs by state, its callbacks, its dead.")
@click.argument("id_", metavar="ID")
@_as_json
@reported
def show(id_: str, as_json: bool) -> None:
    """Show one group and those within it: jobs by state, callbacks, and the jobs that are dead."""
    batch = switchyard.batch(id_)
    if as_json:
        click.echo(json.dumps(_plain(batch), default=str))
        return
    console = Console()
    _show(console, batch, "")
    dead = switchyard.list_jobs(batch=id_, state=State.DEAD, limit=_NAMED + 1).jobs
    for job in dead[:_NAMED]:
        console.print(
            f"dead: {job.id} {escape(job.actor)}: {escape(job.error_type or '')}: {escape(job.error or '')}", soft_wrap=True
        )
    if len(dead) > _NAMED:
        console.print("and more: `switchyard.list_jobs(batch=ID, state='dead')`")


def _show(console: Console, batch: Batch, indent: str) -> None:
    counts = ", ".join(f"{count:,} {state}" for state, count in batch.counts.items() if count)
    console.print(f"{indent}{batch.id} {escape(batch.name or '')}".rstrip(), style="bold")
    console.print(f"{indent}  {batch.state}, {batch.percent:.0f} % of {batch.total:,} jobs: {counts or 'none'}", soft_wrap=True)
    if batch.waits_for is not None:
        console.print(f"{indent}  waits for {batch.waits_for}")
    for callback in batch.callbacks:
        sent = f"sent as {callback.id}" if callback.sent else "not sent yet"
        console.print(f"{indent}  {callback.when}: {escape(callback.actor)}, {sent}", soft_wrap=True)
    for inner in batch.batches:
        _show(console, inner, indent + "    ")


def _plain(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "name": batch.name,
        "state": batch.state,
        "total": batch.total,
        "percent": round(batch.percent, 2),
        "counts": {state.value: count for state, count in batch.counts.items()},
        "created_at": batch.created_at.isoformat(),
        "died_at": None if batch.died_at is None else batch.died_at.isoformat(),
        "completed_at": None if batch.completed_at is None else batch.completed_at.isoformat(),
        "succeeded_at": None if batch.succeeded_at is None else batch.succeeded_at.isoformat(),
        "waits_for": batch.waits_for,
        "callbacks": [{"when": c.when, "id": c.id, "actor": c.actor, "sent": c.sent} for c in batch.callbacks],
        "batches": [_plain(inner) for inner in batch.batches],
    }


def _print(table: Table, nothing: str, *, empty: bool) -> None:
    if empty:
        click.echo(nothing)
    else:
        print_listing(table)
