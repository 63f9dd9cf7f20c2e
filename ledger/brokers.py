"""What the ledger knows of each broker, for those who operate it: routes, what waits there, who uses it, which life it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from ledger import routes
from ledger.routes import Route
from ledger.sql import SQL


@dataclass(slots=True)
class BrokerUse:
    """One broker as the ledger sees it.

    ``pending`` counts the pending rows last published there; ``oldest`` is for how many seconds the oldest of them could have run.
    ``epoch`` is per queue, the empty name standing for the broker as a whole. ``declared_by`` and ``consumed_by`` count living workers.
    """

    name: str
    routes: list[Route] = field(default_factory=list)
    pending: int = 0
    oldest: float | None = None
    epoch: dict[str, str] = field(default_factory=dict)
    declared_by: int = 0
    consumed_by: int = 0


def broker_uses(connection: Connection[Any], names: Sequence[str]) -> tuple[list[BrokerUse], list[str]]:
    """Each broker, those of ``names`` first, and every queue whose triggers may be in one of them."""
    uses = {name: BrokerUse(name) for name in names}

    def use(name: str) -> BrokerUse:
        return uses.setdefault(name, BrokerUse(name))

    queues = {place.queue for place in routes.pending_places(connection)}
    for route in routes.routes(connection):
        use(route.broker).routes.append(route)
    for broker, count, oldest in connection.execute(SQL["pending_by_broker"]).fetchall():
        use(broker).pending, use(broker).oldest = count, oldest
    for consumed, declared, consumes in connection.execute(SQL["broker_users"]).fetchall():
        queues.update(consumed)
        for broker in set(declared.values()):
            use(broker).declared_by += 1
        for broker in consumes:
            use(broker).consumed_by += 1
    for broker, queue, value in connection.execute(SQL["epochs"]).fetchall():
        use(broker).epoch[queue] = value
    return list(uses.values()), sorted(queues)


def pending_at(connection: Connection[Any], broker: str, queues: Sequence[str]) -> int:
    """How many pending rows of these queues were last published to a broker."""
    row = connection.execute(SQL["pending_at"], {"broker": broker, "queues": list(queues)}).fetchone()
    return int(row[0]) if row else 0
