"""The rescue: claims whose lease has ended go back, and a job that keeps killing its workers is found out.

All jobs of a dead process come back together as *suspects*; suspects run one at a time per process, with their start committed first.
If a process dies again, the suspect that had started is held guilty and gains a loss; past MAX_LOST it is dead (``worker_lost``). The
innocent ones lose nothing. See ``rescue_worker`` in ``ledger/sql/keeper.sql`` for the verdict.

After an outage of Postgres every lease looks expired at once, so nothing is rescued until it has been up, and reachable from here, for a
full lease: the living workers' heartbeats come first. Not every outage is a restart or a lost connection (it may stand still, a standby
that was up all the while may take over, and this process may be new), so the heartbeats themselves tell: nothing is rescued until they have
come for a lease without such a pause. Where none come at all, for a lease while somebody watches, nobody lives.
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
#: For how long a keeper has heard of no heartbeat at all, and when it looked last (monotonic), among what it remembers.
SILENCE: Final = "rescue: silence"
#: The share of a lease that one look stands for at the most.
LOOK: Final = 1 / 4


def sweep(connection: BoundedConnection, keeping: Keeping) -> None:
    """The duty: take back what dead workers left behind."""
    if not keeping.seen.lost:
        return
    settings = keeping.settings
    rescue(
        connection,
        lease=settings.lease,
        max_lost=settings.max_lost,
        connected_again_at=keeping.connected_again_at,
        memory=keeping.memory,
    )


def rescue(
    connection: Connection[Any],
    *,
    lease: float,
    max_lost: int,
    connected_again_at: float | None,
    memory: dict[str, Any] | None = None,
) -> list[Rescued]:
    """Take back what dead workers left behind.

    Parameters:
        connected_again_at: when this keeper's connection came back after a loss (monotonic); None if it never was lost.
        memory: what the keeper remembers from one call to the next.
    """
    expired = write.expired_workers(connection)
    if not expired or not settled(connection, lease, connected_again_at, {} if memory is None else memory):
        return []
    rescued: list[Rescued] = []
    for worker, alive in expired:
        jobs = write.rescue_worker(connection, worker, alive=alive, max_lost=max_lost, backoff=BACKOFF)
        if jobs:
            dead = [job.id for job in jobs if job.state is State.DEAD]
            logger.warning("took back the jobs of a lost worker", worker=worker, jobs=len(jobs), dead=dead, process_alive=alive)
        rescued += jobs
    return rescued


def settled(connection: Connection[Any], lease: float, connected_again_at: float | None, memory: dict[str, Any]) -> bool:
    """Whether Postgres has been up, and reachable, for a lease: only then does silence mean that somebody is gone.

    Parameters:
        memory: keeps for how long this keeper has heard nobody.
    """
    if connected_again_at is not None and monotonic() - connected_again_at < lease:
        return False
    row = connection.execute(SQL["settled_uptime"]).fetchone()
    if row is None or row[0] < lease:
        return False
    beating = in_touch(connection, lease)
    if beating is None:
        return True
    (seconds,) = beating
    if seconds is not None:
        memory.pop(SILENCE, None)
        return seconds >= lease
    # Either everybody is gone, or it was Postgres that stood still until a moment ago, and they are about to say that they live. So what
    # counts is for how long this keeper has looked, and not for how long it may have waited for an answer.
    now = monotonic()
    silent, looked_at = memory.get(SILENCE, (0.0, now))
    silent = silent + min(now - looked_at, lease * LOOK) if now - looked_at <= 2 * lease else 0.0
    memory[SILENCE] = (silent, now)
    return bool(silent >= lease)


def in_touch(connection: Connection[Any], lease: float) -> tuple[float | None] | None:
    """For how many seconds the fleet has beaten without a pause in which a lease could have ended; (None,): nobody beat lately. None:
    nobody ever did."""
    row: tuple[float | None] | None = connection.execute(SQL["in_touch"], {"lease": lease}).fetchone()
    return row
