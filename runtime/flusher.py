"""Group commit: one thread writes how executions ended, many in one statement, so that no worker thread waits for a commit.

Nothing that was handed over is dropped while the process lives. Postgres away: the batch is held and written when it is back (a
late finish is accepted as long as nobody else claimed the job; the token decides). A row that cannot be stored: the batch is halved
until it stands alone, and that job is dead with ``result_unstorable``. Zero rows for a finish: somebody else owns the job by now,
or an earlier try of ours was committed and its reply lost; either way nothing is written again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Final

import psycopg
from structlog.stdlib import get_logger

from errors import LedgerUnavailable
from ledger import batches, write
from ledger.database import BoundedConnection, Database, is_outage
from ledger.records import Finish
from ledger.states import TERMINAL, State
from runtime.claims import Claim, HeldClaims
from runtime.counters import Counters
from runtime.outage import Outage
from runtime.watchdog import Pulse

logger = get_logger(__name__)

#: Most rows of one statement.
MAX_BATCH: Final = 500
#: How long the first result of a batch waits for company, in seconds: at least and at most, and per result of the batch before. Where
#: results come in by the thousand, a statement's own cost is most of what they cost, and a few milliseconds make fewer and longer ones.
LINGER: Final = 0.001
MAX_LINGER: Final = 0.005
LINGER_PER_RESULT: Final = 0.000_1
#: How long it waits for the first result before it says that it is still there, in seconds.
IDLE: Final = 1.0
#: Most results waiting to be written; beyond it worker threads wait, so that an outage cannot fill the memory.
MAX_WAITING: Final = 2_000
#: Ends after which the relay has something to do.
_WAITS: Final = (State.RETRYING, State.SCHEDULED, State.PENDING)
#: Deadlock and serialisation failure: the statement is repeated as it is.
_REPEATABLE: Final = ("40P01", "40001")


class Flusher:
    """Writes the ends of executions.

    Parameters:
        held: where claims are forgotten once their end is committed.
        on_waiting: called after a commit with the seconds until the soonest job that now waits for its time.
    """

    def __init__(
        self, database: Database, held: HeldClaims, counters: Counters, *, on_waiting: Callable[[float], None] = lambda _: None
    ) -> None:
        self._database = database
        self._held = held
        self._counters = counters
        self._on_waiting = on_waiting
        self.pulse = Pulse()
        self._queue: SimpleQueue[tuple[Claim, Finish] | None] = SimpleQueue()
        self._below_limit = threading.Event()
        self._below_limit.set()
        self._thread = threading.Thread(target=self._run, name="switchyard-flusher", daemon=True)
        self._connection: BoundedConnection | None = None
        self._give_up_at: float | None = None
        self._outage = Outage("flusher, holding results")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def put(self, claim: Claim, finish: Finish) -> None:
        """Hand over one end. Waits only when thousands are waiting already, which takes an outage of Postgres."""
        finish.limited = claim.job.limited
        self._queue.put((claim, finish))
        while len(self._held.settling) > MAX_WAITING and self.alive:
            # A short wait and another look: the flusher may have caught up between the two.
            self._below_limit.clear()
            self._below_limit.wait(0.1)

    def stop(self, timeout: float) -> bool:
        """Write what is left, for at most ``timeout`` seconds, and end the thread. False: something could not be written in time."""
        self._give_up_at = monotonic() + timeout
        self._queue.put(None)
        self._thread.join(timeout + 1.0)
        return not self._held.settling

    def _run(self) -> None:
        running = True
        linger = LINGER
        while running:
            batch = []
            self.pulse.beat()
            try:
                entry = self._queue.get(timeout=IDLE)
            except Empty:
                continue
            if entry is not None and self._queue.empty():
                sleep(linger)
            while True:
                if entry is None:
                    running = False
                else:
                    batch.append(entry)
                if len(batch) >= MAX_BATCH:
                    break
                try:
                    entry = self._queue.get_nowait()
                except Empty:
                    break
            if batch:
                self._settle(batch)
            linger = min(MAX_LINGER, max(LINGER, LINGER_PER_RESULT * len(batch)))
        if self._connection is not None:
            self._connection.close()

    def _settle(self, batch: list[tuple[Claim, Finish]]) -> None:
        try:
            self._write([finish for _, finish in batch])
        except LedgerUnavailable:
            # Only at the end of a shutdown: the rows stay running, and their leases bring them back.
            logger.error("results not written, their jobs will run again", jobs=len(batch))
            self._counters.add("results_given_up", len(batch))
        else:
            self._close_batches(batch)
        for claim, _ in batch:
            self._held.forget(claim)
        if len(self._held.settling) <= MAX_WAITING:
            self._below_limit.set()
        # A slot that was freed may have woken somebody.
        waiting = [
            0.0 if finish.children or finish.upstream or finish.limited else finish.delay
            for _, finish in batch
            if finish.children or finish.upstream or finish.limited or finish.state in _WAITS
        ]
        if waiting:
            self._on_waiting(min(waiting))

    def _close_batches(self, batch: list[tuple[Claim, Finish]]) -> None:
        """Look at the batches (groups) that lost their last job here, or their first one dead; a keeper looks where this fails."""
        ended = {claim.job.batch_id for claim, finish in batch if claim.job.batch_id is not None and finish.state in TERMINAL}
        if not ended:
            return
        # A batch of which this process holds another job is not at its end.
        settled = {claim for claim, _ in batch}
        busy = {claim.job.batch_id for claim in self._held.all() if claim not in settled}
        ended -= busy - {claim.job.batch_id for claim, finish in batch if finish.state is State.DEAD}
        ids = [id_ for id_ in ended if id_ is not None]
        try:
            moved = bool(ids) and self._database.run(lambda connection: batches.close(connection, ids))
            if moved:
                self._on_waiting(0.0)
        except (LedgerUnavailable, psycopg.Error) as error:
            logger.warning("could not look whether batches have ended, a keeper will", batches=len(ids), error=str(error).strip())

    def _write(self, finishes: list[Finish]) -> None:
        """Write a batch, whatever it takes; see the module's docstring."""
        repeated = False
        pause = 0.05
        while True:
            self.pulse.beat()
            try:
                connection = self._connected()
                done = write.finish(connection, finishes)
                if len(done) < len(finishes):
                    self._fenced([entry for entry in finishes if entry.id not in done], connection, repeated)
                self._outage.over()
                return
            except (psycopg.Error, LedgerUnavailable) as error:
                if isinstance(error, LedgerUnavailable) or is_outage(error, self._connection):
                    self._disconnect()
                    repeated = True
                    if self._give_up_at is not None and monotonic() > self._give_up_at:
                        raise LedgerUnavailable(str(error)) from error
                    self._outage.failed(error)
                    sleep(pause)
                    pause = min(pause * 2, 1.0)
                elif error.sqlstate not in _REPEATABLE:
                    self._isolate(finishes, error)
                    return
            except Exception as error:
                # A follower's id is taken, or something nobody thought of: it concerns one row, and must not stop the others.
                self._isolate(finishes, error)
                return

    def _isolate(self, finishes: list[Finish], error: Exception) -> None:
        if len(finishes) > 1:
            middle = len(finishes) // 2
            self._write(finishes[:middle])
            self._write(finishes[middle:])
            return
        guilty = finishes[0]
        reason = str(error).strip()
        if guilty.children:
            logger.error("the followers of a job cannot be written, its own end stands", job=guilty.id, error=reason)
            guilty.children = []
            self._write([guilty])
            return
        if guilty.dead_reason == "result_unstorable":
            # Even the bare verdict was refused: leave the row to its lease rather than stop everybody's results.
            logger.critical("the end of a job cannot be written, its lease will end it", job=guilty.id, error=reason)
            self._counters.add("results_refused")
            return
        logger.error("the result of a job cannot be stored, it is dead", job=guilty.id, error=reason)
        verdict = Finish(
            id=guilty.id,
            token=guilty.token,
            state=State.DEAD,
            started=guilty.started,
            finished=guilty.finished,
            outcome="failed",
            error_type=type(error).__name__,
            error=reason.encode("ascii", "backslashreplace").decode().replace("\x00", "\\x00")[:2_000],
            dead_reason="result_unstorable",
            limited=guilty.limited,
        )
        self._write([verdict])

    def _fenced(self, unmatched: list[Finish], connection: BoundedConnection, repeated: bool) -> None:
        ours = write.own_commits(connection, unmatched) if repeated else set()
        for entry in unmatched:
            if entry.id not in ours:
                self._counters.note("fenced", entry.id, f"job row {entry.id}: the lease was lost, its late result was refused")

    def _connected(self) -> BoundedConnection:
        if self._connection is None or self._connection.closed:
            self._connection = self._database.dedicated("flusher", batches=True)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
