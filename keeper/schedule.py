"""Schedules: jobs that come by the clock, made by whichever keeper is there when a tick is due.

    declare   a worker says which schedules its actors have, at its start and with every third of a lease; the schedule rows follow
    tick      due ─► locked ─► per tick: the right to it, then its job, sent like any other ─► the next tick; all in one transaction

Any number of keepers may run. SKIP LOCKED keeps them from waiting for each other, and the key of ``tick`` decides: a tick makes one job,
also beside ``periodiq``, also when the clock was set back. A keeper makes jobs of the actors that it knows, so that their options count,
and leaves the others. If the process dies in a turn, all of it is rolled back, and another keeper does it. What a long absence left behind
is the schedule's catch-up policy's (``runtime.timing``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from time import monotonic
from typing import Any, Final, Protocol
from uuid import uuid4

import psycopg
from dramatiq import Message
from psycopg import Connection
from structlog.stdlib import get_logger

from errors import CronError, LedgerUnavailable
from keeper.duty import Keeping
from ledger import schedules
from ledger.database import BoundedConnection, is_outage
from ledger.schedules import DueSchedule, Passed, Stored, Unsettled
from runtime.encoding import clean_text
from runtime.enlist import enlist
from runtime.timing import Timing
from settings import Settings

logger = get_logger(__name__)

#: Schedules of one turn.
CHUNK: Final = 20
#: Seconds until the next turn while there may be more.
SOON: Final = 0.02
#: Seconds until the next turn when another keeper is at what is due.
BUSY: Final = 0.25
#: Longest time between two turns, in seconds; the keeper's looks find what is due before (``keeper.loop``).
REST: Final = 60.0
#: How long a schedule that cannot be read here is left alone, in seconds: a process with other code may be able to.
PUT_OFF: Final = 60.0
#: How often a process without schedules of its own looks for those that nobody declares any more, and for what is old, in seconds.
SLOWLY: Final = 60.0

_MAX_ERROR: Final = 500
_NAME: Final = "schedules"


class Sends(Protocol):
    """The broker, as far as ticks need it."""

    actors: dict[str, Any]

    def enqueue(self, message: Message[Any]) -> Message[Any]:
        """Write a job, inside ``enlist`` on its connection."""


def rest(_: Settings) -> float:
    """Seconds between two turns when nothing is known of the next tick."""
    return REST


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: make the jobs of what is due. Returns the seconds until the next tick, as far as it is known."""
    actors = list(keeping.broker.actors)
    if not actors:
        return None
    made, more = tick(connection, keeping.broker)
    if made:
        keeping.node.counters.add("ticks", made)
    if more:
        return SOON
    wait = schedules.until_next_tick(connection, actors)
    return None if wait is None else max(wait, SOON if wait > 0 else BUSY)


def tick(connection: BoundedConnection, broker: Sends, now: datetime | None = None) -> tuple[int, bool]:
    """Make the jobs of up to CHUNK schedules that are due. Returns how many jobs, and whether there may be more to make at once.

    Parameters:
        now: instead of the database's clock, for tests.
    """
    made, more = 0, False
    with connection.transaction():
        found = schedules.due(connection, list(broker.actors), CHUNK, now)
        passed = []
        for schedule in found:
            jobs, next_of_it = _make(connection, broker, schedule)
            made += jobs
            more = more or (next_of_it.due_at is not None and next_of_it.due_at <= schedule.now)
            passed.append(next_of_it)
        if passed:
            schedules.pass_on(connection, passed)
    return made, more or len(found) == CHUNK


def _make(connection: BoundedConnection, broker: Sends, due: DueSchedule) -> tuple[int, Passed]:
    """The jobs of one schedule's ticks, and what follows for it."""
    timing = Timing(due.expression, due.timezone, due.catch_up, due.window, due.jitter)
    try:
        caught = timing.catch(due.name, due.next_tick_at, due.now)
        following = None if caught.next is None else timing.due(due.name, caught.next)
    except CronError as error:
        logger.error("a schedule cannot be read here, trying again in a minute", schedule=due.name, error=str(error))
        later = due.now.timestamp() + PUT_OFF
        return 0, Passed(due.name, None, due.next_tick_at, datetime.fromtimestamp(later, due.now.tzinfo), str(error))
    if caught.missed is not None:
        logger.warning(
            "ticks were missed and are not made up for",
            schedule=due.name,
            since=caught.missed.isoformat(),
            catch_up=due.catch_up,
            made=len(caught.ticks),
        )
    jobs, problem = 0, None
    for at in caught.ticks:
        written, problem = _make_one(connection, broker, due, at)
        jobs += written
    return jobs, Passed(due.name, caught.ticks[-1] if caught.ticks else None, caught.next, following, problem)


