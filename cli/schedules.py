"""``switchyard schedules``: look at schedules, make and remove them, pause them, run one now, and see when they come next."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import click

import switchyard
from cli.choosing import queue_name
from cli.knowing import alike, meant, warn_of_unknown
from cli.loading import load_actors
from cli.moments import Span, off, span, utc
from cli.plain import as_json, say_json
from cli.reporting import reported
from cli.tables import listing, print_details, print_listing
from errors import CronError, SwitchyardError
from ledger.schedules import Schedule
from runtime.timing import DEFAULT_WINDOW, POLICIES, Timing

#: A schedule whose tick is overdue by more than this, in seconds, has nobody to make its job.
_OVERDUE: Final = 60.0
#: How a time in another zone is written; its zone follows.
_FORM: Final = "%Y-%m-%d %H:%M:%S"


class _Json(click.ParamType[Any]):
    """A list or an object, written as JSON."""

    def __init__(self, kind: type, name: str) -> None:
        self._kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"is no JSON: {error}", param, ctx)
        if not isinstance(found, self._kind):
            self.fail(f"is no JSON {self.name}", param, ctx)
        return found


@click.group(short_help="Look at schedules, make, pause and run them.")
def schedules() -> None:
    """Look at schedules, make and remove them, pause them, run one now.

    A declared schedule stands in code (periodic=) and has the name of its actor; a created one stands in the ledger alone.
    docs/howto/schedules.md.
    """


def _timezone(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Check the name of a time zone."""
    if value is not None:
        try:
            _ = Timing("@daily", value).cron
        except CronError as error:
            raise click.BadParameter(f"{error.reason}{alike(value, available_timezones())}") from None
    return value


