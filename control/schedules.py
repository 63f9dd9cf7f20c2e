"""Schedules, as people steer them: look, make, change, pause, run now.

A *declared* schedule stands in code (``periodic=``) and is changed there; it can be paused and run by hand. A *created* one stands in
the ledger alone and is changed by these verbs. Each is one guarded statement; what depends on the calendar is worked out here and written
if the schedule is still what it was, else once more. Keepers see a change within a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from dramatiq import Actor, Message

from brokers.broker import SwitchyardBroker
from control import access
from errors import PayloadError, ScheduleError, ScheduleExists, ScheduleNotFound
from ledger import schedules as ledger_schedules
from ledger.schedules import Schedule, Stored, Tick
from middleware.payload import check_arguments
from middleware.periodic import MAX_NAME
from middleware.secrets import Secrets
from runtime.encoding import encode_options, encode_payload
from runtime.timing import DEFAULT_WINDOW, CatchUp, Timing
from settings import check_queue

#: What a schedule says itself, so that its messages cannot.
_RESERVED: Final = ("delay", "schedule", "tick_at", "scheduled_at", "periodic")
#: How often a change that met another one is tried.
_ROUNDS: Final = 5
#: Most ticks in one answer.
MAX_TICKS: Final = 1_000


def cron(
    expression: str,
    timezone: str = "UTC",
    catch_up: CatchUp = "skip",
    *,
    window: float | timedelta = DEFAULT_WINDOW,
    jitter: float | timedelta = 0.0,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Timing:
    """When an actor's jobs come by the clock: ``@dramatiq.actor(periodic=cron("0 8 * * mon-fri", timezone="Europe/Berlin"))``.

    Parameters:
        expression: minute, hour, day of the month, month, day of the week; or six fields with the second first; or ``@daily`` and the like.
        timezone: an IANA name. A time that the clocks skip comes right after the gap, one that they show twice comes once.
        catch_up: what becomes of ticks that nobody acted on within a minute: ``skip`` them, make up for the ``last``, or for ``all``.
        window: how far back that goes, in seconds or as a ``timedelta``; default a day.
        jitter: each job is made up to so much later (seconds or ``timedelta``), always the same for the same tick; default 0.
        args: what the actor is called with; ``kwargs``: the same, by name.

    Raises:
        CronError: it cannot work; where an actor is declared with it, an ``OptionError`` that names the actor.
    """
    return Timing(expression, timezone, catch_up, window, jitter, args, kwargs)


def schedules() -> list[Schedule]:
    """Every schedule, declared or created, by name; retired ones (no living process declares them) too."""
    return access.ask(ledger_schedules.schedules)


def get_schedule(name: str) -> Schedule | None:
    """The schedule of this name; None when there is none. A declared one has the name of its actor."""
    return access.ask(lambda connection: ledger_schedules.schedule(connection, name))


def schedule_ticks(name: str, limit: int = 20) -> list[Tick]:
    """The latest ticks of a schedule that were acted on (a week of them is kept), with their jobs, the latest first.

    Raises:
        ScheduleNotFound: there is no such schedule.
        ValueError: ``limit`` is not 1 to 1,000.
    """
    if not 1 <= limit <= MAX_TICKS:
        raise ValueError(f"limit {limit} is out of range: 1 to {MAX_TICKS} ticks")
    _known(name)
    return access.ask(lambda connection: ledger_schedules.ticks(connection, name, limit))


def create_schedule(
    name: str,
    actor: str | Actor[Any, Any],
    cron: str | Timing,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    queue: str | None = None,
    options: Mapping[str, Any] | None = None,
    **timing: Any,
) -> Schedule:
    """Make a schedule in the ledger; its first job comes with the first tick from now on.

    Parameters:
        name: its own, up to 200 printable characters.
        actor: the actor, or its name. This process need not know it: its jobs are made by workers that do.
        cron: an expression, or what ``cron()`` returns.
        queue: where its jobs go; default the actor's.
        options: what its messages are sent with, as in ``send_with_options`` (``priority``, ``max_retries``, ``tags`` ...).
        timing: ``timezone``, ``catch_up``, ``window``, ``jitter``, as in ``cron()``.

    Raises:
        ScheduleExists: there is one of this name.
        ScheduleError, CronError, PayloadError, OptionError: it cannot work; nothing was stored.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ScheduleError(f"{name!r:.50}", f"a name has 1 to {MAX_NAME} printable characters")
    _known_options(_name_of(actor), options)
    given = _timing(cron, timing)
    args, kwargs = tuple(args) or tuple(given.args), dict(kwargs or given.kwargs or {})
    wanted = _checked(name, _name_of(actor), given, tuple(args), kwargs, queue, dict(options or {}))
    if not access.ask(lambda connection: ledger_schedules.create(connection, _dated(wanted, given))):
        raise ScheduleExists(name)
    return _known(name)