def _make_one(connection: BoundedConnection, broker: Sends, due: DueSchedule, at: datetime) -> tuple[int, str | None]:
    """The job of one tick, if nobody made it before. Returns how many were made, and why none could be."""
    message_id = str(uuid4())
    try:
        with connection.transaction():
            if not schedules.take_tick(connection, due.name, at, message_id):
                return 0, None
            with enlist(connection, None):
                sent = broker.enqueue(_message(broker, due, at, message_id))
            if sent.message_id != message_id:
                # Another job stands for this one: a key of its actor's says that they are the same.
                schedules.note_tick(connection, due.name, at, sent.message_id)
            return 1, None
    except Exception as error:
        # What an actor's options are made of is user code, which may raise anything; it must not hold up other schedules.
        if isinstance(error, LedgerUnavailable) or (isinstance(error, psycopg.Error) and is_outage(error, connection)):
            # The whole turn is rolled back; whoever has the next one makes the job.
            raise
        # The tick has no job: that is on record, with the reason, and the schedule goes on.
        problem = clean_text(f"{type(error).__name__}: {error}", _MAX_ERROR)
        logger.error("a tick has no job", schedule=due.name, tick_at=at.isoformat(), error=problem)
        if schedules.take_tick(connection, due.name, at):
            schedules.note_tick(connection, due.name, at, None, problem)
        return 0, problem


def _message(broker: Sends, due: DueSchedule, at: datetime, message_id: str) -> Message[Any]:
    message: Message[Any] = broker.actors[due.actor].message_with_options(
        args=tuple(due.payload["args"]),
        kwargs=due.payload["kwargs"],
        **(due.options or {}),
        schedule=due.name,
        tick_at=at.astimezone(UTC).isoformat(),
    )
    return message.copy(message_id=message_id, queue_name=due.queue or message.queue_name)


# Declaring.


def often(settings: Settings) -> float:
    """Seconds between two declarations."""
    return settings.lease / 3


def declare(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: say which schedules this process has in its code, and have the schedule rows follow whoever counts."""
    memory = keeping.memory.setdefault(_NAME, {"since": monotonic(), "entered": False, "slowly_at": 0.0, "clashes": []})
    definitions = definitions_of(keeping.broker.actors)
    lease = keeping.settings.lease
    in_touch_since = max(memory["since"], keeping.connected_again_at or 0.0)
    settled = monotonic() - in_touch_since >= lease
    if definitions:
        schedules.declare(connection, definitions, lease, entering=not memory["entered"])
        memory["entered"] = True
        _, clashes = settle(connection, settled=settled)
        for name in clashes if clashes != memory["clashes"] else ():
            logger.warning("an actor's schedule does not run: somebody created one of the same name", schedule=name)
        memory["clashes"] = clashes
    if monotonic() >= memory["slowly_at"]:
        memory["slowly_at"] = monotonic() + min(SLOWLY, 10 * lease)
        schedules.forget(connection)
        for name in schedules.retire(connection) if settled else ():
            logger.info("no process declares this schedule any more, it retires", schedule=name)
    return None if definitions else min(SLOWLY, 10 * lease)


def definitions_of(actors: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The schedules of these actors, by name: digest and definition."""
    found = {}
    for name, actor in actors.items():
        timing = getattr(actor, "options", {}).get("periodic")
        if isinstance(timing, Timing):
            text = schedules.as_text(
                {
                    "payload": {"args": list(timing.args), "kwargs": dict(timing.kwargs or {})},
                    "expression": timing.cron.expression,
                    "timezone": timing.timezone,
                    "catch_up": timing.catch_up,
                    "window": timing.window_seconds,
                    "jitter": timing.jitter_seconds,
                }
            )
            found[name] = (sha256(text.encode()).hexdigest(), text)
    return found


def settle(connection: Connection[Any], *, settled: bool, now: datetime | None = None) -> tuple[list[str], list[str]]:
    """Have schedules follow the declarations that count. Returns the names of those that changed, and of those that somebody created.

    Parameters:
        settled: see ``ledger.routes.settle``.
        now: instead of the database's clock, for tests.
    """
    changed, clashes = [], []
    for entry in schedules.unsettled(connection, settled=settled, now=now):
        if entry.source == "created":
            clashes.append(entry.name)
            continue
        try:
            wanted = _wanted(entry)
        except CronError as error:
            # Declared by a process with other code, or other time zones; it settles it itself.
            logger.error("a declared schedule cannot be read here", schedule=entry.name, error=str(error))
            continue
        if schedules.settle(connection, wanted, entry.digest, entry.version):
            logger.info("schedule declared", schedule=entry.name, expression=wanted.expression, timezone=wanted.timezone)
            changed.append(entry.name)
    return changed, clashes


def _wanted(entry: Unsettled) -> Stored:
    """What a schedule is to be. Where its times stay the same it goes on where it was, so that what was missed can be made up for."""
    definition = entry.definition
    timing = Timing(
        definition["expression"], definition["timezone"], definition["catch_up"], definition["window"], definition["jitter"]
    )
    same = (entry.expression, entry.timezone) == (timing.expression, timing.timezone)
    following = entry.next_tick_at if same else timing.cron.after(entry.now)
    return Stored(
        name=entry.name,
        actor=entry.name,
        payload=schedules.as_text(definition["payload"]),
        expression=timing.expression,
        timezone=timing.timezone,
        catch_up=timing.catch_up,
        window=timing.window_seconds,
        jitter=timing.jitter_seconds,
        next_tick_at=following,
        due_at=None if following is None or entry.paused else timing.due(entry.name, following),
    )
