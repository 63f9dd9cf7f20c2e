"""What the ledger knows of schedules: their rows, the ticks that were made, and which declarations count.

Every function is one guarded statement on the connection it is given. When ticks are is none of the ledger's business: it stores what
callers worked out (``runtime.timing``). ``now`` takes a ``datetime`` instead of the database's clock, for tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from psycopg import Connection

from ledger.sql import SQL

Conn = Connection[Any]

#: How long ticks are kept, and retired schedules, in seconds.
KEEP_TICKS: Final = 7 * 86_400.0
KEEP_RETIRED: Final = 30 * 86_400.0
#: Ticks that one statement forgets.
CHUNK: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule, as its row in the ledger has it. All times are aware, on the database's clock; durations are in seconds."""

    name: str
    actor: str
    #: The queue its jobs go to; None: the actor's.
    queue: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: What its messages are sent with, as in ``send_with_options``.
    options: dict[str, Any]
    expression: str
    timezone: str
    catch_up: str
    window: float
    jitter: float
    #: ``declared`` in code with ``periodic=``, or ``created`` at run time.
    source: Literal["declared", "created"]
    #: Raised by every change.
    version: int
    #: Since when it makes no jobs, because somebody said so; None: it does.
    paused_at: datetime | None
    #: Since when no living process declares it.
    retired_at: datetime | None
    #: The latest tick that was acted on.
    last_tick_at: datetime | None
    #: The first tick that nobody has dealt with; None: there is none any more.
    next_tick_at: datetime | None
    #: When that tick's job is made (its jitter later); None: it is not, as things stand.
    due_at: datetime | None
    #: Why the latest tick has no job although it was to have one.
    error: str | None
    created_at: datetime
    changed_at: datetime
    #: When this was read.
    read_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One tick of a schedule that was dealt with."""

    tick_at: datetime
    #: When its job was made.
    made_at: datetime
    #: Its job; None: there is none, and ``error`` says why.
    job_id: str | None
    error: str | None
    #: How the job stands; None: it is gone (pruned), or there is none.
    state: str | None


class DueSchedule(NamedTuple):
    """A schedule with a tick that is due, locked."""

    name: str
    actor: str
    queue: str | None
    payload: dict[str, Any]
    options: dict[str, Any] | None
    expression: str
    timezone: str
    catch_up: Any
    window: float
    jitter: float
    next_tick_at: datetime
    now: datetime


class Passed(NamedTuple):
    """What follows from having dealt with what was due."""

    name: str
    last_tick_at: datetime | None
    next_tick_at: datetime | None
    due_at: datetime | None
    error: str | None


class Unsettled(NamedTuple):
    """A declaration that counts, and what its schedule is now (None: there is none)."""

    name: str
    digest: str
    definition: dict[str, Any]
    source: str | None
    version: int | None
    expression: str | None
    timezone: str | None
    jitter: float | None
    next_tick_at: datetime | None
    last_tick_at: datetime | None
    paused: bool
    now: datetime


class Stored(NamedTuple):
    """What a schedule is to be. ``payload`` and ``options`` are JSON texts, already checked; durations are in seconds."""

    name: str
    actor: str
    payload: str
    expression: str
    timezone: str
    catch_up: str
    window: float
    jitter: float
    next_tick_at: datetime | None
    due_at: datetime | None
    queue: str | None = None
    options: str | None = None


def due(connection: Conn, actors: Sequence[str], limit: int, now: object = None) -> list[DueSchedule]:
    """Lock up to ``limit`` schedules of these actors that are due, until the transaction ends; those that others hold are passed by."""
    rows = connection.execute(SQL["due_schedules"], {"actors": list(actors), "limit": limit, "now": now}).fetchall()
    return [DueSchedule(*row) for row in rows]


def take_tick(connection: Conn, schedule: str, tick_at: datetime, message_id: str | None = None) -> bool:
    """Take the right to make a tick's job, for this transaction. False: somebody else made it."""
    parameters = {"schedule": schedule, "tick_at": tick_at, "message_id": message_id}
    return connection.execute(SQL["take_tick"], parameters).fetchone() is not None


def note_tick(connection: Conn, schedule: str, tick_at: datetime, message_id: str | None, error: str | None = None) -> None:
    """Say which job stands for a tick that was taken, or why none does."""
    parameters = {"schedule": schedule, "tick_at": tick_at, "message_id": message_id, "error": error}
    connection.execute(SQL["note_tick"], parameters)


def tick_job(connection: Conn, schedule: str, tick_at: datetime) -> str | None:
    """The id of a tick's job; None: it has none, or was never made, or long ago."""
    row = connection.execute(SQL["tick_job"], {"schedule": schedule, "tick_at": tick_at}).fetchone()
    return row[0] if row else None


def pass_on(connection: Conn, passed: Sequence[Passed]) -> None:
    """Write what follows for schedules that are locked by ``due``."""
    ordered = sorted(passed)
    names, lasts, nexts, dues, errors = map(list, zip(*ordered, strict=True))
    connection.execute(SQL["pass_schedules"], {"names": names, "lasts": lasts, "nexts": nexts, "dues": dues, "errors": errors})


def until_next_tick(connection: Conn, actors: Sequence[str]) -> float | None:
    """Seconds until a schedule of these actors is due (negative: overdue); None: none is."""
    row = connection.execute(SQL["until_next_tick"], {"actors": list(actors)}).fetchone()
    return row[0] if row else None


