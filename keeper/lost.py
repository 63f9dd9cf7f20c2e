"""Lost triggers: rows whose trigger was sent, has not been claimed within a grace, and is no longer in the broker, become due."""

from __future__ import annotations

from typing import Final

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL

#: Most rows of one turn.
CHUNK: Final = 10_000


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: make due what was sent and not claimed in time. While a broker is down its rows stay untouched."""
    for broker, carries in keeping.broker.carriers.items():
        if not carries or keeping.broker.publisher.is_open(broker):
            continue
        connection.execute(SQL["stale_due"], {"broker": broker, "limit": CHUNK, "now": None})
