"""``switchyard jobs`` and ``switchyard show``: find jobs, and look at one: how far it is, why it waits, what became of its attempts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import switchyard
from cli.choosing import chosen_by, values_checked
from cli.reporting import reported
from cli.tables import listing, print_listing
from cli.terminal import printable
from ledger import read
from ledger.control import Pause
from ledger.job import Attempt, Job, LogLine, Worker
from ledger.read import MAX_LIMIT
from ledger.states import WAITING, State

#: Longest text of arguments, results and errors in a table, in characters; ``--json`` has them whole.
MAX_TEXT: Final = 2_000


@click.command("jobs", short_help="List jobs.")
@chosen_by
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="Go on where the page before ended, as it says.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@reported
@values_checked
def jobs_command(limit: int, after: str | None, as_json: bool, states: tuple[str, ...], **filters: Any) -> None:
    """List the jobs that meet every option, the newest first."""
    page = switchyard.list_jobs(state=list(states) or None, limit=limit, after=after, **filters)
    if as_json:
        click.echo(json.dumps({"jobs": [asdict(job) for job in page.jobs], "next": page.next}, default=str))
        return
    table = listing("id", "state", "actor", "queue", "age", "waits for", whole=("id", "state", "age"))
    now = datetime.now(UTC)
    for job in page.jobs:
        table.add_row(job.id, job.state, job.actor, job.queue, _span(now - job.created_at), _waits_for(job, now))
    print_listing(table)
    if page.next is not None:
        click.echo(f"there are more: --after {page.next}")


@click.command("show", short_help="Show one job.")
@click.argument("id_", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@reported
def show_command(id_: str, as_json: bool) -> None:
    """Show a job, its attempts and its log, and why it waits. The exit code is 1 if there is none with this ID."""
    job = switchyard.get_job(id_)
    if job is None:
        click.echo(f"switchyard: no job has the id {id_!r}", err=True)
        sys.exit(1)
    attempts, lines = switchyard.attempts(id_), switchyard.logs(id_)
    why = _why(job, switchyard.paused(), switchyard.database().run(read.workers))
    if as_json:
        found = {"job": asdict(job), "why": why, "attempts": list(map(asdict, attempts)), "log": list(map(asdict, lines))}
        click.echo(json.dumps(found, default=str))
        return
    console = Console()
    console.print(_details(job, why))
    if attempts:
        console.print(_attempts(attempts))
    for line in lines:
        click.echo(_line(line))
    for attempt in attempts[-1:]:
        if attempt.traceback:
            click.echo("\n" + "\n".join(map(printable, attempt.traceback.rstrip().splitlines())))


def _details(job: Job, why: str | None) -> Table:
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    asked = "" if job.cancel_requested_at is None else f" (asked to stop at {_time(job.cancel_requested_at)})"
    rows: list[tuple[str, Any]] = [
        ("id", job.id),
        ("actor", job.actor),
        ("queue", f"{job.queue} (by {job.broker})"),
        ("state", f"{job.state}{asked}"),
        ("why", why),
        ("arguments", _text({"args": job.args, "kwargs": job.kwargs})),
        ("priority", str(job.priority)),
        ("attempt", f"{job.attempt}, {job.failures} failures of {job.max_attempts or 'any number'}, generation {job.generation}"),
        ("sent", _time(job.created_at)),
        ("to run", _time(job.run_at) if job.state in WAITING else None),
        ("started", _time(job.started_at)),
        ("ended", _time(job.finished_at)),
        ("progress", None if job.progress is None else f"{job.progress:g} % {job.stage or ''}"),
        ("worker", job.worker),
        ("result", None if job.result is None else _text(job.result)),
        ("error", None if job.error_type is None else f"{job.error_type}: {job.error}"[:MAX_TEXT]),
        ("dead", job.dead_reason),
        ("tags", ", ".join(job.tags) or None),
        ("sent by", job.parent_id),
        ("group", job.batch_id),
    ]
    for name, value in rows:
        if value is not None:
            table.add_row(name, escape(printable(str(value))))
    return table


def _attempts(attempts: Sequence[Attempt]) -> Table:
    table = Table()
    for heading in ("attempt", "outcome", "started", "took", "worker", "error"):
        table.add_column(heading, overflow="fold")
    for attempt in attempts:
        number = f"{attempt.generation}.{attempt.attempt}" if attempt.generation > 1 else str(attempt.attempt)
        took = attempt.finished_at - attempt.started_at if attempt.finished_at and attempt.started_at else None
        error = f"{attempt.error_type}: {attempt.error}"[:MAX_TEXT] if attempt.error_type else ""
        table.add_row(
            number, attempt.outcome, _time(attempt.started_at) or "", "" if took is None else _span(took), attempt.worker or "",
            escape(printable(error)),
        )  # fmt: skip
    return table


def _why(job: Job, pauses: Sequence[Pause], workers: Sequence[Worker]) -> str | None:
    """Why a waiting job does not run, in a sentence; None for one that does not wait."""
    if job.state not in WAITING:
        return None
    names = [pause.what for pause in pauses if pause.queue in (job.queue, None) and pause.actor in (job.actor, None)]
    if names and job.state is State.PENDING:
        # Also before a keeper or a worker has parked it.
        return f"paused: {', '.join(names)}"
    if job.wait_reason == "paused":
        return "was paused, goes on in a moment"
    if job.wait_reason == "unknown_actor":
        return f"no living worker knows the actor {job.actor!r}"
    if job.upstream_id is not None:
        return _before(job.upstream_id)
    if job.wait_reason == "rate_limit":
        return f"over the rate limit of {job.rate_key}; its time is {_time(job.run_at)}"
    if job.wait_reason == "concurrency":
        return f"every slot of {job.blocked_on} is taken" if job.state is State.SCHEDULED else "its turn has come"
    if job.wait_reason is not None:
        return job.wait_reason
    if job.state is not State.PENDING:
        return f"its time is {_time(job.run_at)}"
    if not any(job.queue in worker.queues for worker in workers):
        return f"no living worker consumes the queue {job.queue}"
    return "until a worker is free"


def _before(id_: str) -> str:
    """What a step of a workflow waits for."""
    step = switchyard.get_job(id_)
    if step is None:
        return f"waits for the group {id_}"
    hint = ", and goes on when that is replayed" if step.state in (State.DEAD, State.CANCELLED) else ""
    return f"waits for the job {id_} of actor {step.actor!r}, which is {step.state}{hint}"


def _waits_for(job: Job, now: datetime) -> str:
    if job.state not in WAITING:
        return ""
    if job.wait_reason is not None:
        return job.blocked_on or job.wait_reason
    return "a worker" if job.state is State.PENDING else f"{_span(max(timedelta(), (job.run_at or now) - now))}"


def _line(line: LogLine) -> str:
    return f"{_time(line.at)}  {printable(line.line)}"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text):,} characters)"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(span: timedelta) -> str:
    seconds = max(0.0, span.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
