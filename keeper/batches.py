"""Batches that have come to an end without anybody saying so: by a rescue, an expiry, a cancellation, or because whoever ended the last job
died right after it. They are ended here.

One keeper at a time looks through those that are not over, a page a turn, and begins again at the next sweep. If the process dies in a
turn, the turn is rolled back, and another keeper does it.
"""

from __future__ import annotations

from typing import Final

from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger import batches
from ledger.database import BoundedConnection
from ledger.sql import SQL

logger = get_logger(__name__)

NAME: Final = "batches"
#: The same for those that are removed, and seconds between two turns of it.
OLD: Final = "old batches"
PAUSE: Final = 50.0
#: Batches that one turn looks at.
PAGE: Final = 200
#: Seconds between two turns of a round.
SOON: Final = 0.05
#: Most batches that are removed in a turn, and how often that is, in seconds.
LIMIT: Final = 500


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: one page, if no other keeper is at it."""
    if not keeping.seen.batches:
        return None
    with connection.transaction():
        row = connection.execute(SQL["take_duty"], {"name": NAME}).fetchone()
        if row is None:
            return None
        page = batches.to_check(connection, row[0], PAGE)
        if batches.close(connection, [id_ for _, id_ in page]):
            logger.info("ended batches that nobody else had ended")
        over = len(page) < PAGE
        parameters = {"name": NAME, "pause": keeping.settings.sweep if over else 0.0, "position": 0 if over else page[-1][0]}
        connection.execute(SQL["leave_duty"], parameters)
    return None if over else SOON


def forget(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: remove batches whose jobs are gone."""
    settings = keeping.settings
    with connection.transaction():
        # It looks at every batch there is, some 0.8 s per million: once a minute in the fleet, not in each process.
        if connection.execute(SQL["take_duty"], {"name": OLD}).fetchone() is None:
            return None
        removed = batches.prune(connection, keep=min(settings.retain_completed, settings.retain_dead), limit=LIMIT)
        more = removed == LIMIT
        connection.execute(SQL["leave_duty"], {"name": OLD, "pause": 0.0 if more else PAUSE, "position": 0})
    if removed:
        logger.debug("removed batches that ended long ago", batches=removed)
    return SOON if more else None
