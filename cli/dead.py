"""``switchyard dead``: look at dead letters, group them, replay them, remove them.

Thin over ``control.dead_letters``. What errors say comes from anywhere, so nothing of it reaches the terminal but printable characters.
Whatever touches more than one named job says how many first, and asks, unless it is told not to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click
from rich.table import Table
from rich.text import Text

import switchyard
from cli.choosing import queue_name, values_checked
from cli.reporting import reported
from cli.tables import listing, print_listing
from cli.terminal import printable
from control.dead_letters import Filters, rate_per_second
from errors import JobNotFound
from ledger.job import Attempt, DeadGroup, DeadLetter

F = TypeVar("F", bound=Callable[..., Any])

_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])", re.IGNORECASE)
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
#: Longest piece of an error's text in a table, in characters; ``show`` has all of it.
_SHOWN: Final = 120


@click.group(short_help="Look at dead letters, replay or remove them.")
def dead() -> None:
    """Look at the jobs that will not run again by themselves, replay them, or remove them; docs/howto/dead-letters.md.

    Dead letters are picked by their ids, or by filters, which have to be met all.
    """


def _moment(context: click.Context, option: click.Parameter, value: str | None) -> datetime | None:
    """Read an age such as 2h, or an ISO 8601 time with a zone."""
    if value is None:
        return None
    age = _AGE.fullmatch(value.strip())
    try:
        if age is not None:
            return datetime.now(UTC) - timedelta(seconds=float(age[1]) * _UNITS[age[2].lower()])
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.utcoffset() is None:
        raise click.BadParameter("write an age such as 30m, 2h or 7d, or a time with its zone such as 2026-11-28T08:00:00+00:00")
    return moment


def _rate(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            rate_per_second(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


_FILTERS: Final = (
    click.option("--actor", help="Of this actor."),
    click.option("--queue", help="Of this queue."),
    click.option("--reason", help="Dead for this reason, such as max_retries or worker_lost."),
    click.option("--fingerprint", "--group", help="Of this group, see `groups`."),
    click.option("--error-type", help="With this type of error, such as ValueError."),
    click.option("--search", metavar="TEXT", help="With this in the error or the actor's name, in any case."),
    click.option(
        "--since", callback=_moment, metavar="WHEN", help="Died at or after this: an age such as 2h, or a time with zone."
    ),
    click.option("--until", callback=_moment, metavar="WHEN", help="Died before this."),
)
_AS_JSON: Final = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
_LIMIT: Final = click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many, those that died first.")
_ALL: Final = click.option("--all", "everything", is_flag=True, help="All dead letters, where no filter is given.")
_DRY_RUN: Final = click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
_YES: Final = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def _filtered(command: F) -> F:
    """Give a command the filters' options."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@dead.command("list", short_help="List dead letters, the latest first.")
@_filtered
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="Go on after a page: its `next`.")
@_AS_JSON
@reported
@values_checked
def list_(limit: int, after: str | None, as_json: bool, **filters: Any) -> None:
    """List dead letters, the latest death first."""
    switchyard.configure()
    page = switchyard.dead_letters(limit=limit, after=after, **_given(filters))
    if as_json:
        _say_json({"dead_letters": [_plain_letter(letter) for letter in page.letters], "next": page.next})
        return
    table = listing("died (UTC)", "id", "actor", "reason", "error", "group", whole=("id", "group"))
    for letter in page.letters:
        job = letter.job
        table.add_row(
            *map(
                _cell,
                (_time(job.finished_at), job.id, job.actor, job.dead_reason, _error(job.error_type, job.error), job.fingerprint),
            )
        )
    _print_table(table, len(page.letters), "no dead letters")
    if page.next is not None:
        click.echo(f"There are more: --after {page.next}")


