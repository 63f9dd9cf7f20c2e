"""Expiry: what waits beyond its ``max_age`` is dead (``expired``), also where no worker consumes it.

A worker looks once more when the job's turn comes (``middleware.max_age``), so a job that expires between two sweeps does not run either.
A dead letter like any other: on view, and a replay gives it its ``max_age`` anew.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from psycopg import Connection
from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.limits import free_slots
from ledger.sql import SQL

logger = get_logger(__name__)

#: Most rows of one turn.
CHUNK: Final = 1_000
#: Seconds until the next turn while there may be more.
SOON: Final = 0.05


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: bury what has expired."""
    return SOON if keeping.seen.expired and expire(connection) == CHUNK else None


def expire(connection: Connection[Any], *, now: object = None) -> int:
    """Bury up to ``CHUNK`` waiting jobs past their ``max_age``. Returns how many.

    Parameters:
        now: a ``datetime`` instead of the database's clock, for tests.
    """
    with connection.transaction():
        buried = connection.execute(SQL["expire"], {"now": now, "limit": CHUNK}).fetchall()
        free_slots(connection, [row[0] for row in buried])
    for actor, jobs in sorted(Counter(row[1] for row in buried).items()):
        logger.warning("jobs are dead, they were not run within their max_age", actor=actor, jobs=jobs)
    return len(buried)
