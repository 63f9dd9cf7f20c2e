"""The relay: rows that are due become pending, and their triggers are published.

This one duty is behind delays, retries, crash repair and recovery from a broker's loss: whatever goes wrong, a waiting row becomes due, and
is offered again. Of those whose trigger is out already ``keeper.lost`` makes due what is gone. Rows are claimed by pushing back their next
look; the publisher gets them after that commit. Where a row goes is read from the routes in the same statement, which parks what is
paused. While a broker is known to be down its rows stay untouched, and so do those of a queue that it refuses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from psycopg import Connection

from ledger import write
from ledger.records import DueJob
from ledger.write import CHUNK
from runtime.publisher import Publisher
from runtime.triggers import Outgoing

#: Most rows of one round, so that the other duties get their turn under a backlog.
ROUND: Final = 10 * CHUNK


def relay(
    connection: Connection[Any],
    publisher: Publisher,
    *,
    own: str,
    carriers: Mapping[str, bool],
    grace: float,
    routes: Collection[str] | None = None,
) -> int:
    """Publish what is due, each row at the route of its queue. Returns how many rows; ``ROUND`` means that there may be more.

    Parameters:
        own: the broker of this process's settings, for queues that have no route yet.
        carriers: the brokers that this process can publish to, each with whether it carries triggers.
        grace: seconds after which a trigger that was not claimed is looked for.
        routes: the brokers that are some queue's route, as far as this process knows; None: any may be.
    """
    carrying = [name for name, carries in carriers.items() if carries]
    relayed = 0
    while relayed < ROUND:
        reachable = [name for name in carriers if not publisher.is_open(name)]
        if not reachable or (routes is not None and not any(name in routes for name in reachable)):
            # Everything that is due is for a broker that is down: looking at each row for one that is not takes a second per million, and
            # each keeper would, every second. A route that changed a moment ago is known at the next sweep.
            break
        refused = [(name, queue) for name in reachable for queue in publisher.refused(name)]
        due = write.relay_due(connection, own=own, carrying=carrying, reachable=reachable, refused=refused, grace=grace)
        offer(publisher, due)
        relayed += len(due)
        if len(due) < CHUNK:
            break
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
