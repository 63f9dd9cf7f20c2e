"""What stands in the columns of a job's row: read from its message and its actor, and refused when Postgres could not hold it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from dramatiq import Actor, Message, MessageProxy

from errors import OptionError
from ledger.records import Enqueued
from ledger.sealed import Envelope, Place
from runtime.options import option
from settings import check_queue

#: Dramatiq's largest integer priority that fits the column.
MAX_PRIORITY: Final = 2**31 - 1
_YEAR: Final = 365 * 86_400.0
#: Longest delay, in seconds; far beyond it Postgres has no dates left.
_MAX_DELAY: Final = 100 * _YEAR
NO_PRIORITY: Final = "{!r} is no integer of at most 32 bits; lower runs first, default 0"
_UUID_TEXT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@runtime_checkable
class Seals(Protocol):
    """The middleware that keeps arguments secret."""

    def opened(self, message: Message[Any]) -> Message[Any]:
        """The message with its arguments as the body gets them. Raises: PayloadError."""

    def sealed(self, message: Message[Any]) -> Message[Any]:
        """The message as it may be stored and shown. Raises: OptionError."""

    def place_at(self, actor_name: str, position: int) -> Place | None:
        """The secret argument at a position of a call of an actor."""

    def takers(self, message: Message[Any] | MessageProxy) -> tuple[Place, ...]:
        """The secret arguments that a job's result goes to. Raises: OptionError."""

    def seal_result(self, takers: Sequence[Place], result: Any, message_id: str) -> Envelope:
        """The result of a job, encrypted for them. Raises: OptionError."""


class Origin(NamedTuple):
    """What a row has from its message's options, its actor and its queue, and from the job that sent it."""

    priority: int
    max_attempts: int | None
    max_lost: int | None
    tags: list[str] | None
    max_age: float | None
    parent_id: str | None
    broker: str
    grace: float | None


def delay_seconds(message: Message[Any], delay: Any) -> float:
    """A delay in seconds; Dramatiq's numbers are milliseconds. Raises: OptionError."""
    if delay is None:
        return 0.0
    if isinstance(delay, timedelta):
        seconds = delay.total_seconds()
    elif isinstance(delay, int | float) and not isinstance(delay, bool):
        seconds = delay / 1000
    else:
        raise OptionError(message.actor_name, "delay", f"{delay!r:.50} is neither milliseconds nor a timedelta")
    if not math.isfinite(seconds) or seconds > _MAX_DELAY:
        raise OptionError(message.actor_name, "delay", f"{delay!r:.50} is more than {_MAX_DELAY / _YEAR:g} years")
    return seconds


def id_of(message: Message[Any]) -> str:
    """The message's id. Raises: OptionError: it is no UUID."""
    try:
        # Any form that Python reads is accepted; Dramatiq's own takes half as long this way.
        if not _UUID_TEXT.fullmatch(message.message_id):
            UUID(message.message_id)
    except (ValueError, AttributeError, TypeError):
        raise OptionError(message.actor_name, "message_id", f"{message.message_id!r:.50} is no UUID") from None
    return message.message_id


def queue_of(actor_name: str, queue: str) -> str:
    """The queue's name. Raises: OptionError: there can be none of that name."""
    try:
        check_queue(queue)
    except (ValueError, TypeError) as error:
        raise OptionError(actor_name, "queue_name", str(error)) from None
    return queue


def priority_of(message: Message[Any], actor: Actor[Any, Any] | None) -> int:
    """The message's priority, or else its actor's. Raises: OptionError."""
    value = message.options.get("priority")
    if value is None:
        value = 0 if actor is None else actor.priority
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_PRIORITY:
        raise OptionError(message.actor_name, "priority", NO_PRIORITY.format(value))
    return value


def max_age_of(message: Message[Any], actor: Actor[Any, Any] | None) -> float | None:
    """In milliseconds; what is longer than Postgres has dates for is no limit."""
    value = option("max_age", message, actor)
    return None if value is None or value > _MAX_DELAY * 1000 else float(value)


def tags_of(message: Message[Any], actor: Actor[Any, Any] | None) -> list[str] | None:
    """The message's tags, or else its actor's."""
    value = option("tags", message, actor)
    return None if value is None else list(value)


def first_message(message: Message[Any], entry: Enqueued) -> Message[Any]:
    """The message of the job that a key led to; where its row is gone, this one under that job's id."""
    first = entry.first
    if first is None:
        return message.copy(message_id=entry.message_id, options={"replayed": True})
    return Message(
        queue_name=first.queue,
        actor_name=message.actor_name,
        args=tuple(first.args),
        kwargs=first.kwargs,
        options=first.options | {"replayed": True},
        message_id=first.message_id,
        message_timestamp=first.created_ms,
    )