def update_schedule(
    name: str,
    *,
    actor: str | Actor[Any, Any] | None = None,
    cron: str | Timing | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    options: Mapping[str, Any] | None = None,
    **timing: Any,
) -> Schedule:
    """Change a created schedule; what is not given stays. With other times it goes on with the first tick from now on.

    Parameters:
        queue: an empty text: the actor's own again.
        timing: ``timezone``, ``catch_up``, ``window``, ``jitter``, as in ``cron()``.

    Raises:
        ScheduleNotFound: there is no such schedule.
        ScheduleError: it is declared in code, and changed there; or, as CronError, PayloadError and OptionError, it cannot work.
    """

    def change(found: Schedule) -> bool:
        _known_options(found.actor if actor is None else _name_of(actor), options)
        if found.source == "declared":
            raise ScheduleError(name, f"it is declared by the actor {found.actor!r}; change periodic= there (or pause it here)")
        before = Timing(found.expression, found.timezone, found.catch_up, found.window, found.jitter)  # type: ignore[arg-type]
        given = _timing(before if cron is None else _over(cron, before), timing)
        wanted = _checked(
            name,
            found.actor if actor is None else _name_of(actor),
            given,
            found.args if args is None else tuple(args),
            found.kwargs if kwargs is None else dict(kwargs),
            found.queue if queue is None else (queue or None),
            found.options if options is None else dict(options),
        )
        same = (before.expression, before.timezone) == (given.cron.expression, given.timezone)
        dated = _dated(wanted, given, found if same else None)
        return access.ask(lambda connection: ledger_schedules.update(connection, dated, found.version))

    return _changed(name, change)


def delete_schedule(name: str) -> None:
    """Remove a created schedule; jobs that it made stay.

    Raises:
        ScheduleNotFound: there is no such schedule.
        ScheduleError: it is declared in code: remove ``periodic=`` there, or pause it.
    """
    found = _known(name)
    if found.source == "declared" and found.retired_at is None:
        raise ScheduleError(name, f"it is declared by the actor {found.actor!r}; remove periodic= there (or pause it here)")
    if not access.ask(lambda connection: ledger_schedules.delete(connection, name)):
        raise ScheduleNotFound(name)


def pause_schedule(name: str) -> bool:
    """Have a schedule make no more jobs, until it is resumed, also across restarts and deployments. False: it is paused already.

    Raises:
        ScheduleNotFound: there is no such schedule.
    """
    _known(name)
    return access.ask(lambda connection: ledger_schedules.pause(connection, name))


def resume_schedule(name: str) -> bool:
    """Have a schedule go on, with the first tick from now on; those of the pause are not made up for. False: it is not paused.

    Raises:
        ScheduleNotFound: there is no such schedule.
    """
    resumed = False

    def go_on(found: Schedule) -> bool:
        nonlocal resumed
        if found.paused_at is None:
            return True
        timing = Timing(found.expression, found.timezone, jitter=found.jitter)
        following = timing.cron.after(found.read_at)
        due = None if following is None else timing.due(name, following)
        resumed = access.ask(lambda connection: ledger_schedules.resume(connection, name, following, due, found.version))
        return resumed

    _changed(name, go_on)
    return resumed


