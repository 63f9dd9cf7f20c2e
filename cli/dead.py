"""``switchyard dead``: look at dead letters, group them, replay them, remove them.

Thin over ``control.dead_letters``. What errors say comes from anywhere, so nothing of it reaches the terminal but printable characters.
Whatever touches more than one named job says how many first, and asks, unless it is told not to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

import click

import switchyard
from cli.choosing import Once, answered, confirm, queue_name, values_checked
from cli.ids import NoSuchId, job_id, no_job
from cli.knowing import warn_of_undeclared, warn_of_unknown
from cli.listing import details, history, print_traceback
from cli.moments import Moment, utc
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import Listing, listing, print_details, print_listing
from control.dead_letters import Filters, rate_per_second
from errors import JobNotFound
from ledger.dead import REASONS
from ledger.job import DeadGroup, DeadLetter
from ledger.overview import clock

F = TypeVar("F", bound=Callable[..., Any])

#: Longest piece of an error's text in a table, in characters; ``show`` has all of it.
_SHOWN: Final = 120
_OF_A_GROUP: Final = "the ID of a group goes with --group"


@click.group(short_help="Look at dead letters, replay or remove them.")
def dead() -> None:
    """Look at the jobs that will not run again by themselves, replay them, or remove them; docs/howto/dead-letters.md.

    Dead letters are picked by their ids, or by filters, which have to be met all.
    """


def _rate(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            rate_per_second(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


_FILTERS: Final = (
    click.option("--actor", cls=Once, metavar="NAME", help="Of this actor."),
    click.option("--queue", cls=Once, callback=queue_name, metavar="NAME", help="Of this queue."),
    click.option("--reason", cls=Once, metavar="REASON", help=f"Dead for this reason: {', '.join(REASONS)}."),
    click.option("--fingerprint", "--group", cls=Once, metavar="GROUP", help="Of this group, see `groups`."),
    click.option("--error-type", cls=Once, metavar="TYPE", help="With this type of error, such as ValueError."),
    click.option("--search", cls=Once, metavar="WORDS", help="With this in the error or the actor's name, in any case."),
    click.option(
        "--since", cls=Once, type=Moment(), metavar="WHEN", help="Died at or after this: an age such as 2h, or a time (UTC)."
    ),
    click.option("--until", cls=Once, type=Moment(), metavar="WHEN", help="Died before this."),
)
_LIMIT: Final = click.option(
    "--limit", cls=Once, type=click.IntRange(1), metavar="N", help="At most so many, those that died first."
)
_ALL: Final = click.option("--all", "everything", is_flag=True, help="All dead letters, where no filter is given.")
_DRY_RUN: Final = click.option("--dry-run", is_flag=True, help="Only say how many it would be.")


def _filtered(command: F) -> F:
    """Give a command the filters' options."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@dead.command("list", short_help="List dead letters, the latest first.")
@_filtered
@click.option("--limit", cls=Once, type=click.IntRange(1, 200), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="Go on after a page: its `next`.")
@as_json
@reported
@values_checked
def list_(limit: int, after: str | None, as_json: bool, **filters: Any) -> None:
    """List dead letters, the latest death first."""
    switchyard.configure()
    page = switchyard.dead_letters(limit=limit, after=after, **_given(filters))
    if not page.letters:
        _warn(filters)
    if as_json:
        say_json({"dead_letters": [_plain_letter(letter) for letter in page.letters], "next": page.next})
        return
    headings = ("id", "died", "actor", "reason", "group", "error")
    table = listing(*headings, whole=("id", "died", "group"), below=("error", "group", "reason", "actor"))
    for letter in page.letters:
        job = letter.job
        table.add_row(
            job.id, utc(job.finished_at), job.actor, job.dead_reason, job.fingerprint, _error(job.error_type, job.error)
        )
    print_listing(table, "no dead letter is like that" if _given(filters) else "no dead letters")
    if page.next is not None:
        click.echo(f"there are more: --after {page.next}")