@dead.command(short_help="Show one dead letter with its history.")
@click.argument("id")
@_AS_JSON
@reported
def show(id: str, as_json: bool) -> None:
    """Show all there is about a dead letter: arguments, error, attempts, traceback."""
    switchyard.configure()
    job = switchyard.get_job(id)
    if job is None:
        raise JobNotFound(id)
    attempts = switchyard.attempts(id)
    trace = next((attempt.traceback for attempt in reversed(attempts) if attempt.generation == job.generation), None)
    letter = DeadLetter(job=job, traceback=trace)
    if as_json:
        _say_json(_plain_letter(letter) | {"attempts": [asdict(attempt) for attempt in attempts]})
        return
    lines = {
        "id": job.id,
        "state": str(job.state),
        "actor": job.actor,
        "queue": job.queue,
        "reason": job.dead_reason,
        "error": _error(job.error_type, job.error, limit=None),
        "group": job.fingerprint,
        "sent": _time(job.created_at),
        "died" if job.dead_reason else "ended": _time(job.finished_at),
        "generation": str(job.generation),
        "args": json.dumps(job.args, ensure_ascii=False),
        "kwargs": json.dumps(job.kwargs, ensure_ascii=False),
    }
    for name, value in lines.items():
        if value is not None:
            click.echo(f"{name:<11} {printable(value)}")
    if attempts:
        _print_table(_history(attempts), len(attempts), "")
    if trace:
        click.echo("\n".join(printable(line) for line in trace.splitlines()))


@dead.command(short_help="Count dead letters by what they have in common.")
@_filtered
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many groups.")
@_AS_JSON
@reported
@values_checked
def groups(limit: int, as_json: bool, **filters: Any) -> None:
    """Count dead letters by what they have in common, the largest group first.

    A group has one actor, reason and type of error, and texts and tracebacks alike: numbers, ids and quoted values do not count.
    """
    switchyard.configure()
    found = switchyard.dead_groups(limit=limit, **_given(filters))
    if as_json:
        _say_json({"groups": [asdict(group) for group in found]})
        return
    _print_table(_groups(found), len(found), "no dead letters")


