"""The rescue: claims whose lease has ended go back, and a job that keeps killing its workers is found out.

All jobs of a dead process come back together as *suspects*; suspects run one at a time per process, with their start committed first.
If a process dies again, the suspect that had started is held guilty and gains a loss; past MAX_LOST it is dead (``worker_lost``). The
innocent ones lose nothing. See ``rescue_worker`` in ``ledger/sql/keeper.sql`` for the verdict.

After an outage of Postgres every lease looks expired at once, so nothing is rescued until it has been up, and reachable from here, for a
full lease: the living workers' heartbeats come first.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from psycopg import Connection
from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger import write
from ledger.database import BoundedConnection
from ledger.records import Rescued
from ledger.sql import SQL
from ledger.states import State

logger = get_logger(__name__)

#: First pause before a guilty job runs again, in seconds; doubled with each loss.
BACKOFF: Final = 1.0


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: take back what dead workers left behind."""
    if not keeping.seen.lost:
        return
    settings = keeping.settings
    rescue(connection, lease=settings.lease, max_lost=settings.max_lost, connected_again_at=keeping.connected_again_at)


def rescue(connection: Connection[Any], *, lease: float, max_lost: int, connected_again_at: float | None) -> list[Rescued]:
    """Take back what dead workers left behind.

    Parameters:
        connected_again_at: when this keeper's connection came back after a loss (monotonic); None if it never was lost.
    """
    expired = write.expired_workers(connection)
    if not expired or not settled(connection, lease, connected_again_at):
        return []
    rescued: list[Rescued] = []
    for worker, alive in expired:
        jobs = write.rescue_worker(connection, worker, alive=alive, max_lost=max_lost, backoff=BACKOFF)
        if jobs:
            dead = [job.id for job in jobs if job.state is State.DEAD]
            logger.warning("took back the jobs of a lost worker", worker=worker, jobs=len(jobs), dead=dead, process_alive=alive)
        rescued += jobs
    return rescued


def settled(connection: Connection[Any], lease: float, connected_again_at: float | None) -> bool:
    """Whether Postgres has been up, and reachable from here, for a lease: only then does silence mean that somebody is gone."""
    if connected_again_at is not None and monotonic() - connected_again_at < lease:
        return False
    row = connection.execute(SQL["settled_uptime"]).fetchone()
    return row is not None and row[0] >= lease
