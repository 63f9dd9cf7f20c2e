"""Strays: pending jobs whose trigger lies in a broker that is their queue's route no more, after a switch.

They are moved in chunks: the row names the new broker, then the trigger is published there. The one left behind is harmless, since the
claim refuses what is not pending. Each row moves once per change of its route, whichever keeper comes first, by one that reaches the new
broker; until one does, the workers go on fetching from the old one. Senders whose view is a second old may still write strays, so the
look is repeated, ever less often while it finds none.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from structlog.stdlib import get_logger

from keeper.duty import Keeping
from keeper.relay import offer
from ledger import routes
from ledger.database import BoundedConnection
from ledger.routes import EVERY_QUEUE, Place
from ledger.sql import SQL
from ledger.write import CHUNK
from runtime.publisher import Publisher

logger = get_logger(__name__)

#: Most rows of one turn, so that the relay and the other duties get theirs in between.
ROUND: Final = 10 * CHUNK
#: Longest pause between two looks, in seconds: what a forgetful sender sent to the Postgres broker waits for nothing else.
LONGEST: Final = 30.0


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: learn the routes that the sweep's look saw; move what lies elsewhere; have the fetchers follow."""
    broker, now = keeping.broker, monotonic()
    found = keeping.seen.routes
    changed = broker.routes.take(found)
    if changed:
        keeping.strays_missed = 0
    elif now < keeping.strays_at:
        return None
    if EVERY_QUEUE not in found:
        # No worker has declared anything, so nothing can be elsewhere.
        return None
    strays = [place for place in routes.pending_places(connection) if broker.routes.of(place.queue) != place.broker]
    moved, left = _move(connection, keeping, strays)
    broker.follow_routes(left)
    keeping.strays_missed = 0 if strays else keeping.strays_missed + 1
    sweep_ = keeping.settings.sweep
    keeping.strays_at = now + min(max(LONGEST, sweep_), sweep_ * 2**keeping.strays_missed)
    return 0.0 if moved >= ROUND else None


def _move(connection: BoundedConnection, keeping: Keeping, strays: list[Place]) -> tuple[int, list[Place]]:
    """Move what can be moved. Returns how many rows, and where some may be left."""
    broker, moved = keeping.broker, 0
    left: list[Place] = []
    for place in strays:
        to = broker.routes.of(place.queue)
        there = 0
        while moved < ROUND and to in broker.carriers and _takes(broker.publisher, to, place.queue):
            jobs = routes.move_pending(connection, place, to, carries=broker.carriers[to], grace=keeping.settings.lease)
            offer(broker.publisher, jobs)
            moved += len(jobs)
            there += len(jobs)
            if len(jobs) < CHUNK:
                break
        else:
            left.append(place)
        if there:
            logger.info("moved pending jobs to the route of their queue", queue=place.queue, old=place.broker, new=to, jobs=there)
            keeping.node.counters.add("moved", there)
    return moved, left


def _takes(publisher: Publisher, broker: str, queue: str) -> bool:
    return not publisher.is_open(broker) and queue not in publisher.refused(broker)


def forget(connection: BoundedConnection, _: Keeping) -> None:
    """The duty: forget what was declared long ago."""
    connection.execute(SQL["forget_declarations"])
