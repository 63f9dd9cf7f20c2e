"""Stopping, pausing and changing jobs that are on their way: each function is one guarded statement on the connection it is given.

Safe to repeat after a lost reply, and for any number of processes at once; ``ledger/sql/control.sql`` has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import Connection

from ledger import batches, keys
from ledger.arrays import plain
from ledger.limits import free_slots
from ledger.rekeying import Keys, PeriodKey, rekey, wake_line
from ledger.sql import SQL
from ledger.states import State
from ledger.write import CHUNK

Conn = Connection[Any]

#: The NOTIFY channel on which worker processes hear that something was decided about what they do.
CONTROL_CHANNEL: Final = "switchyard_control"
#: What it says to all of them; a worker's own name is for that one.
EVERYBODY: Final = "*"
#: In the place of a queue or an actor: every one.
EVERY: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelCount:
    """How many jobs a cancellation met."""

    #: Waited, and have ended.
    cancelled: int
    #: Run, and were asked to stop.
    asked: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.cancelled + self.asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Something that is paused."""

    #: None: every queue, or every actor; both None: everything.
    queue: str | None
    actor: str | None
    since: datetime
    #: Pending jobs that wait for its end. Jobs whose time has not come are not among them.
    waiting: int

    @property
    def what(self) -> str:
        """What is paused, in words: ``queue mail``, ``actor send in queue mail``, ``everything``."""
        names = (("actor", self.actor), ("queue", self.queue))
        return " in ".join(f"{kind} {name}" for kind, name in names if name is not None) or "everything"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be different about a waiting job; None leaves a thing as it is."""

    #: A JSON text, checked by the caller.
    payload: str | None = None
    priority: int | None = None
    #: Seconds from now until it may run.
    delay: float | None = None
    #: None takes no tags away; an empty list does.
    tags: Sequence[str] | None = None
    #: All of them.
    keys: Keys | None = None
    period: PeriodKey | None = None


class Orders(NamedTuple):
    """What a worker process is told: which of its claims (row ids) are to stop, and what is paused (queue and actor, or ``EVERY``)."""

    stop: frozenset[int]
    paused: tuple[tuple[str, str], ...]


def cancel(connection: Conn, message_id: str) -> State | None:
    """Cancel a job that waits, and the steps that wait for it; ask one that runs to stop. Returns its state after that; None: it has ended,
    or is unknown."""
    with connection.transaction():
        row = connection.execute(SQL["cancel"], {"message_id": message_id}).fetchone()
        state = None if row is None else State(row[0])
        if state is State.CANCELLED:
            batches.cancel_followers(connection, [message_id])
            if row is not None and row[1] is not None:
                # Last, here and below: whoever holds a key waits for no row.
                free_slots(connection, [row[1]])
    return state


def cancel_rows(connection: Conn, ids: Sequence[int], states: Sequence[State]) -> CancelCount:
    """Cancel those of the rows that wait in one of these states, and the steps that wait for them; ask those that run to stop."""
    parameters = {"ids": plain(ids), "states": plain(states)}
    with connection.transaction():
        cancelled, asked, turns, *_ = next(iter(connection.execute(SQL["cancel_rows"], parameters)))
        followers = batches.cancel_followers(connection, cancelled) if cancelled else 0
        if turns:
            free_slots(connection, turns)
    return CancelCount(cancelled=len(cancelled or ()) + followers, asked=asked)


def flush(connection: Conn, queues: Sequence[str]) -> int:
    """Cancel everything that waits in these queues, and the steps that wait for it elsewhere. Returns how many jobs that were."""
    with connection.transaction():
        cancelled = connection.execute(SQL["flush_queue"], {"queues": list(queues)}).fetchall()
        followers = batches.cancel_followers(connection, [row[1] for row in cancelled]) if cancelled else 0
        free_slots(connection, [row[0] for row in cancelled if row[2]])
    return len(cancelled) + followers


def orders(connection: Conn, worker: str, ids: Sequence[int]) -> Orders:
    """What a worker process that holds these rows has to know."""
    stop, queues, actors = next(iter(connection.execute(SQL["orders"], {"worker": worker, "ids": plain(sorted(ids))})))
    return Orders(frozenset(stop), tuple(zip(queues, actors, strict=True)))


def pause(connection: Conn, queue: str, actor: str) -> bool:
    """Pause a queue, an actor, an actor in a queue, or everything (``EVERY``). False: it was paused already."""
    return bool(next(iter(connection.execute(SQL["pause"], {"queue": queue, "actor": actor})))[0])


def resume(connection: Conn, queue: str, actor: str) -> bool:
    """Lift the pause of exactly this name; its jobs go on with ``unpark``. False: there is none."""
    return bool(next(iter(connection.execute(SQL["resume"], {"queue": queue, "actor": actor})))[0])


def pauses(connection: Conn) -> list[Pause]:
    """What is paused, the oldest first."""
    return [
        Pause(queue=None if queue == EVERY else queue, actor=None if actor == EVERY else actor, since=since, waiting=waiting)
        for queue, actor, since, waiting in connection.execute(SQL["pauses"]).fetchall()
    ]


def park_rows(connection: Conn, ids: Sequence[int]) -> None:
    """Park rows that a claim refused because they are paused."""
    connection.execute(SQL["park_rows"], {"ids": sorted(ids)})


def park_place(connection: Conn, broker: str, queue: str, actor: str, limit: int = CHUNK) -> int:
    """Park up to ``limit`` pending rows of a paused queue and actor (or ``EVERY``), last published to ``broker``. How many it were."""
    parameters = {"broker": broker, "queue": queue, "actor": actor, "limit": limit}
    return len(connection.execute(SQL["park_place"], parameters).fetchall())


def unpark(connection: Conn, limit: int = CHUNK) -> int:
    """Make up to ``limit`` parked rows due that are paused no more, best priority and oldest first. How many it were; 0: none is left."""
    places = connection.execute(SQL["resumed_places"]).fetchall()
    if not places:
        return 0
    parameters = {"queues": [queue for queue, _ in places], "actors": [actor for _, actor in places], "limit": limit}
    return len(connection.execute(SQL["unpark"], parameters).fetchall())


def edit(connection: Conn, id_: int, change: Change) -> bool:
    """Change a waiting job. False: it waits no more, or (for a time) waits for something else than a time.

    Raises:
        KeyTaken: another job of its actor has its new key.
    """
    parameters = {
        "id": id_,
        "payload": change.payload,
        "priority": change.priority,
        "delay": change.delay,
        "retag": change.tags is not None,
        "tags": list(change.tags) if change.tags else None,
    }
    with connection.transaction():
        row = connection.execute(SQL["edit"], parameters).fetchone()
        if row is None:
            return False
        if change.period is not None:
            keys.move_period_key(connection, change.period)
        if change.keys is not None and (left := rekey(connection, id_, row[0], change.keys)) is not None:
            # Last: whoever holds a key waits for no row.
            wake_line(connection, left)
    return True
