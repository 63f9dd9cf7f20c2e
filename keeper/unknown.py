"""Jobs whose actor no worker knows: they wait, since a deploy may bring it, and are dead (``unknown_actor``) after UNKNOWN_ACTOR_AFTER.

Carried triggers are noticed when they are fetched; rows of the Postgres broker are never claimed, so they are looked for here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection
from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL

logger = get_logger(__name__)


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: notice what waits, end what has waited for too long."""
    if not keeping.broker.carries_triggers(keeping.settings.broker):
        mark(connection, list(keeping.broker.queues), list(keeping.broker.actors))
    bury(connection, keeping.settings.unknown_actor_after)


def mark(connection: Connection[Any], queues: Sequence[str], actors: Sequence[str]) -> None:
    """Note why the head of each queue of the Postgres broker does not move."""
    for queue in queues:
        marked = connection.execute(SQL["mark_unknown"], {"queue": queue, "actors": list(actors)}).fetchall()
        for actor in sorted({row[1] for row in marked}):
            logger.warning("jobs wait for a worker that knows their actor", actor=actor, queue=queue)


def bury(connection: Connection[Any], after: float) -> None:
    """End those that waited for ``after`` seconds."""
    for _, actor in connection.execute(SQL["bury_unknown"], {"after": after, "now": None}).fetchall():
        logger.error("job is dead, no worker knew its actor", actor=actor)
