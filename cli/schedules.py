"""``switchyard schedules``: look at schedules, make and remove them, pause them, run one now, and see when they come next."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import switchyard
from cli.loading import load_actors
from cli.reporting import reported
from cli.tables import listing, print_listing
from errors import CronError, ScheduleError, ScheduleNotFound
from ledger.schedules import Schedule
from runtime.timing import DEFAULT_WINDOW, POLICIES, Timing

_DASH: Final = "-"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
#: A schedule whose tick is overdue by more than this, in seconds, has nobody to make its job.
_OVERDUE: Final = 60.0
_FORM: Final = "%Y-%m-%d %H:%M:%S"

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


class _Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            self.fail("write seconds, or a number with s, m, h or d, such as 90 or 36h", param, ctx)
        return float(found[1]) * _UNITS[found[2].lower()]


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


@schedules.command("list", short_help="Every schedule, with its last and next time.")
@_as_json
@reported
def list_(as_json: bool) -> None:
    """List every schedule: what it runs, when it last did, and when it will."""
    found = switchyard.schedules()
    if as_json:
        _print({"schedules": [_plain(schedule) for schedule in found]})
        return
    if not found:
        click.echo("There are no schedules: give an actor periodic=cron(...), or make one with `switchyard schedules create`.")
        return
    headings = ("name", "actor", "cron", "time zone", "last", "next", "state")
    table = listing(*headings, whole=("name",), caption="times in UTC")
    for schedule in found:
        table.add_row(
            escape(schedule.name), escape(schedule.actor), schedule.expression, schedule.timezone, _utc(schedule.last_tick_at),
            _utc(schedule.next_tick_at if schedule.due_at else None), _state(schedule),
        )  # fmt: skip
    print_listing(table)


@schedules.command(short_help="One schedule, and what became of its latest ticks.")
@click.argument("name")
@click.option("-n", "--ticks", type=click.IntRange(1, 1_000), default=10, show_default=True, help="How many ticks.")
@_as_json
@reported
def show(name: str, ticks: int, as_json: bool) -> None:
    """Show one schedule, and its latest ticks with their jobs."""
    schedule = _found(name)
    passed = switchyard.schedule_ticks(name, ticks)
    if as_json:
        _print(_plain(schedule) | {"ticks": [asdict(tick) for tick in passed]})
        return
    _describe(schedule)
    if not passed:
        click.echo("\nNo tick has come yet.")
        return
    table = Table(caption="times in UTC")
    for heading in ("tick", "made", "job", "state"):
        table.add_column(heading, no_wrap=heading != "state")
    for tick in passed:
        state = tick.error or tick.state or ("gone" if tick.job_id else _DASH)
        table.add_row(_utc(tick.tick_at), _utc(tick.made_at), tick.job_id or _DASH, escape(state))
    Console().print(table)


@schedules.command(short_help="Make a schedule in the ledger.")
@click.argument("name")
@click.argument("actor")
@click.argument("cron")
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="An IANA name, such as Europe/Berlin.")
@click.option(
    "--args", type=_Json(list, "list"), default="[]", metavar="JSON", help="Positional arguments, such as '[\"eu\", 5]'."
)
@click.option("--kwargs", type=_Json(dict, "object"), default="{}", metavar="JSON", help="Arguments by name.")
@click.option("--queue", metavar="QUEUE", help="Where its jobs go. [default: the actor's]")
@click.option(
    "--catch-up", type=click.Choice(POLICIES), default="skip", show_default=True, help="What becomes of ticks that were missed."
)
@click.option("--window", type=_Duration(), default=DEFAULT_WINDOW, metavar="DURATION", help="How far back. [default: 1d]")
@click.option("--jitter", type=_Duration(), default=0.0, metavar="DURATION", help="Make each job up to so much later.")
@_as_json
@reported
def create(name: str, actor: str, cron: str, as_json: bool, **fields: Any) -> None:
    """Make a schedule NAME that calls ACTOR when CRON says.

    CRON is minute, hour, day of the month, month, day of the week; or six fields with the second first; or @daily and the like:

        switchyard schedules create nightly-eu export_data "30 2 * * *" --timezone Europe/Berlin --args '["eu"]'
    """
    schedule = switchyard.create_schedule(name, actor, cron, fields.pop("args"), fields.pop("kwargs"), **fields)
    if as_json:
        _print(_plain(schedule))
    else:
        click.echo(f"created {name}; its first job comes {_both(schedule.next_tick_at, schedule.timezone)}")


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
        raise ScheduleError(name, str(error)) from None
    click.echo(switchyard.run_schedule(name).message_id)


@schedules.command(short_help="Have schedules make no more jobs.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@reported
def pause(names: tuple[str, ...]) -> None:
    """Have schedules make no more jobs until they are resumed, whatever is restarted or deployed meanwhile."""
    for name in names:
        click.echo(f"paused {name}" if switchyard.pause_schedule(name) else f"{name} is paused already")


@schedules.command(short_help="Have schedules go on.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@reported
def resume(names: tuple[str, ...]) -> None:
    """Have schedules go on with the first tick from now on. What fell into the pause is not made up for."""
    for name in names:
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
        switchyard.delete_schedule(name)
        click.echo(f"deleted {name}")


@schedules.command("next", short_help="When a schedule comes next.")
@click.argument("name", required=False)
@click.option("--cron", metavar="CRON", help="An expression instead of a schedule, to try it out.")
@click.option("--timezone", metavar="ZONE", help="Its time zone. [default: UTC, or the schedule's]")
@click.option("-n", "--count", type=click.IntRange(1, 1_000), default=5, show_default=True, help="How many times.")
@_as_json
@reported
def next_(name: str | None, cron: str | None, timezone: str | None, count: int, as_json: bool) -> None:
    """Print when a schedule, or an expression, comes next: in UTC, and in its time zone."""
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
        _print(
            {"cron": timing.cron.expression, "timezone": timing.timezone, "utc": [_iso(tick) for tick in ticks], "local": local}
        )
        return
    table = Table(title=f"{timing.cron.expression}  {timing.timezone}")
    table.add_column("UTC", no_wrap=True)
    table.add_column(timing.timezone, no_wrap=True)
    for tick in ticks:
        table.add_row(tick.strftime(f"%a {_FORM}"), tick.astimezone(timing.cron.zone).strftime(f"%a {_FORM} %Z"))
    Console().print(table)


def _found(name: str) -> Schedule:
    schedule = switchyard.get_schedule(name)
    if schedule is None:
        raise ScheduleNotFound(name)
    return schedule


def _describe(schedule: Schedule) -> None:
    call = ", ".join([*map(repr, schedule.args), *(f"{name}={value!r}" for name, value in schedule.kwargs.items())])
    lines = [
        ("name", f"{schedule.name} ({schedule.source})"),
        ("runs", f"{schedule.actor}({call})" + (f" on queue {schedule.queue}" if schedule.queue else "")),
        ("cron", f"{schedule.expression}  {schedule.timezone}"),
        ("missed", f"{schedule.catch_up}, up to {schedule.window:,.0f} s back"),
        ("jitter", f"{schedule.jitter:g} s"),
        ("state", _state(schedule)),
        ("next", _both(schedule.next_tick_at if schedule.due_at else None, schedule.timezone)),
    ]
    if schedule.error:
        lines.append(("error", schedule.error))
    for label, value in lines:
        click.echo(f"{label:<8} {value}")


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
    here = f"{_utc(moment)} UTC"
    try:
        zone: ZoneInfo | None = Timing("@daily", timezone).cron.zone
    except CronError:
        zone = None
    return here if zone is None or timezone == "UTC" else f"{here} ({moment.astimezone(zone).strftime(_FORM)} {timezone})"


def _utc(moment: datetime | None) -> str:
    return _DASH if moment is None else moment.astimezone(UTC).strftime(_FORM)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _plain(schedule: Schedule) -> dict[str, Any]:
    return asdict(schedule) | {"state": _state(schedule).partition(":")[0]}


def _print(value: Any) -> None:
    click.echo(json.dumps(value, default=lambda moment: _iso(moment) if isinstance(moment, datetime) else str(moment)))