@dead.command(short_help="Show one dead letter with its history.")
@click.argument("id_", metavar="ID")
@as_json
@reported
def show(id_: str, as_json: bool) -> None:
    """Show all there is about a dead letter: arguments, error, attempts, traceback. ID may be the first eight characters or more.

    The exit code is 1 if there is no job with this ID.
    """
    switchyard.configure()
    id_ = job_id(id_)
    job = switchyard.get_job(id_)
    if job is None:
        raise no_job(id_)
    attempts = switchyard.attempts(id_)
    trace = next((attempt.traceback for attempt in reversed(attempts) if attempt.generation == job.generation), None)
    letter = DeadLetter(job=job, traceback=trace)
    if as_json:
        say_json(_plain_letter(letter) | {"attempts": [asdict(attempt) for attempt in attempts]})
        return
    print_details(details(job, switchyard.database().run(clock)))
    if attempts:
        click.echo()
        print_listing(history(attempts))
    if trace:
        print_traceback(trace)


@dead.command(short_help="Count dead letters by what they have in common.")
@_filtered
@click.option("--limit", cls=Once, type=click.IntRange(1, 200), default=50, show_default=True, help="How many groups.")
@as_json
@reported
@values_checked
def groups(limit: int, as_json: bool, **filters: Any) -> None:
    """Count dead letters by what they have in common, the largest group first.

    A group has one actor, reason and type of error, and texts and tracebacks alike: numbers, ids and quoted values do not count.
    """
    switchyard.configure()
    found = switchyard.dead_groups(limit=limit, **_given(filters))
    if not found:
        _warn(filters)
    if as_json:
        say_json({"groups": [asdict(group) for group in found]})
        return
    print_listing(_groups(found), "no dead letter is like that" if _given(filters) else "no dead letters")


