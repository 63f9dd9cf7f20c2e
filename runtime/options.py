"""Where an option's value comes from: the message, then its actor, then a default. Names and milliseconds are Dramatiq's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, Protocol

from errors import OptionError
from ledger.records import JobControl

#: Dramatiq's own defaults: 20 retries, from 15 seconds up to 7 days apart; an actor may run for 10 minutes.
DEFAULT_MAX_RETRIES: Final = 20
DEFAULT_MIN_BACKOFF_MS: Final = 15_000
DEFAULT_MAX_BACKOFF_MS: Final = 604_800_000
DEFAULT_TIME_LIMIT_MS: Final = 600_000
#: Longest period, in seconds; far beyond it Postgres has no dates left.
MAX_PERIOD: Final = 100 * 365 * 86_400.0


class HasOptions(Protocol):
    """A message or an actor."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options it was made with."""


def option(name: str, message: HasOptions, actor: HasOptions | None, default: Any = None) -> Any:
    """The value of an option; a None on the message overrides the actor's, as in Dramatiq (``max_retries=None``: no bound)."""
    if name in message.options:
        return message.options[name]
    if actor is not None and name in actor.options:
        return actor.options[name]
    return default


def max_attempts(message: HasOptions, actor: HasOptions | None) -> int | None:
    """How often a message may fail before it is dead: ``max_retries`` + 1; None without bound."""
    retries = option("max_retries", message, actor, DEFAULT_MAX_RETRIES)
    return None if retries is None else int(retries) + 1


class Controls(Protocol):
    """A middleware that has something to say about a job's control, such as the limits that it counts against."""

    def control_of(self, message: Any, actor: Any, payload: str) -> Mapping[str, Any] | None:
        """Fields of ``JobControl``, or None: nothing about this message. ``payload`` is the JSON text of its arguments."""


def control(message: HasOptions, actor: HasOptions | None, controls: Iterable[Controls], payload: str) -> JobControl | None:
    """What a message's options, and the middlewares, say that most messages have nothing to say of; None: nothing."""
    fields: dict[str, Any] = {}
    for middleware in controls:
        fields |= middleware.control_of(message, actor, payload) or {}
    if options := message.options:
        # Dramatiq's own name for the group that a message belongs to.
        schedule, batch = options.get("schedule"), options.get("group_completion_uuid")
        if schedule is not None or batch is not None:
            fields |= {"schedule": schedule, "tick_at": options.get("tick_at"), "batch_id": batch}
    return JobControl(**fields) if fields else None


def max_lost(message: HasOptions, actor: HasOptions | None) -> int | None:
    """How many losses make a message dead: 1 with ``on_worker_lost="dead"``; None: the setting MAX_LOST."""
    return 1 if option("on_worker_lost", message, actor) == "dead" else None


def check_numbers(actor_name: str, options: Mapping[str, Any], wanted: Mapping[str, str], *, least: float = 0) -> None:
    """Refuse values that would only be found out when a job fails or runs; None is always fine.

    Parameters:
        options: of an actor or a message.
        wanted: the options to look at, each with its unit.
        least: the smallest value that can work.

    Raises:
        OptionError: one of them is no finite number, or too small.
    """
    for name, unit in wanted.items():
        value = options.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < least:
            raise OptionError(actor_name, name, f"{value!r:.50} is no number of {least:g} or more ({unit})")


def period_seconds(actor_name: str, options: Mapping[str, Any], name: str) -> float | None:
    """A period among options (of an actor or a message) in seconds; None where there is none.

    Raises:
        OptionError: it is neither a number of seconds above 0 nor such a ``timedelta``, or longer than 100 years.
    """
    value = options.get(name)
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_PERIOD:
        raise OptionError(actor_name, name, f"{value!r:.50} is no period above 0 and up to 100 years (seconds, or a timedelta)")
    return float(seconds)
