"""Keys past their time go: those of senders, and those of actors for a period.

They count as absent as soon as they have expired, so this is only for the table's size: a thousand a turn, whoever comes first. A process
that dies in a turn leaves them for the next.
"""

from __future__ import annotations

from typing import Any, Final

from psycopg import Connection

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL

#: Most keys of one turn.
CHUNK: Final = 1_000
#: Seconds until the next turn while there may be more.
SOON: Final = 0.05


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: remove what has expired."""
    return SOON if prune(connection) == CHUNK else None


def prune(connection: Connection[Any], *, now: object = None) -> int:
    """Remove up to ``CHUNK`` expired keys. Returns how many.

    Parameters:
        now: a ``datetime`` instead of the database's clock, for tests.
    """
    return len(connection.execute(SQL["prune_keys"], {"now": now, "limit": CHUNK}).fetchall())
