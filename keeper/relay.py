"""The relay: rows that are due become pending, and their triggers are published.

This one duty is behind delays, retries, crash repair and recovery from a broker's loss: whatever goes wrong, a waiting row becomes due, and
is offered again. Of those whose trigger is out already ``keeper.lost`` makes due what is gone. Rows are claimed by pushing back their next
look; the publisher gets them after that commit. While the broker is known to be down its rows stay untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg import Connection

from ledger import write
from ledger.write import CHUNK
from runtime.publisher import Publisher
from runtime.triggers import Outgoing

#: Most rows of one round, so that the other duties get their turn under a backlog.
ROUND: Final = 10 * CHUNK


def relay(
    connection: Connection[Any], publisher: Publisher, *, broker: str, carries: bool, grace: float, elsewhere: Sequence[str]
) -> int:
    """Publish what is due. Returns how many rows; ``ROUND`` means that there may be more."""
    relayed = 0
    while relayed < ROUND and not publisher.is_open(broker):
        due = write.relay_due(connection, broker=broker, carries=carries, grace=grace, elsewhere=elsewhere)
        publisher.offer(broker, [Outgoing(row.id, row.queue, row.actor, row.priority) for row in due])
        relayed += len(due)
        if len(due) < CHUNK:
            break
    return relayed
