"""Strays: pending jobs in a broker that no living worker consumes any more, after BROKER was changed and the fleet restarted.

They are made due, and the relay of a living worker publishes them to its own broker. The triggers they leave behind are harmless: should
anybody ever fetch them, the claim refuses what is not pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg import Connection
from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL

logger = get_logger(__name__)

#: Rows adopted in one go.
CHUNK: Final = 10_000


def look(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: know which brokers others consume, so that the relay leaves their rows alone."""
    keeping.elsewhere = [name for name in living_brokers(connection) if name != keeping.settings.broker]


def sweep(connection: BoundedConnection, _: Keeping) -> None:
    """The duty: adopt what nobody consumes."""
    adopt(connection, living_brokers(connection))


def living_brokers(connection: Connection[Any]) -> list[str]:
    """The brokers that living workers consume."""
    return [row[0] for row in connection.execute(SQL["living_brokers"]).fetchall()]


def adopt(connection: Connection[Any], living: Sequence[str]) -> int:
    """Make due what nobody consumes. Returns how many rows."""
    adopted = connection.execute(SQL["adopt_triggers"], {"living": list(living), "limit": CHUNK}).rowcount
    if "postgres" not in living:
        adopted += connection.execute(SQL["adopt_rows"], {"limit": CHUNK}).rowcount
    if adopted:
        logger.info("adopted jobs of a broker that no worker consumes any more", jobs=adopted)
    return adopted
