"""Jobs whose actor no living worker knows: they wait, since a deploy may bring it, and are dead after UNKNOWN_ACTOR_AFTER.

Every worker's heartbeat says what it knows, so one fleet never buries what another one runs. Carried triggers are noticed when they are
fetched; rows of the Postgres broker are never claimed, so they are looked for here. While nobody lives, and for a lease after Postgres
came back, nothing is buried: then silence says nothing. What waited in a line for a slot leaves it, and holds up nobody who is known.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from psycopg import Connection
from structlog.stdlib import get_logger

from keeper.duty import Keeping
from keeper.rescue import settled
from ledger.database import BoundedConnection
from ledger.limits import leave_lines
from ledger.sql import SQL
from runtime.counters import Counters

logger = get_logger(__name__)


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: notice what waits, end what has waited for too long."""
    if keeping.seen.waiting:
        mark(connection, keeping.node.counters)
    settings = keeping.settings
    if keeping.seen.unknown and settled(connection, settings.lease, keeping.connected_again_at, keeping.memory):
        leave_lines(connection)
        settle(connection, settings.unknown_actor_after)


def mark(connection: Connection[Any], counters: Counters) -> None:
    """Note why the head of a queue of the Postgres broker does not move; counted per job, said once per actor and process."""
    for _, actor in sorted(connection.execute(SQL["mark_unknown"]).fetchall()):
        # As the fetcher does with what is carried: the same counter, the same line.
        counters.note("unknown_actors", actor, f"a job waits for a worker that knows the actor {actor!r}")


def settle(connection: Connection[Any], after: float, *, now: object = None) -> None:
    """End those that waited for ``after`` seconds, and let those go on whose actor is known by now.

    Parameters:
        now: a ``datetime`` instead of the database's clock, for tests.
    """
    rows = connection.execute(SQL["settle_unknown"], {"after": after, "now": now}).fetchall()
    for actor, jobs in sorted(Counter(actor for _, actor, known in rows if not known).items()):
        logger.error("jobs are dead, no worker knew their actor", actor=actor, jobs=jobs)
