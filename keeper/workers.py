"""Worker processes that died without a word: their rows go once nothing refers to them, ten leases after the last heartbeat."""

from __future__ import annotations

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL


def sweep(connection: BoundedConnection, _: Keeping) -> None:
    """Forget them."""
    connection.execute(SQL["forget_workers"])