def next_due_and_tick(connection: Conn, actors: Sequence[str]) -> tuple[float | None, float | None]:
    """The keeper's look: seconds until the relay has something to do, as ``ledger.write.next_due``, and until a tick, in one statement."""
    row = connection.execute(SQL["next_due"], {"actors": list(actors)}).fetchone()
    return (row[0], row[1]) if row else (None, None)


def declare(
    connection: Conn, definitions: Mapping[str, tuple[str, str]], lease: float, *, entering: bool, now: object = None
) -> None:
    """Say which schedules this process has in its code, by name: digest and definition (JSON). It holds for ``lease`` seconds.

    Parameters:
        entering: the process has just started: what no living process declares enters now, and counts.
    """
    names = sorted(definitions)
    parameters = {
        "names": names,
        "digests": [definitions[name][0] for name in names],
        "definitions": [definitions[name][1] for name in names],
        "lease": lease,
        "entering": entering,
        "now": now,
    }
    connection.execute(SQL["declare_schedules"], parameters)


def unsettled(connection: Conn, *, settled: bool, now: object = None) -> list[Unsettled]:
    """The declarations that their schedules do not follow yet; ``settled`` as in ``ledger.routes.settle``."""
    return [
        Unsettled(*row) for row in connection.execute(SQL["unsettled_schedules"], {"settled": settled, "now": now}).fetchall()
    ]


def settle(connection: Conn, wanted: Stored, digest: str, version: int | None) -> bool:
    """Have a schedule follow its declaration. False: it is not at this ``version`` (None: it did not exist) any more."""
    parameters = wanted._asdict() | {"digest": digest, "version": version or 0}
    return connection.execute(SQL["settle_schedule"], parameters).fetchone() is not None


def retire(connection: Conn, now: object = None) -> list[str]:
    """Retire what no living process declares; returns the names."""
    return [row[0] for row in connection.execute(SQL["retire_schedules"], {"now": now}).fetchall()]


def forget(connection: Conn, now: object = None) -> None:
    """Remove ticks, declarations and retired schedules of long ago, up to CHUNK ticks."""
    connection.execute(SQL["forget_ticks"], {"keep": KEEP_TICKS, "limit": CHUNK, "now": now})
    connection.execute(SQL["forget_schedules"], {"keep": KEEP_RETIRED})


def schedules(connection: Conn) -> list[Schedule]:
    """Every schedule, by name."""
    return [_schedule(row) for row in connection.execute(SQL["read_schedules"], {"name": None}).fetchall()]


def schedule(connection: Conn, name: str) -> Schedule | None:
    """One schedule; None: there is none of this name."""
    row = connection.execute(SQL["read_schedules"], {"name": name}).fetchone()
    return None if row is None else _schedule(row)


def ticks(connection: Conn, name: str, limit: int) -> list[Tick]:
    """The latest ticks of a schedule that were dealt with, the latest first."""
    rows = connection.execute(SQL["read_ticks"], {"name": name, "limit": limit}).fetchall()
    return [Tick(tick_at=row[0], made_at=row[1], job_id=row[2], error=row[3], state=row[4]) for row in rows]


def clock(connection: Conn) -> datetime:
    """What time it is in the database."""
    row = connection.execute(SQL["schedule_clock"]).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def create(connection: Conn, wanted: Stored) -> bool:
    """Store a new schedule. False: there is one of this name."""
    return connection.execute(SQL["create_schedule"], wanted._asdict()).fetchone() is not None


def update(connection: Conn, wanted: Stored, version: int) -> bool:
    """Change a created schedule. False: it is not at this version any more."""
    return connection.execute(SQL["update_schedule"], wanted._asdict() | {"version": version}).fetchone() is not None


def delete(connection: Conn, name: str) -> bool:
    """Remove a created schedule. False: there is none of this name."""
    return connection.execute(SQL["delete_schedule"], {"name": name}).fetchone() is not None


def pause(connection: Conn, name: str) -> bool:
    """Have a schedule make no jobs. False: it makes none already, or does not exist."""
    return connection.execute(SQL["pause_schedule"], {"name": name}).fetchone() is not None


def resume(connection: Conn, name: str, next_tick_at: datetime | None, due_at: datetime | None, version: int) -> bool:
    """Have a schedule go on. False: it is not paused, or not at this version any more."""
    parameters = {"name": name, "next_tick_at": next_tick_at, "due_at": due_at, "version": version}
    return connection.execute(SQL["resume_schedule"], parameters).fetchone() is not None


def as_text(definition: Mapping[str, Any]) -> str:
    """A definition as JSON in one form, so that equal ones are equal as texts."""
    return json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _schedule(row: tuple[Any, ...]) -> Schedule:
    return Schedule(
        name=row[0], actor=row[1], queue=row[2], args=tuple(row[3]["args"]), kwargs=row[3]["kwargs"], options=row[4] or {},
        expression=row[5], timezone=row[6], catch_up=row[7], window=row[8], jitter=row[9], source=row[10], version=row[11],
        paused_at=row[12], retired_at=row[13], last_tick_at=row[14], next_tick_at=row[15], due_at=row[16], error=row[17],
        created_at=row[18], changed_at=row[19], read_at=row[20],
    )  # fmt: skip