@dead.command(short_help="Run dead letters again.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filtered
@_ALL
@click.option(
    "--rate",
    cls=Once,
    callback=_rate,
    metavar="RATE",
    help="So many become due in a time, such as 50/s or 1000/hour.",
)
@click.option(
    "--to-queue", cls=Once, callback=queue_name, metavar="QUEUE", help="Run them in this queue. [default: each in its own]"
)
@_LIMIT
@_DRY_RUN
@answered
@as_json
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
    if to_queue is not None:
        warn_of_undeclared(to_queue)
    if ids:
        if rate is not None or limit is not None or dry_run:
            raise click.UsageError(f"--rate, --limit and --dry-run go with filters, not with IDs; {_OF_A_GROUP}")
        _tell(as_json, "replayed", ids, lambda id_: switchyard.try_replay(id_, to_queue=to_queue).refused)
        return
    count = switchyard.replay_many(all=everything, dry_run=True, **given).matched
    wanted = count if limit is None else min(count, limit)
    if not dry_run and wanted:
        where = "" if to_queue is None else f" in queue {to_queue}"
        confirm(f"Replay {_jobs(wanted)}{where}{'' if rate is None else f' at {rate}'}?", yes=yes)
    how: Any = {"all": everything, "rate": rate, "to_queue": to_queue, "limit": limit, "dry_run": dry_run}
    done = switchyard.replay_many(**how, **given) if wanted else None
    if not count:
        _warn(filters)
    if as_json:
        replayed, last_due = (0, None) if done is None else (done.replayed, done.last_due)
        say_json({"matched": count, "replayed": replayed, "last_due": last_due, "dry_run": dry_run})
    elif dry_run:
        click.echo(f"would replay {_jobs(wanted)}")
    elif done is None:
        click.echo("no dead letters to replay")
    else:
        last = f", the last is due at {utc(done.last_due)}" if rate is not None and done.last_due is not None else ""
        click.echo(f"replayed {_jobs(done.replayed)}{last}")
        if done.replayed < wanted:
            click.echo(f"{_jobs(wanted - done.replayed)} stayed dead: their keys are in use by active jobs")


@dead.command(short_help="Remove dead letters for good.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filtered
@_ALL
@_LIMIT
@_DRY_RUN
@answered
@as_json
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
            raise click.UsageError(f"--limit and --dry-run go with filters, not with IDs; {_OF_A_GROUP}")
        confirm(f"Remove {_jobs(len(ids))} for good?", yes=yes)
        _tell(as_json, "discarded", ids, lambda id_: None if switchyard.discard(id_) else "it is neither dead nor cancelled")
        return
    count = switchyard.discard_many(all=everything, dry_run=True, **given).matched
    wanted = count if limit is None else min(count, limit)
    if not dry_run and wanted:
        confirm(f"Remove {_jobs(wanted)} for good?", yes=yes)
    gone = switchyard.discard_many(all=everything, limit=limit, **given).discarded if wanted and not dry_run else 0
    if not count:
        _warn(filters)
    if as_json:
        say_json({"matched": count, "discarded": gone, "dry_run": dry_run})
    elif dry_run:
        click.echo(f"would discard {_jobs(wanted)}")
    else:
        click.echo(f"discarded {_jobs(gone)}" if count else "no dead letters to discard")


def _meant(ids: Sequence[str], filters: dict[str, Any], everything: bool) -> Filters:
    """The filters that were given. Raises: click.UsageError: nothing says which jobs are meant, or two things do."""
    given = _given(filters)
    if sum((bool(ids), bool(given), everything)) != 1:
        raise click.UsageError("say which dead letters: their IDs, or filters such as --group or --actor, or --all")
    return given


def _given(filters: dict[str, Any]) -> Filters:
    found: Any = {name: value for name, value in filters.items() if value is not None}
    return found  # type: ignore[no-any-return]


def _warn(filters: dict[str, Any]) -> None:
    """Nothing was found: perhaps because a name was mistyped. That is no refusal: an application's own reason is known for as long as a
    dead letter has it, and what replays those each night may find none."""
    warn_of_unknown(**{name: filters[name] for name in ("queue", "actor", "error_type", "fingerprint", "reason")})


def _tell(as_json: bool, done: str, ids: Sequence[str], act: Callable[[str], str | None]) -> None:
    """Act on each job and say of it whether it was done (None) or why not. Exits with 1 if any was not."""
    outcomes = [_acted(text, act) for text in ids]
    if as_json:
        say_json({"jobs": [{"id": id_, done: reason is None, "refused": reason} for id_, reason in outcomes]})
    else:
        for id_, reason in outcomes:
            click.echo(f"{id_} {done}" if reason is None else f"{id_} not {done}: {reason}", err=reason is not None)
    if any(reason is not None for _, reason in outcomes):
        raise click.exceptions.Exit(1)


def _acted(text: str, act: Callable[[str], str | None]) -> tuple[str, str | None]:
    """The id that was meant, and why nothing was done, if so."""
    try:
        id_ = job_id(text)
        return id_, act(id_)
    except NoSuchId as error:
        return text, str(error)
    except JobNotFound:
        return text, str(no_job(text))


def _groups(found: Sequence[DeadGroup]) -> Listing:
    headings = ("jobs", "group", "actor", "reason", "last", "first", "error")
    table = listing(*headings, whole=("jobs", "group", "last"), below=("error", "first", "reason", "actor"), numbers=("jobs",))
    for one in found:
        error = _error(one.error_type, one.error)
        table.add_row(f"{one.count:,}", one.fingerprint, one.actor, one.reason, utc(one.last_at), utc(one.first_at), error)
    return table


def _error(error_type: str | None, error: str | None) -> str | None:
    text = ": ".join(part for part in (error_type, error) if part)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count:,} jobs"


def _plain_letter(letter: DeadLetter) -> dict[str, Any]:
    return asdict(letter.job) | {"traceback": letter.traceback}