@dead.command(short_help="Run dead letters again.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filtered
@_ALL
@click.option(
    "--rate",
    callback=_rate,
    metavar="RATE",
    help="So many become due in a time, such as 50/s or 1000/hour.",
)
@click.option("--to-queue", callback=queue_name, metavar="QUEUE", help="Run them in this queue. [default: each in its own]")
@_LIMIT
@_DRY_RUN
@_YES
@_AS_JSON
@reported
@values_checked
def replay(
    ids: Sequence[str],
    everything: bool,
    rate: str | None,
    to_queue: str | None,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Run dead letters again: the same ids, from the first attempt on, their history kept.

    With --rate each is given its own due time, so this command may end, or be ended, at once: the workers keep the rate. A dead letter
    whose key is in use by an active job stays dead. The exit code is 1 when a job named by its ID was not replayed.
    """
    given = _meant(ids, filters, everything)
    switchyard.configure()
    if ids:
        if rate is not None or limit is not None or dry_run:
            raise click.UsageError("--rate, --limit and --dry-run go with filters; for one group: --group FINGERPRINT")
        outcomes = {id_: switchyard.try_replay(id_, to_queue=to_queue) for id_ in ids}
        _tell(as_json, "replayed", {id_: outcome.refused for id_, outcome in outcomes.items()})
        return
    count = switchyard.replay_many(all=everything, dry_run=True, **given).matched
    wanted = count if limit is None else min(count, limit)
    if not dry_run and wanted:
        _ask(f"Replay {_jobs(wanted)}{'' if rate is None else f' at {rate}'}?", yes)
    how: Any = {"all": everything, "rate": rate, "to_queue": to_queue, "limit": limit, "dry_run": dry_run}
    done = switchyard.replay_many(**how, **given) if wanted else None
    if as_json:
        replayed, last_due = (0, None) if done is None else (done.replayed, done.last_due)
        _say_json({"matched": count, "replayed": replayed, "last_due": last_due, "dry_run": dry_run})
    elif done is None:
        click.echo("no dead letters to replay")
    elif dry_run:
        click.echo(f"would replay {_jobs(wanted)}")
    else:
        last = f", the last is due at {_time(done.last_due)} UTC" if rate is not None and done.last_due is not None else ""
        click.echo(f"replayed {_jobs(done.replayed)}{last}")
        if done.replayed < wanted:
            click.echo(f"{_jobs(wanted - done.replayed)} stayed dead: their keys are in use by active jobs")


@dead.command(short_help="Remove dead letters for good.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filtered
@_ALL
@_LIMIT
@_DRY_RUN
@_YES
@_AS_JSON
@reported
@values_checked
def discard(
    ids: Sequence[str], everything: bool, limit: int | None, dry_run: bool, yes: bool, as_json: bool, **filters: Any
) -> None:
    """Remove dead letters for good, with their attempts and logs. By ID, cancelled jobs too.

    The exit code is 1 when a job named by its ID was not removed.
    """
    given = _meant(ids, filters, everything)
    switchyard.configure()
    if ids:
        if limit is not None or dry_run:
            raise click.UsageError("--limit and --dry-run go with filters")
        _ask(f"Remove {_jobs(len(ids))} for good?", yes)
        outcomes = {id_: None if switchyard.discard(id_) else "it is neither dead nor cancelled" for id_ in ids}
        _tell(as_json, "discarded", outcomes)
        return
    count = switchyard.discard_many(all=everything, dry_run=True, **given).matched
    wanted = count if limit is None else min(count, limit)
    if not dry_run and wanted:
        _ask(f"Remove {_jobs(wanted)} for good?", yes)
    gone = switchyard.discard_many(all=everything, limit=limit, **given).discarded if wanted and not dry_run else 0
    if as_json:
        _say_json({"matched": count, "discarded": gone, "dry_run": dry_run})
    else:
        click.echo(f"would discard {_jobs(wanted)}" if dry_run else f"discarded {_jobs(gone)}")


def _meant(ids: Sequence[str], filters: dict[str, Any], everything: bool) -> Filters:
    """The filters that were given. Raises: click.UsageError: nothing says which jobs are meant, or two things do."""
    given = _given(filters)
    if sum((bool(ids), bool(given), everything)) != 1:
        raise click.UsageError("say which dead letters: their IDs, or filters such as --group or --actor, or --all")
    return given


def _given(filters: dict[str, Any]) -> Filters:
    found: Any = {name: value for name, value in filters.items() if value is not None}
    return found  # type: ignore[no-any-return]


def _ask(question: str, yes: bool) -> None:
    if not yes:
        # On standard error, which is not part of what a script reads.
        click.confirm(question, abort=True, err=True)


def _tell(as_json: bool, done: str, outcomes: dict[str, str | None]) -> None:
    """Say of each job whether it was done (None) or why not. Exits with 1 if any was not."""
    if as_json:
        _say_json({"jobs": [{"id": id_, done: reason is None, "refused": reason} for id_, reason in outcomes.items()]})
    else:
        for id_, reason in outcomes.items():
            click.echo(f"{id_} {done}" if reason is None else f"{id_} not {done}: {reason}")
    if any(reason is not None for reason in outcomes.values()):
        raise click.exceptions.Exit(1)


def _history(attempts: Sequence[Attempt]) -> Table:
    headings = ("generation", "attempt", "outcome", "started (UTC)", "seconds", "worker", "error")
    table = listing(*headings, whole=("generation", "attempt", "outcome"))
    for one in attempts:
        took = None if one.started_at is None or one.finished_at is None else (one.finished_at - one.started_at).total_seconds()
        cells = (one.generation, one.attempt, one.outcome, _time(one.started_at), took and f"{took:.2f}", one.worker)
        table.add_row(*map(_cell, (*cells, _error(one.error_type, one.error))))
    return table


def _groups(found: Sequence[DeadGroup]) -> Table:
    headings = ("jobs", "group", "actor", "reason", "error", "first (UTC)", "last (UTC)")
    table = listing(*headings, whole=("jobs", "group", "actor"))
    for one in found:
        cells = (f"{one.count:,}", one.fingerprint, one.actor, one.reason, _error(one.error_type, one.error))
        table.add_row(*map(_cell, (*cells, _time(one.first_at), _time(one.last_at))))
    return table


def _print_table(table: Table, rows: int, nothing: str) -> None:
    if rows:
        print_listing(table)
    elif nothing:
        click.echo(nothing)


def _cell(value: object) -> Text:
    # A Text, since square brackets in a str are markup.
    return Text("" if value is None else printable(str(value)))


def _error(error_type: str | None, error: str | None, limit: int | None = _SHOWN) -> str | None:
    if error_type is None and error is None:
        return None
    text = ": ".join(part for part in (error_type, error) if part)
    return text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count:,} jobs"


def _plain_letter(letter: DeadLetter) -> dict[str, Any]:
    return asdict(letter.job) | {"traceback": letter.traceback}


def _say_json(value: object) -> None:
    click.echo(json.dumps(value, default=_jsonable, ensure_ascii=True))


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
