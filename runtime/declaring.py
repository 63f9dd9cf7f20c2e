"""Declaring which brokers a process's settings name, with every heartbeat, and keeping the routes what the declarations say.

A process that starts may change a route: its BROKER is what somebody wants now. One that goes on changes nothing by saying the same again,
however often and in whatever order with others: two fleets never take a route from each other in turn. A route also ends when nobody has
declared it for a lease; only a process that was itself in touch with the ledger for that long may say so, since after an outage of Postgres
whoever comes first seems to be alone.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from psycopg import Connection
from structlog.stdlib import get_logger

from ledger import routes as ledger_routes
from ledger.routes import EVERY_QUEUE
from runtime.routes import Routes

logger = get_logger(__name__)


class Declaring:
    """The declarations of one process; used by its heartbeat alone.

    Parameters:
        routes: what its settings say, and where what the ledger says is kept.
        lease: seconds for which one beat holds.
    """

    def __init__(self, routes: Routes, lease: float) -> None:
        self._routes = routes
        self._lease = lease
        self._entered = False
        #: Since when, and until when, every beat reached the ledger (monotonic).
        self._in_touch_since = self._in_touch_until = monotonic()

    def beat(self, connection: Connection[Any]) -> None:
        """Declare, settle the routes, and learn what they are. Raises: psycopg.Error: the next beat says it again."""
        began = monotonic()
        if began - self._in_touch_until > self._lease:
            self._in_touch_since = began
        ledger_routes.declare(connection, self._routes.declared, self._lease, entering=not self._entered)
        settled = began - self._in_touch_since >= self._lease
        for queue, broker in ledger_routes.settle(connection, settled=settled):
            what = "all queues without a route of their own" if queue == EVERY_QUEUE else queue
            logger.info("route changed", queue=what, broker=broker or "as all others")
        self._routes.learn(ledger_routes.routes(connection))
        self._entered = True
        self._in_touch_until = monotonic()
