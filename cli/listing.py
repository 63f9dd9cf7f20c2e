"""``switchyard jobs`` and ``switchyard show``: find jobs, and look at one: how far it is, why it waits, what became of its attempts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

import click

import switchyard
from cli.choosing import Once, chosen_by, values_checked
from cli.ids import batch_id, job_id, no_job, require_batch
from cli.knowing import meant, warn_of_unknown
from cli.moments import off, span, utc
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import Listing, listing, print_details, print_listing
from cli.terminal import printable
from ledger import read
from ledger.control import Pause
from ledger.job import Attempt, Job, LogLine, Worker
from ledger.overview import clock
from ledger.read import MAX_LIMIT
from ledger.states import WAIT_REASONS, WAITING, State, states_named

#: The reasons to wait that are limits.
LIMITED: Final = ("concurrency", "rate_limit")
#: The others, as a table says them.
_WAITED_FOR: Final = {
    "concurrency": "its turn, which has come", "paused": "the end of a pause", "upstream": "what is before it",
    "unknown_actor": "a worker that knows it",
}  # fmt: skip
_WAIT_REASONS: Final = f"{'; '.join(f'{word}: {what}' for word, what in WAIT_REASONS.items())}. May be repeated."
#: Longest text of arguments, results and errors in a table, in characters; ``--json`` has them whole.
MAX_TEXT: Final = 2_000


class WaitReason(click.ParamType[str]):
    """A word of ``wait_reason``."""

    name = "reason"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        word = str(value).lower()
        if word not in WAIT_REASONS:
            self.fail(f"{value!r} is no reason to wait{meant(word, WAIT_REASONS)}", param, ctx)
        return word


@click.command("jobs", short_help="List jobs.")
@chosen_by
@click.option("--wait-reason", "wait_reasons", type=WaitReason(), multiple=True, metavar="REASON", help=_WAIT_REASONS)
@click.option("--limit", cls=Once, type=click.IntRange(1, MAX_LIMIT), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="Go on where the page before ended, as it says.")
@as_json
@reported
@values_checked
def jobs_command(
    limit: int,
    after: str | None,
    as_json: bool,
    states: tuple[str, ...],
    batch: str | None,
    wait_reasons: tuple[str, ...],
    **filters: Any,
) -> None:
    """List the jobs that meet every option, the newest first.

    What is in line for a slot of a limit, or over a rate, is scheduled (and pending for a moment when its turn has come):
    `--wait-reason concurrency --wait-reason rate_limit` lists it whatever its state.
    """
    if batch is not None:
        batch = batch_id(batch)
    wanted = filters | {"batch": batch, "wait_reason": list(wait_reasons) or None}
    page = switchyard.list_jobs(state=list(states) or None, limit=limit, after=after, **wanted)
    if not page.jobs:
        require_batch(batch)
        warn_of_unknown(**{name: filters[name] for name in ("queue", "actor", "tag")})
    if as_json:
        say_json({"jobs": [asdict(job) for job in page.jobs], "next": page.next})
        return
    headings = ("id", "state", "actor", "queue", "age", "waits for")
    table = listing(*headings, whole=("id", "state", "age"), below=("waits for", "queue", "actor"))
    now = switchyard.database().run(clock)
    for job in page.jobs:
        table.add_row(job.id, job.state, job.actor, job.queue, span(now - job.created_at), _waits_for(job, now))
    print_listing(table, "no job is like that" if states or any(wanted.values()) else "there are no jobs")
    if page.next is not None:
        click.echo(f"there are more: --after {page.next}")
    if _only_pending(states) and not wait_reasons:
        _point_to_limited(wanted)


def _only_pending(states: Sequence[str]) -> bool:
    """Whether somebody looks for what waits, and not among the scheduled."""
    named = frozenset().union(*map(states_named, states))
    return State.PENDING in named and State.SCHEDULED not in named


def _point_to_limited(filters: dict[str, Any]) -> None:
    """Say where those are that wait for a limit, if any do: to whoever asks they wait, like what is pending."""
    limited = switchyard.list_jobs(**filters | {"state": State.SCHEDULED, "wait_reason": LIMITED, "limit": 1})
    if limited.jobs:
        options = " ".join(f"--wait-reason {reason}" for reason in LIMITED)
        click.echo(
            f"switchyard: others wait for a slot or a rate of a limit, as scheduled: `switchyard jobs {options}` lists them",
            err=True,
        )


@click.command("show", short_help="Show one job.")
@click.argument("id_", metavar="ID")
@as_json
@reported
def show_command(id_: str, as_json: bool) -> None:
    """Show a job, its attempts and its log, and why it waits. ID may be the first eight characters or more, if no other job's begin so.

    The exit code is 1 if there is none with this ID.
    """
    id_ = job_id(id_)
    job = switchyard.get_job(id_)
    if job is None:
        raise no_job(id_)
    attempts, lines = switchyard.attempts(id_), switchyard.logs(id_)
    why = _why(job, switchyard.paused(), switchyard.database().run(read.workers))
    if as_json:
        say_json({"job": asdict(job), "why": why, "attempts": list(map(asdict, attempts)), "log": list(map(asdict, lines))})
        return
    print_details(details(job, switchyard.database().run(clock), why))
    if attempts:
        click.echo()
        print_listing(history(attempts))
    if lines:
        click.echo()
    for line in lines:
        click.echo(_line(line))
    trace = attempts[-1].traceback if attempts else None
    if trace:
        print_traceback(trace)


def details(job: Job, now: datetime, why: str | None = None) -> list[tuple[str, object]]:
    """Everything about a job, by name."""
    asked = "" if job.cancel_requested_at is None else f" (asked to stop at {utc(job.cancel_requested_at)})"
    of = "any number" if job.max_attempts is None else str(job.max_attempts)
    return [
        ("id", job.id),
        ("actor", job.actor),
        ("queue", f"{job.queue} (by {job.broker})"),
        ("state", f"{job.state}{asked}"),
        ("why", why),
        ("arguments", _text({"args": job.args, "kwargs": job.kwargs})),
        ("priority", job.priority),
        ("attempt", f"{job.attempt}, {job.failures} failed of {of}, generation {job.generation}"),
        ("sent", off(job.created_at, now)),
        ("to run", off(job.run_at, now) if job.state in WAITING else None),
        ("started", off(job.started_at, now)),
        ("ended", off(job.finished_at, now)),
        ("progress", None if job.progress is None else f"{job.progress:g} % {job.stage or ''}".rstrip()),
        ("worker", job.worker),
        ("result", None if job.result is None else _text(job.result)),
        ("error", _error(job.error_type, job.error)),
        ("dead", job.dead_reason),
        ("group of dead", job.fingerprint),
        ("tags", ", ".join(job.tags) or None),
        ("key", job.idempotency_key),
        ("schedule", job.schedule and f"{job.schedule}, tick {utc(job.tick_at)}"),
        ("sent by", job.parent_id),
        ("group", job.batch_id),
    ]


def history(attempts: Sequence[Attempt]) -> Listing:
    """The executions of a job, as a list, with a line for those that were counted and not kept."""
    headings = ("attempt", "outcome", "started", "took", "worker", "error")
    table = listing(*headings, whole=("attempt", "outcome", "started", "took"), below=("error", "worker"))
    for attempt in attempts:
        number = f"{attempt.generation}.{attempt.attempt}" if attempts[-1].generation > 1 else attempt.attempt
        took = attempt.finished_at - attempt.started_at if attempt.finished_at and attempt.started_at else None
        error = _error(attempt.error_type, attempt.error)
        table.add_row(
            number, attempt.outcome, utc(attempt.started_at), None if took is None else span(took), attempt.worker, error
        )  # fmt: skip
        if attempt.omitted:
            table.add_row("…", f"{attempt.omitted:,} more {attempt.outcome}", None, None, None, "counted, not kept")
    return table


def print_traceback(trace: str) -> None:
    """Print how an execution ended, its lines as they are."""
    click.echo("\n" + "\n".join(map(printable, trace.rstrip().splitlines())))


def _error(error_type: str | None, error: str | None) -> str | None:
    return None if error_type is None and error is None else ": ".join(part for part in (error_type, error) if part)[:MAX_TEXT]


def _why(job: Job, pauses: Sequence[Pause], workers: Sequence[Worker]) -> str | None:
    """Why a waiting job does not run, in a sentence; None for one that does not wait."""
    if job.state not in WAITING:
        return None
    paused = [pause.what for pause in pauses if pause.queue in (job.queue, None) and pause.actor in (job.actor, None)]
    if paused and job.state is State.PENDING:
        # Also before a keeper or a worker has parked it.
        return f"paused: {', '.join(paused)}"
    if job.wait_reason == "paused":
        return "was paused, goes on in a moment"
    if job.wait_reason == "unknown_actor":
        return f"no living worker knows the actor {job.actor!r}"
    if job.upstream_id is not None:
        return _before(job.upstream_id)
    if job.wait_reason == "rate_limit":
        return f"over the rate limit of {job.rate_key}; its time is {utc(job.run_at)}"
    if job.wait_reason == "concurrency":
        return f"every slot of {job.blocked_on} is taken" if job.state is State.SCHEDULED else "its turn has come"
    if job.wait_reason is not None:
        return job.wait_reason
    if job.state is not State.PENDING:
        return f"its time is {utc(job.run_at)}"
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
    if job.state is State.SCHEDULED and job.wait_reason == "concurrency":
        return f"a slot of {job.blocked_on}"
    if job.wait_reason == "rate_limit":
        return f"the rate of {job.rate_key}, {_off(job, now)}"
    if job.wait_reason is not None:
        return _WAITED_FOR.get(job.wait_reason, job.wait_reason)
    return "a worker" if job.state is State.PENDING else _off(job, now)


def _off(job: Job, now: datetime) -> str:
    """How far off its time is."""
    return span(max(timedelta(), (job.run_at or now) - now))


def _line(line: LogLine) -> str:
    return f"{utc(line.at)}  {printable(line.line)}"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text):,} characters)"
