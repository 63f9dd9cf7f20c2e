"""The look that begins a sweep: one statement says which of its duties have anything to do, so that a system at rest costs no more."""

from __future__ import annotations

from keeper.duty import Keeping, Seen
from ledger.database import BoundedConnection
from ledger.sql import SQL


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: look."""
    row = connection.execute(SQL["look"]).fetchone()
    keeping.seen = Seen(*row) if row is not None else Seen()