def _cron(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Check an expression, whatever its time zone."""
    if value is not None:
        try:
            _ = Timing(value, "UTC").cron
        except CronError as error:
            raise click.BadParameter(str(error)) from None
    return value


@schedules.command("list", short_help="Every schedule, with its last and next time.")
@as_json
@reported
def list_(as_json: bool) -> None:
    """List every schedule: what it runs, when it last did, and when it will."""
    found = switchyard.schedules()
    if as_json:
        say_json({"schedules": [_plain(schedule) for schedule in found]})
        return
    table = listing(
        "name", "actor", "cron", "time zone", "last", "next", "state",
        whole=("name", "last", "next"), below=("actor", "last", "time zone", "cron", "state"),
    )  # fmt: skip
    for schedule in found:
        actor = None if schedule.actor == schedule.name else schedule.actor
        following = schedule.next_tick_at if schedule.due_at else None
        table.add_row(
            schedule.name, actor, schedule.expression, schedule.timezone, utc(schedule.last_tick_at), utc(following), _state(schedule)
        )  # fmt: skip
    print_listing(
        table, "there are no schedules: give an actor periodic=cron(...), or make one with `switchyard schedules create`"
    )


@schedules.command(short_help="One schedule, and what became of its latest ticks.")
@click.argument("name")
@click.option("-n", "--ticks", type=click.IntRange(1, 1_000), default=10, show_default=True, help="How many ticks.")
@as_json
@reported
def show(name: str, ticks: int, as_json: bool) -> None:
    """Show one schedule, and its latest ticks with their jobs."""
    schedule = _found(name)
    passed = switchyard.schedule_ticks(name, ticks)
    if as_json:
        say_json(_plain(schedule) | {"ticks": [asdict(tick) for tick in passed]})
        return
    _describe(schedule)
    table = listing("tick", "made", "job", "state", whole=("tick", "job"), below=("made", "state"))
    for tick in passed:
        table.add_row(
            utc(tick.tick_at), utc(tick.made_at), tick.job_id, tick.error or tick.state or ("gone" if tick.job_id else None)
        )
    click.echo()
    print_listing(table, "no tick has come yet")


@schedules.command(short_help="Make a schedule in the ledger.")
@click.argument("name")
@click.argument("actor")
@click.argument("cron", callback=_cron)
@click.option(
    "--timezone",
    callback=_timezone,
    default="UTC",
    show_default=True,
    metavar="ZONE",
    help="An IANA name, such as Europe/Berlin.",
)
@click.option(
    "--args", type=_Json(list, "list"), default="[]", metavar="JSON", help="Positional arguments, such as '[\"eu\", 5]'."
)
@click.option("--kwargs", type=_Json(dict, "object"), default="{}", metavar="JSON", help="Arguments by name.")
@click.option("--queue", callback=queue_name, metavar="NAME", help="Where its jobs go. [default: the actor's]")
@click.option(
    "--catch-up", type=click.Choice(POLICIES), default="skip", show_default=True, help="What becomes of ticks that were missed."
)
@click.option("--window", type=Span(), default=DEFAULT_WINDOW, metavar="DURATION", help="How far back. [default: 1d]")
@click.option("--jitter", type=Span(), default=0.0, metavar="DURATION", help="Make each job up to so much later.")
@as_json
@reported
def create(name: str, actor: str, cron: str, as_json: bool, **fields: Any) -> None:
    """Make a schedule NAME that calls ACTOR when CRON says.

    CRON is minute, hour, day of the month, month, day of the week; or six fields with the second first; or @daily and the like:

        switchyard schedules create nightly-contacts export_data "30 2 * * *" --timezone Europe/Berlin --args '["contacts"]'
    """
    schedule = switchyard.create_schedule(name, actor, cron, fields.pop("args"), fields.pop("kwargs"), **fields)
    if as_json:
        say_json(_plain(schedule))
    else:
        click.echo(f"created {name}; its first job comes {_both(schedule.next_tick_at, schedule.timezone)}")
    warn_of_unknown(queue=schedule.queue, actor=actor)


@schedules.command(short_help="Send a schedule's job now.")
@click.argument("name")
@click.option(
    "--actors", "modules", multiple=True, metavar="MODULE", help="A module with actors; may be repeated. [default: actors]"
)
@reported
def run(name: str, modules: tuple[str, ...]) -> None:
    """Send the job of a schedule now, beside its ticks, and print its id. One that is paused runs as well."""
    _found(name)
    try:
        load_actors(modules or ("actors",))
    except ModuleNotFoundError as error:
        raise click.UsageError(str(error)) from None
    click.echo(switchyard.run_schedule(name).message_id)


@schedules.command(short_help="Have schedules make no more jobs.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@reported
def pause(names: tuple[str, ...]) -> None:
    """Have schedules make no more jobs until they are resumed, whatever is restarted or deployed meanwhile."""
    for name in names:
        _found(name)
        click.echo(f"paused {name}" if switchyard.pause_schedule(name) else f"{name} is paused already")


@schedules.command(short_help="Have schedules go on.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@reported
def resume(names: tuple[str, ...]) -> None:
    """Have schedules go on with the first tick from now on. What fell into the pause is not made up for."""
    for name in names:
        _found(name)
        resumed = switchyard.resume_schedule(name)
        following = _found(name)
        click.echo(
            f"resumed {name}; next {_both(following.next_tick_at, following.timezone)}" if resumed else f"{name} is not paused"
        )


@schedules.command(short_help="Remove created schedules.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@reported
def delete(names: tuple[str, ...]) -> None:
    """Remove created schedules; jobs that they made stay. Declared ones are removed in code."""
    for name in names:
        _found(name)
        switchyard.delete_schedule(name)
        click.echo(f"deleted {name}")


@schedules.command("next", short_help="When a schedule comes next.")
@click.argument("name", required=False)
@click.option("--cron", callback=_cron, metavar="CRON", help="An expression instead of a schedule, to try it out.")
@click.option("--timezone", callback=_timezone, metavar="ZONE", help="Its time zone. [default: UTC, or the schedule's]")
@click.option("-n", "--count", type=click.IntRange(1, 1_000), default=5, show_default=True, help="How many times.")
@as_json
@reported
def next_(name: str | None, cron: str | None, timezone: str | None, count: int, as_json: bool) -> None:
    """Print when a schedule, or an expression, comes next: in UTC, and in its time zone if that is another."""
    if (name is None) == (cron is None):
        raise click.UsageError("give the NAME of a schedule, or an expression with --cron")
    if name is not None:
        schedule = _found(name)
        timing = Timing(schedule.expression, timezone or schedule.timezone)
    else:
        timing = Timing(cron or "", timezone or "UTC")
    ticks = timing.next(count)
    if as_json:
        local = [tick.astimezone(timing.cron.zone).isoformat() for tick in ticks]
        say_json({"cron": timing.cron.expression, "timezone": timing.timezone, "utc": ticks, "local": local})
        return
    notes = (f"cron {timing.cron.expression}, time zone {timing.timezone}",)
    # Where the zone keeps UTC under whatever name, once is enough.
    elsewhere = any(tick.astimezone(timing.cron.zone).utcoffset() for tick in ticks)
    table = listing("UTC", *([timing.timezone] if elsewhere else []), notes=notes)
    for tick in ticks:
        here = f"{tick.astimezone(timing.cron.zone):%a {_FORM} %Z}"
        table.add_row(f"{tick:%a} {utc(tick)}", *([here] if elsewhere else []))
    print_listing(table)


class _NoSuchSchedule(SwitchyardError):
    """No schedule has this name; the text says which are like it."""


def _found(name: str) -> Schedule:
    schedule = switchyard.get_schedule(name)
    if schedule is None:
        others = [other.name for other in switchyard.schedules()]
        raise _NoSuchSchedule(f"no schedule has the name {name!r}{meant(name, others)}")
    return schedule


def _describe(schedule: Schedule) -> None:
    call = ", ".join([*map(repr, schedule.args), *(f"{name}={value!r}" for name, value in schedule.kwargs.items())])
    print_details(
        [
            ("name", f"{schedule.name} ({schedule.source})"),
            ("runs", f"{schedule.actor}({call})" + (f" on queue {schedule.queue}" if schedule.queue else "")),
            ("cron", f"{schedule.expression}  {schedule.timezone}"),
            ("missed", f"{schedule.catch_up}, up to {span(schedule.window)} back"),
            ("jitter", span(schedule.jitter)),
            ("state", _state(schedule)),
            ("last", off(schedule.last_tick_at, schedule.read_at)),
            ("next", _both(schedule.next_tick_at if schedule.due_at else None, schedule.timezone)),
            ("error", schedule.error),
        ]
    )


def _state(schedule: Schedule) -> str:
    if schedule.retired_at is not None:
        return "retired: declared by no living worker"
    if schedule.paused_at is not None:
        return "paused"
    if schedule.due_at is None:
        return "over"
    if (schedule.read_at - schedule.due_at).total_seconds() > _OVERDUE:
        return f"overdue: no living worker knows {schedule.actor}"
    return "active"


def _both(moment: datetime | None, timezone: str) -> str:
    if moment is None:
        return "never"
    here = str(utc(moment))
    try:
        zone: ZoneInfo | None = Timing("@daily", timezone).cron.zone
    except CronError:
        zone = None
    return here if zone is None or timezone == "UTC" else f"{here} ({moment.astimezone(zone).strftime(_FORM)} {timezone})"


def _plain(schedule: Schedule) -> dict[str, Any]:
    return asdict(schedule) | {"state": _state(schedule).partition(":")[0]}
