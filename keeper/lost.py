"""Lost triggers: a pending row whose trigger is no longer in its broker becomes due, and the relay publishes it again.

See ``keeper.watch`` for how that is found out. A row whose trigger waits in a long queue is left alone.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from structlog.stdlib import get_logger

from keeper.duty import Keeping
from keeper.watch import Watch
from ledger.database import BoundedConnection
from runtime.routes import Routes

logger = get_logger(__name__)

#: How soon a turn that has more to do has its next one, in seconds; the relay publishes in between.
SOON: Final = 0.02


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: make due what was sent and is gone. While the broker is down its rows stay untouched."""
    more = False
    carriers, routes = keeping.broker.carriers, keeping.broker.routes
    for name in sorted(routes.brokers):
        # What lies in a broker that is no route any more is moved, see the strays.
        if not carriers.get(name) or keeping.broker.publisher.is_open(name):
            continue
        watches: dict[str, Watch] = keeping.memory.setdefault("lost", {})
        watch = watches.get(name)
        if watch is None:
            watch = watches[name] = Watch(keeping.broker.transport(name), keeping.settings)
            keeping.at_end.append(watch.close)
        due, again = watch.turn(connection, keeping.broker.queues, partial(_goes_to, routes, name))
        more |= again
        if due:
            keeping.node.counters.add("lost_triggers", due)
            logger.warning("triggers were gone from the broker, their jobs are due", broker=name, jobs=due)
    return SOON if more else None


def _goes_to(routes: Routes, broker: str, queue: str) -> bool:
    return routes.of(queue) == broker