def run_schedule(name: str) -> Message[Any]:
    """Send a schedule's job now, beside its ticks; also of one that is paused. Returns the message, as ``send()`` does.

    Raises:
        ScheduleNotFound: there is no such schedule.
        ScheduleError: this process does not know the actor; import its module first.
    """
    found = _known(name)
    broker = access.broker()
    actor = broker.actors.get(found.actor)
    if actor is None:
        way = "import the module that declares it, or name it (`switchyard schedules run --actors MODULE`)"
        raise ScheduleError(name, f"this process does not know its actor {found.actor!r}; {way}")
    message: Message[Any] = actor.message_with_options(
        args=found.args, kwargs=found.kwargs, **{**found.options, "schedule": name}
    )
    return broker.enqueue(message.copy(queue_name=found.queue or message.queue_name))


def _known(name: str) -> Schedule:
    found = get_schedule(name)
    if found is None:
        raise ScheduleNotFound(name)
    return found


def _changed(name: str, change: Callable[[Schedule], bool]) -> Schedule:
    """Read a schedule and change it, as often as somebody else was faster."""
    for _ in range(_ROUNDS):
        if change(_known(name)):
            return _known(name)
    raise ScheduleError(name, "others change it all the time; nothing was changed, try again")


def _name_of(actor: str | Actor[Any, Any]) -> str:
    return actor.actor_name if isinstance(actor, Actor) else actor


def _known_options(actor: str, options: Mapping[str, Any] | None) -> None:
    """Raises: OptionError: one of them is known to nobody. Those that stand in the ledger already are not asked about again."""
    broker = access.broker()
    if options and isinstance(broker, SwitchyardBroker):
        broker.message_options.check_names(actor, options)


def _timing(given: str | Timing, more: Mapping[str, Any]) -> Timing:
    unknown = set(more) - {"timezone", "catch_up", "window", "jitter"}
    if unknown:
        raise TypeError(f"unknown argument {sorted(unknown)[0]!r}")
    fields = (
        {"expression": given}
        if isinstance(given, str)
        else {
            "expression": given.expression,
            "timezone": given.timezone,
            "catch_up": given.catch_up,
            "window": given.window,
            "jitter": given.jitter,
            "args": given.args,
            "kwargs": given.kwargs,
        }
    )
    timing = Timing(**(fields | dict(more)))
    timing.check()
    return timing


def _over(cron: str | Timing, before: Timing) -> Timing:
    """An expression alone leaves the rest as it was."""
    if isinstance(cron, Timing):
        return cron
    return Timing(cron, before.timezone, before.catch_up, before.window, before.jitter)


def _checked(
    name: str,
    actor: str,
    timing: Timing,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    queue: str | None,
    options: dict[str, Any],
) -> Stored:
    reserved = [option for option in _RESERVED if option in options]
    if reserved:
        raise ScheduleError(name, f"options may not name {reserved[0]!r}; the schedule says when its jobs come")
    if queue is not None:
        try:
            check_queue(queue)
        except ValueError as error:
            raise ScheduleError(name, str(error)) from None
    known = access.broker().actors.get(actor)
    if known is not None:
        try:
            check_arguments(known, args, kwargs)
        except PayloadError as error:
            raise ScheduleError(name, str(error)) from None
        if (options.get("unique_mode") or known.options.get("unique_mode")) == "debounce":
            raise ScheduleError(name, f"the actor {actor!r} is debounced, which is not for jobs that come by the clock")
    for middleware in access.broker().middleware:
        if isinstance(middleware, Secrets):
            middleware.refuse_in_schedule(actor, args, kwargs)
    return Stored(
        name=name,
        actor=actor,
        payload=encode_payload(actor, args, kwargs, sys.maxsize),
        expression=timing.cron.expression,
        timezone=timing.timezone,
        catch_up=timing.catch_up,
        window=timing.window_seconds,
        jitter=timing.jitter_seconds,
        next_tick_at=None,
        due_at=None,
        queue=queue,
        options=encode_options(actor, options, sys.maxsize),
    )


def _dated(wanted: Stored, timing: Timing, before: Schedule | None = None) -> Stored:
    """With its next tick: where it was before, or the first from now on by the database's clock."""
    following = before.next_tick_at if before is not None else timing.cron.after(access.ask(ledger_schedules.clock))
    return wanted._replace(next_tick_at=following, due_at=None if following is None else timing.due(wanted.name, following))
