"""Pauses: what is paused is parked, and what was parked goes on when its pause is over.

A claim refuses what is paused by itself; parking takes it out of the way of the others, and says on the job why it waits. What comes due is
parked by the relay, what a trigger leads to by the fetcher; here the backlog is, and what is sent to the Postgres broker. ``resume()``
makes parked jobs due itself; should its process die meanwhile, the next sweep goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Final

from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger import control, routes
from ledger.control import EVERY
from ledger.database import BoundedConnection
from ledger.write import CHUNK

logger = get_logger(__name__)

#: Most rows of one turn, so that the relay and the other duties get theirs in between.
ROUND: Final = 10 * CHUNK
#: Longest pause between two looks for what is to be parked, in seconds: each walks over what waits in the queues of a paused actor.
LONGEST: Final = 30.0


@dataclass(slots=True)
class _Parking:
    """What this keeper knows from its last look."""

    paused: tuple[tuple[str, str], ...] = ()
    #: When to look again (monotonic), and how many looks found nothing.
    look_at: float = 0.0
    missed: int = 0


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: unpark what is paused no more, park what is paused."""
    done = _unpark(connection) if keeping.seen.parked else 0
    if keeping.seen.paused:
        done = max(done, _park(connection, keeping))
    return 0.0 if done >= ROUND else None


def _unpark(connection: BoundedConnection) -> int:
    done = 0
    while done < ROUND and (jobs := control.unpark(connection)):
        done += jobs
    if done:
        logger.info("jobs go on after a pause", jobs=done)
    return done


def _park(connection: BoundedConnection, keeping: Keeping) -> int:
    parking: _Parking = keeping.memory.setdefault("pauses", _Parking())
    paused, now = control.orders(connection, "", ()).paused, monotonic()
    if paused != parking.paused:
        parking.paused, parking.missed = paused, 0
    elif now < parking.look_at:
        return 0
    done = 0
    for place in routes.pending_places(connection):
        for queue, actor in paused:
            while queue in (place.queue, EVERY) and done < ROUND:
                jobs = control.park_place(connection, place.broker, place.queue, actor)
                done += jobs
                if jobs < CHUNK:
                    break
    parking.missed = 0 if done else parking.missed + 1
    period = keeping.settings.sweep
    parking.look_at = now + min(max(LONGEST, period), period * 2**parking.missed)
    if done:
        logger.info("parked jobs that are paused", jobs=done)
    return done
