"""What ``periodiq`` sends beside us doubles nothing: a message that says for when it is belongs to that minute's tick.

    periodiq   actor.send_with_options(scheduled_at=...)   ─►   the tick has its job: that one is meant
                                                           ─►   it has none yet: this is it, written with the tick in one transaction

The ledger's schedule counts, not the sender's: while it is paused, or where it has no tick in that minute, nothing is sent, which is
logged. A sender whose actor has no schedule in the ledger yet is believed. Without Postgres nothing can be sent, as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from dramatiq import Message
from structlog.stdlib import get_logger

from errors import CronError, OptionError
from ledger import schedules
from ledger.database import BoundedConnection, Database
from runtime.enlist import enlist
from runtime.timing import Timing

logger = get_logger(__name__)

#: The option in which periodiq says for when a message is.
FOLDED: Final = "scheduled_at"


class Sends(Protocol):
    """The broker, as far as folding needs it."""

    database: Database
    actors: Any

    def enqueue(self, message: Message[Any]) -> Message[Any]:
        """Write a job, inside ``enlist`` on its connection."""


def folded_into(broker: Sends, message: Message[Any]) -> Message[Any] | None:
    """The message of the tick that this one is meant for; None: its actor comes by no clock, and it is a message like any other.

    Raises:
        OptionError: ``scheduled_at`` is no time.
        LedgerUnavailable: as ``send()``.
    """
    actor = broker.actors.get(message.actor_name)
    timing = None if actor is None else actor.options.get("periodic")
    if not isinstance(timing, Timing):
        return None
    moment = _moment(message)
    options = {name: value for name, value in message.options.items() if name != FOLDED}
    return broker.database.run(lambda connection: _fold(broker, connection, message, options, timing, moment))


def _fold(
    broker: Sends,
    connection: BoundedConnection,
    message: Message[Any],
    options: Mapping[str, Any],
    timing: Timing,
    moment: datetime,
) -> Message[Any]:
    name = message.actor_name
    stored = schedules.schedule(connection, name)
    tick = _tick(stored, timing, moment)
    if tick is None:
        logger.info("nothing was sent: the schedule is paused, or has no tick in that minute", schedule=name, scheduled_at=moment)
        return message
    with connection.transaction():
        # A tick that the keepers have passed was made, or given up, although nothing may be left of it.
        passed = stored is not None and (stored.next_tick_at is None or tick < stored.next_tick_at)
        if not passed and schedules.take_tick(connection, name, tick, message.message_id):
            plain: Message[Any] = Message(
                queue_name=message.queue_name,
                actor_name=name,
                args=message.args or (tuple(timing.args) if stored is None else stored.args),
                kwargs=message.kwargs or (dict(timing.kwargs or {}) if stored is None else stored.kwargs),
                options={**options, "schedule": name, "tick_at": tick.isoformat()},
                message_id=message.message_id,
                message_timestamp=message.message_timestamp,
            )
            with enlist(connection, None):
                sent = broker.enqueue(plain)
            if sent.message_id != message.message_id:
                schedules.note_tick(connection, name, tick, sent.message_id)
            return sent
        job = schedules.tick_job(connection, name, tick)
    logger.info("folded into a tick that has its job already", schedule=name, tick_at=tick, job_id=job)
    return message if job is None else message.copy(message_id=job)


def _tick(stored: schedules.Schedule | None, timing: Timing, moment: datetime) -> datetime | None:
    if stored is None:
        return timing.tick_in_minute(moment)
    if stored.paused_at is not None:
        return None
    try:
        return Timing(stored.expression, stored.timezone).tick_in_minute(moment)
    except CronError:
        return None


def _moment(message: Message[Any]) -> datetime:
    value = message.options[FOLDED]
    try:
        moment = datetime.fromisoformat(value)
        if moment.utcoffset() is not None:
            return moment
    except (TypeError, ValueError):
        pass
    raise OptionError(message.actor_name, FOLDED, f"{value!r:.50} is no time with a zone (ISO 8601)")
