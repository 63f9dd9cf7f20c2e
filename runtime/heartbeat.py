"""The heartbeat: every third of a lease one statement says that the process lives and extends the leases of what it holds.

What the ledger does not confirm is somebody else's by now: unstarted claims are dropped, running ones are told. What has waited
unstarted for a whole beat is given back, since another process may have a thread for it. Between two beats the start of what has run
for about a second is recorded, so that whoever looks sees since when it runs; shorter jobs cost nothing. A job far past its own time
limit is not extended: if its thread hangs where no exception reaches it, and it cannot be given up either, the lease ends it. While
Postgres is away nothing is extended, and each claim's own deadline (80 % of the lease, on the monotonic clock) keeps the threads from
starting it. Between two beats it follows what others decided about its jobs (``runtime.orders``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Final

import psycopg
from structlog.stdlib import get_logger

from errors import LedgerUnavailable
from ledger import charts, write
from ledger.database import BoundedConnection, Database
from ledger.records import WorkerRow
from runtime.claims import LEASE_MARGIN, Claim, HeldClaims
from runtime.counters import Counters
from runtime.declaring import Declaring
from runtime.orders import Orders
from runtime.outage import Outage
from runtime.routes import Routes
from runtime.tally import Tally
from runtime.watchdog import Pulse

logger = get_logger(__name__)

#: How long past its time limit a job may take to end, in seconds: the interruption gets through within this, or not at all. Then it is
#: given up (``middleware.time_limit``); should that fail too, its lease is extended no longer after twice the time.
TIME_LIMIT_GRACE: Final = 5.0
#: How long a body runs before its start is recorded between two beats, in seconds.
START_AFTER: Final = 1.0
#: How often a waiting heartbeat looks for such bodies, and says that it is still there, in seconds.
LOOK: Final = 0.5
#: How soon after a loss of its connection it beats, in seconds.
RECONNECT: Final = 1.0


class Heartbeat:
    """Beats for one worker process."""

    def __init__(
        self,
        database: Database,
        held: HeldClaims,
        counters: Counters,
        worker: WorkerRow,
        queues: Callable[[], list[str]],
        routes: Routes,
        actors: Callable[[], list[str] | None] = lambda: None,
        tally: Tally | None = None,
    ) -> None:
        self._database = database
        self._held = held
        self._counters = counters
        self._worker = worker
        self._queues = queues
        self._actors = actors
        self._declaring = Declaring(routes, held.lease)
        #: The brokers that the process fetches from, for its row.
        self.consumes: list[str] = []
        self._tally = Tally() if tally is None else tally
        self.pulse = Pulse()
        self._orders = Orders(held, worker.id, deaf=database.pgbouncer)
        self._connection: BoundedConnection | None = None
        self._thread = threading.Thread(target=self._run, name="switchyard-heartbeat", daemon=True)

    def start(self) -> None:
        """Register the process, then beat in a thread.

        Raises:
            LedgerUnavailable: the first beat did not reach Postgres.
        """
        self.beat()
        self._orders.open()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread and take the process off the list of workers."""
        self._orders.stop()
        self._thread.join(2.0)
        if not self._thread.is_alive():
            self._orders.close()
        try:
            self._record_activity(self._connected())
            write.retire_worker(self._connected(), self._worker.id)
        except (psycopg.Error, LedgerUnavailable) as error:
            # Harmless: the keepers forget a silent worker after ten leases.
            logger.debug("could not sign off", error=str(error).strip())
        self._disconnect()

    def _run(self) -> None:
        outage = Outage("heartbeat")
        beat_at = monotonic() + self._held.lease / 3
        while True:
            beats = False
            try:
                if self._orders.wait(max(0.0, min(LOOK, beat_at - monotonic())), self._connection):
                    return
                self.pulse.beat()
                beats = monotonic() >= beat_at
                if beats:
                    self.beat()
                    outage.over()
                else:
                    self.record_starts()
                    self.follow_orders()
            except (psycopg.Error, LedgerUnavailable) as error:
                # The leases run on; whoever's end passes 80 % is not started, and what runs keeps its result until Postgres is back.
                outage.failed(error)
                self._disconnect()
            except Exception:
                # The outermost loop of the thread: a process that stopped beating would lose every job it runs.
                logger.critical("heartbeat failed, trying again", exc_info=True)
                self._disconnect()
            if beats:
                beat_at = monotonic() + self._held.lease / 3
            if self._connection is None:
                # Nothing is heard: a beat makes a new one, and looks what was missed.
                beat_at = min(beat_at, monotonic() + RECONNECT)

    def beat(self) -> None:
        """One beat: the leases, the worker's row, and what follows from the answer."""
        connection = self._connected()
        began = monotonic()
        self._extend(connection, self._held.all(), began)
        # The leases come first: were the process seen alive while they are expired (it was paused), each job would be held guilty. So it
        # is when it was paused right here, and its leases may have ended a second time.
        while monotonic() - began > LEASE_MARGIN * self._held.lease:
            began = monotonic()
            self._extend(connection, self._held.all(), began)
        self._worker.queues = self._queues()
        self._worker.actors = self._actors()
        self._worker.consumes = self.consumes
        self._worker.running = len(self._held.running)
        self._worker.counters = self._counters.snapshot()
        write.beat(connection, self._worker)
        self.pulse.beat()
        self._declaring.beat(connection)
        self._orders.follow(connection, now=True)
        self._release_waiting(connection, self._held.lease / 3)
        self._record_activity(connection)

    def record_starts(self) -> None:
        """Record since when those bodies run that have been running for a while; no statement if there is none."""
        connection, now = self._connection, monotonic()
        if connection is None or connection.closed:
            # Postgres is away: the next beat looks whether it is back.
            return
        begun = [claim for claim in list(self._held.running) if self._shows_no_start(claim, now)]
        if begun:
            self._extend(connection, begun, now)

    def follow_orders(self) -> None:
        """Stop what is to stop, and give back at once what may not start; no statement if nobody decided anything."""
        connection = self._connection
        if connection is not None and not connection.closed:
            self._orders.follow(connection)
            if self._held.distrusted:
                self._release_waiting(connection, inf)

    def _extend(self, connection: BoundedConnection, held: list[Claim], now: float) -> None:
        self.pulse.beat()
        claims = [claim for claim in held if not self._overdue(claim, now)]
        if claims:
            rows = [(claim.job.id, claim.token, None if claim.started is None else now - claim.started) for claim in claims]
            started = {id_ for id_, _, age in rows if age is not None}
            ours = write.extend_leases(connection, rows, self._held.lease)
            for claim in claims:
                if claim.job.id in ours:
                    claim.deadline = now + LEASE_MARGIN * self._held.lease
                    claim.start_recorded = claim.start_recorded or claim.job.id in started
                else:
                    self._lose(claim)

    def _record_activity(self, connection: BoundedConnection) -> None:
        entries = self._tally.take()
        if entries:
            try:
                charts.record_activity(connection, entries)
            except BaseException:
                self._tally.put_back(entries)
                raise

    def _release_waiting(self, connection: BoundedConnection, older_than: float) -> None:
        waited = self._held.withdraw(older_than)
        if waited:
            try:
                write.release_unstarted(connection, [(claim.job.id, claim.token) for claim in waited])
            except (psycopg.Error, LedgerUnavailable):
                # Perhaps given back, perhaps not: they may not start, and the next beat tries again.
                self._held.distrust(waited)
                raise
            for claim in waited:
                self._held.forget(claim)
            self._counters.add("released_unstarted", len(waited))

    def _lose(self, claim: Claim) -> None:
        # A claim that is settling was finished between the snapshot and the statement: its row left running by our own hand. So it
        # was, perhaps, when the job's own transaction is at its end: that transaction finds out.
        if claim.completion is not None:
            return
        if claim in self._held.occupied:
            claim.lost = True
            self._counters.add("leases_lost")
            logger.warning("lease lost", job_id=claim.job.message_id, actor=claim.job.actor)

    @staticmethod
    def _shows_no_start(claim: Claim, now: float) -> bool:
        if claim.start_recorded or claim.lost or claim.completion is not None:
            return False
        return claim.started is not None and now - claim.started >= START_AFTER

    @staticmethod
    def _overdue(claim: Claim, now: float) -> bool:
        limit, started = claim.time_limit, claim.started
        if limit is None or started is None or not claim.start_recorded:
            # Its start is recorded first, or nobody would know that this job was running and hold it guilty.
            return False
        return now > started + limit + 2 * TIME_LIMIT_GRACE

    def _connected(self) -> BoundedConnection:
        if self._connection is None or self._connection.closed:
            self._connection = self._database.dedicated("heartbeat", batches=True)
            self._orders.listen(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
