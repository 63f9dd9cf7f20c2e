"""Which broker the triggers of each queue go to, and moving pending rows there: declarations, routes, an operator's word.

Every function is one or two guarded statements on the connection it is given, safe to repeat and for any number of processes at once;
``ledger/sql/route.sql`` has the rules. ``now`` takes a ``datetime`` instead of the database's clock, for tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import Connection

from ledger.records import DueJob
from ledger.sql import SQL
from ledger.write import CHUNK

Conn = Connection[Any]

#: In the place of a queue: every queue without a route of its own.
EVERY_QUEUE: Final = "*"


@dataclass(frozen=True, slots=True)
class Route:
    """Where the triggers of a queue (``EVERY_QUEUE``: of all that have no route of their own) go.

    ``overruled`` holds the brokers that an operator decided against; empty when the route follows from what processes declare.
    """

    queue: str
    broker: str
    version: int
    overruled: Sequence[str]
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Place:
    """There are pending rows of this queue that were last published to this broker."""

    broker: str
    queue: str


def declare(connection: Conn, routes: Mapping[str, str], lease: float, *, entering: bool, now: object = None) -> None:
    """Say what this process has in its settings (queue or ``EVERY_QUEUE``: broker); it holds for ``lease`` seconds.

    Parameters:
        entering: the process has just started: a value that no living process declares enters now, and wins.
    """
    ordered = sorted(routes.items())
    parameters = {"queues": [queue for queue, _ in ordered], "brokers": [broker for _, broker in ordered]}
    connection.execute(SQL["declare_routes"], parameters | {"lease": lease, "entering": entering, "now": now})


def settle(connection: Conn, *, settled: bool, now: object = None) -> list[tuple[str, str | None]]:
    """Make the routes what the declarations say. Returns what changed: a queue with its broker, or None when it has no own route any more.

    Parameters:
        settled: this process has been in touch with the ledger for a lease, so that whoever lives has had the time to say so. Only then
            does a route end because nobody declares it.
    """
    rows = connection.execute(SQL["settle_routes"], {"settled": settled, "now": now}).fetchall()
    changed: list[tuple[str, str | None]] = [(row[0], row[1]) for row in rows]
    if settled:
        changed += [(row[0], None) for row in connection.execute(SQL["expire_routes"], {"now": now}).fetchall()]
    return changed


def routes(connection: Conn) -> list[Route]:
    """The routes there are, by queue; ``EVERY_QUEUE`` comes first."""
    return [Route(*row) for row in connection.execute(SQL["routes"]).fetchall()]


def decide(connection: Conn, route: Route | None, queue: str, broker: str, old: str) -> bool:
    """An operator's word: the route of ``queue`` is ``broker`` from now on, whatever processes declare that were there before.

    Parameters:
        route: the route as it was seen; None when there was none.
        old: the broker that is decided against.

    Returns False, and changes nothing, when the route has changed since it was seen.
    """
    parameters = {"queue": queue, "broker": broker, "old": old, "version": 0 if route is None else route.version}
    with connection.transaction():
        decided = connection.execute(SQL["decide_route"], parameters).fetchone() is not None
        if decided:
            connection.execute(SQL["enter_decided"], {"queue": queue, "broker": broker})
    return decided


def pending_places(connection: Conn) -> list[Place]:
    """Where pending rows were last published to, one entry for each pair of broker and queue."""
    return [Place(*row) for row in connection.execute(SQL["pending_places"]).fetchall()]


def move_pending(connection: Conn, place: Place, to: str, *, carries: bool, grace: float, limit: int = CHUNK) -> list[DueJob]:
    """Move up to ``limit`` pending rows to ``to``, if that is their queue's route; the caller publishes them.

    Parameters:
        carries: whether ``to`` carries triggers; if not, the rows need no further look.
        grace: seconds after which a trigger that was not claimed is looked for; LEASE.
    """
    parameters = {
        "broker": place.broker, "queue": place.queue, "to": to, "carries": carries, "limit": limit, "grace": grace,
    }  # fmt: skip
    return [DueJob(*row) for row in connection.execute(SQL["move_pending"], parameters).fetchall()]


def reroute(connection: Conn, ids: Iterable[int], to: str, *, carries: bool, grace: float) -> list[DueJob]:
    """Have rows that were just written belong to ``to`` instead; the caller publishes those that are returned (still pending)."""
    parameters = {"ids": sorted(ids), "to": to, "carries": carries, "grace": grace}
    return [DueJob(*row) for row in connection.execute(SQL["reroute"], parameters).fetchall()]
