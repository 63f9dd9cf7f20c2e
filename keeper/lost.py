"""Lost triggers: rows whose trigger was sent, has not been claimed within a grace, and is no longer in the broker, become due."""

from __future__ import annotations

from typing import Final

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL

#: Most rows of one turn.
CHUNK: Final = 10_000


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: make due what was sent and not claimed in time. While the broker is down its rows stay untouched."""
    broker = keeping.settings.broker
    if not keeping.broker.publisher.is_open(broker):
        connection.execute(SQL["stale_due"], {"broker": broker, "limit": CHUNK, "now": None})
