"""The ledger's side of lost triggers: who looks for them, what it looks at, and what becomes of what it finds.

Moments are seconds since 1970 on the database's clock. Every function is one statement on the connection it is given and safe to repeat.
A process that dies after any of them leaves a row that is due, or one that is sent and looked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import Connection

from ledger.sql import SQL

Conn = Connection[Any]


class SentRow(NamedTuple):
    """A pending row whose trigger was published, and the moment from which on the trigger is looked for."""

    id: int
    queue: str
    actor: str
    priority: int
    look_at: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """What the ledger knows of one life of a broker, or of one of its queues.

    ``lost_before``: what was sent before this moment went to an earlier life and is not made due yet; None: nothing is left to do.
    """

    value: str
    lost_before: float | None


class Watching(NamedTuple):
    """What the keeper that looks for lost triggers in a broker is told with each turn."""

    #: The time, as a moment.
    now: float
    #: The queues of living workers.
    queues: set[str]
    #: Whether any row, of whatever broker, waits for a trigger that was sent.
    sent: bool
    #: What ``epochs`` would say.
    epochs: dict[str, Epoch]


def watch(connection: Conn, broker: str, keeper: str, seconds: float) -> Watching | None:
    """Be the one keeper that looks for lost triggers in a broker for the next seconds. None: another one is."""
    rows = connection.execute(SQL["watch"], {"broker": broker, "keeper": keeper, "seconds": seconds}).fetchall()
    if not rows:
        return None
    now, queues, on_their_way = rows[0][:3]
    return Watching(now, set(queues), on_their_way, {row[3]: Epoch(row[4], row[5]) for row in rows if row[3] is not None})


def keepers(connection: Conn) -> dict[str, str]:
    """The keeper that looks for lost triggers, by broker."""
    return dict(connection.execute(SQL["watching_keepers"]).fetchall())


def epochs(connection: Conn, broker: str) -> dict[str, Epoch]:
    """What the ledger knows, by queue (empty: the broker as a whole)."""
    return {row[0]: Epoch(row[1], row[2]) for row in connection.execute(SQL["known_epochs"], {"broker": broker}).fetchall()}


def change_epoch(connection: Conn, broker: str, queue: str, known: str | None, value: str) -> bool:
    """Know a new epoch; what was sent before is lost, unless none was known. False: another keeper was first."""
    parameters = {"broker": broker, "queue": queue, "known": known, "value": value}
    return connection.execute(SQL["change_epoch"], parameters).fetchone() is not None


def epoch_due(connection: Conn, broker: str, queue: str, lost_before: float, *, grace: float, limit: int) -> int:
    """Make due what was sent before an epoch began, up to ``limit`` rows; fewer than that: it was the rest. Returns how many."""
    parameters = {"broker": broker, "queue": queue, "lost_before": lost_before, "grace": grace, "limit": limit}
    due = connection.execute(SQL["epoch_due"], parameters).rowcount
    if due < limit:
        connection.execute(SQL["epoch_done"], {"broker": broker, "queue": queue, "lost_before": lost_before})
    return due


def sent_rows(connection: Conn, broker: str, after: float, upto: float, limit: int) -> list[SentRow]:
    """Rows to look for, by their moment, from behind ``after`` up to ``upto``."""
    parameters = {"broker": broker, "after": after, "upto": upto, "limit": limit}
    return [SentRow(*row) for row in connection.execute(SQL["sent_rows"], parameters).fetchall()]


def sent_groups(connection: Conn, broker: str, after: float, upto: float) -> list[tuple[str, int]]:
    """Queues and priorities of the rows whose moment is behind ``after`` and not behind ``upto``."""
    parameters = {"broker": broker, "after": after, "upto": upto}
    return [(row[0], row[1]) for row in connection.execute(SQL["sent_groups"], parameters).fetchall()]


def lost_due(connection: Conn, ids: Sequence[int], upto: float) -> int:
    """Make due the rows whose trigger is gone. Returns how many still were as they had been looked at."""
    return connection.execute(SQL["lost_due"], {"ids": sorted(ids), "upto": upto}).rowcount


def marks(connection: Conn, broker: str) -> dict[tuple[str, int], float]:
    """When the last mark that arrived was published, per queue and band."""
    return {(row[0], row[1]): row[2] for row in connection.execute(SQL["marks"], {"broker": broker}).fetchall()}


def record_marks(connection: Conn, broker: str, arrived: Iterable[tuple[str, int, float]]) -> None:
    """Note marks (queue, band, moment) that a receiver got after everything before them."""
    queues, bands, ats = zip(*arrived, strict=True)
    parameters = {"broker": broker, "queues": list(queues), "bands": list(bands), "ats": list(ats)}
    connection.execute(SQL["record_marks"], parameters)
