"""The relay: rows that are due become pending, and their triggers are published.

This one duty is behind delays, retries, crash repair and recovery from a broker's loss: whatever goes wrong, a waiting row becomes due, and
is offered again. Of those whose trigger is out already ``keeper.lost`` makes due what is gone. Rows are claimed by pushing back their next
look; the publisher gets them after that commit. Where a row goes is read from the routes in the same statement, which parks what is
paused. While a broker is known to be down its rows stay untouched, and so do those of a queue that it refuses: they lie in the same index
as what is due for the others, before it, and are walked past. So a keeper remembers how far it came (``Passed``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from time import monotonic
from typing import Any, Final

from psycopg import Connection

from ledger import write
from ledger.records import DueJob
from ledger.write import CHUNK
from runtime.publisher import Publisher
from runtime.routes import Routes
from runtime.triggers import Outgoing

#: Most rows of one round, so that the other duties get their turn under a backlog.
ROUND: Final = 10 * CHUNK


#: How much further back than it came a keeper begins its next look, in seconds: what became due then may have been committed since, or was
#: locked; and a statement may begin later than its caller thinks.
SLACK: Final = 10.0
#: How much of its time a keeper may spend on walking past everything that it leaves alone, and how long it waits for that at the most, in
#: seconds: what becomes visible later than ``SLACK`` after its due time, such as a send in a long transaction, waits for this.
SHARE: Final = 1 / 50
LONGEST: Final = 30.0


class Passed:
    """How far one keeper has walked past rows that it leaves alone, for a broker that is down or a queue that is refused.

    Looking at 300,000 of them takes a tenth of a second. All of them are looked at when what is left alone has changed, and now and then;
    in between, what became due since the last look. Times are monotonic.
    """

    def __init__(self) -> None:
        self._leaving: object = None
        #: Everything that was due before was seen; None: nothing was yet.
        self._seen: float | None = None
        #: When the look at everything began, and when it is to be taken again; None: it has just begun.
        self._began = 0.0
        self._again: float | None = None

    def age(self, leaving: object) -> float | None:
        """How old what is looked at next may be, in seconds; None: everything is. ``leaving`` is what is left alone; None: nothing is."""
        now = monotonic()
        if leaving is None or leaving != self._leaving or (self._again is not None and now >= self._again):
            self._leaving, self._seen, self._began, self._again = leaving, None, now, None
        return None if self._seen is None else now - self._seen

    def came(self, at: float, reached: float | None) -> None:
        """A look that began ``at`` came to what had been due for ``reached`` seconds; None: to the end."""
        now = monotonic()
        self._seen = at - (reached or 0.0) - SLACK
        if self._again is None:
            # Even if it never comes to the end, because more becomes due than can be relayed.
            self._again = now + LONGEST
        if reached is None:
            self._again = min(self._again, now + (now - self._began) / SHARE)


def relay(
    connection: Connection[Any],
    publisher: Publisher,
    *,
    own: str,
    carriers: Mapping[str, bool],
    grace: float,
    routes: Routes | None = None,
    passed: Passed | None = None,
) -> int:
    """Publish what is due, each row at the route of its queue. Returns how many rows; ``ROUND`` means that there may be more.

    Parameters:
        own: the broker of this process's settings, for queues that have no route yet.
        carriers: the brokers that this process can publish to, each with whether it carries triggers.
        grace: seconds after which a trigger that was not claimed is looked for.
        routes: the routes, as far as this process knows; None: any broker may be one.
        passed: how far this keeper came before, past what it leaves alone; None: it looks at everything.
    """
    carrying = [name for name, carries in carriers.items() if carries]
    passed = passed or Passed()
    relayed = 0
    while relayed < ROUND:
        reachable = [name for name in carriers if not publisher.is_open(name)]
        if not reachable or (routes is not None and not any(name in routes.brokers for name in reachable)):
            # Everything that is due is for a broker that is down: looking at each row for one that is not takes a second per million, and
            # each keeper would, every second. A route that changed a moment ago is known at the next sweep.
            break
        refused = [(name, queue) for name in reachable for queue in publisher.refused(name)]
        away = (set(carriers) if routes is None else routes.brokers) - set(reachable)
        age = passed.age((away, sorted(refused), routes and routes.view) if away or refused else None)
        began = monotonic()
        due = write.relay_due(connection, own=own, carrying=carrying, reachable=reachable, refused=refused, grace=grace, age=age)
        offer(publisher, due)
        relayed += len(due)
        if len(due) < CHUNK:
            passed.came(began, None)
            break
        passed.came(began, due[0].reached)
    return relayed


def offer(publisher: Publisher, jobs: Sequence[DueJob]) -> None:
    """Hand rows to the publisher, each for the broker it is pending at, but those that are paused."""
    by_broker: dict[str, list[Outgoing]] = {}
    # What is due at once goes out best first: a worker with a free thread takes what comes first.
    for job in sorted(jobs, key=attrgetter("priority")):
        if job.parked:
            continue
        by_broker.setdefault(job.broker, []).append(Outgoing(job.id, job.queue, job.actor, job.priority))
    for broker, batch in by_broker.items():
        publisher.offer(broker, batch)
