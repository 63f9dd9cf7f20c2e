"""``job.transaction()``: the actor's writes, the jobs it sends and its own completion are one commit.

    with job.transaction() as connection:   BEGIN on a private connection; sends inside go to it
        ...                                 nothing of the job's row is locked: heartbeats, progress and log lines go on
                                            no interruption from here on
                                            followers (on_success, the next step of a pipeline), guarded FINISH last, COMMIT

Zero rows for the FINISH: another worker may own the job, so ``LeaseLost`` and everything is rolled back. A lost reply to the COMMIT is
looked up by the claim's token, under the row's lock and for as long as Postgres is away: only its answer tells whether the effects
exist. Committed: the flusher writes nothing more, and whatever the actor does afterwards changes nothing. Not committed: the exception
goes up, and the job fails as by any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from structlog.stdlib import get_logger

from errors import LeaseLost, LedgerUnavailable
from ledger import write
from ledger.database import STATEMENT_TIMEOUT, BoundedConnection, Database
from ledger.private import PrivateConnections
from ledger.records import Finish
from ledger.sql import SQL
from ledger.states import State
from runtime.claims import Claim, Completion
from runtime.enlist import enlist

logger = get_logger(__name__)

#: How long the server waits for the commit after the finish before it gives the client up, in seconds.
COMMIT_GRACE: Final = 3.0
#: First and longest pause between two questions about a commit whose reply was lost, in seconds.
_ASK_MIN: Final = 0.05
_ASK_MAX: Final = 1.0


class Transactions:
    """What the transactions of one worker process share."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._connections = PrivateConnections(database, "transaction")

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._connections.close()

    @contextmanager
    def completing(
        self, claim: Claim, result: Callable[[], str | None], follow: Callable[[Finish], None]
    ) -> Iterator[BoundedConnection]:
        """Run the block in a transaction whose commit completes the claim's job.

        Parameters:
            result: the job's result as JSON text, asked at the end of the block.
            follow: adds the jobs that follow from the end.

        Raises:
            RuntimeError: the job has ended already, or the block ended the transaction itself.
            LeaseLost: another worker may own the job; everything was rolled back.
            LedgerUnavailable: Postgres was lost, and nothing was committed.
        """
        if claim.lost:
            raise LeaseLost(claim.job.message_id)
        _refuse_if_ended(claim)
        guard = claim.guard
        ending: Finish | None = None
        try:
            try:
                with self._connections.connection() as connection, connection.transaction():
                    with enlist(connection, None):
                        yield connection
                    if guard is not None:
                        guard.pause()
                    _refuse_if_ended(claim)
                    ending = _completed(claim, result())
                    follow(ending)
                    claim.completion = Completion.UNDER_WAY
                    self._finish(connection, claim, ending)
            except LedgerUnavailable:
                if claim.completion is None or not self._was_committed(claim):
                    raise
                logger.info("the reply to a commit was lost, it was committed")
            claim.ending, claim.completion = ending, Completion.COMMITTED
        finally:
            if claim.completion is Completion.UNDER_WAY:
                claim.completion = None
            if guard is not None:
                guard.resume()

    def _finish(self, connection: BoundedConnection, claim: Claim, ending: Finish) -> None:
        """The last statement before the commit. Raises: LeaseLost."""
        if connection.info.transaction_status == TransactionStatus.IDLE:
            raise RuntimeError("the block ended its transaction itself; job.transaction() commits when the block is over")
        # Whatever the block made of its connection: these rows are ours, and from here on nothing else could end a silence.
        connection.row_factory = tuple_row
        connection.cursor_factory = psycopg.Cursor
        connection.time_limit = STATEMENT_TIMEOUT
        self._connections.leave_nothing(connection)
        connection.execute(SQL["bound_idleness"], {"milliseconds": str(int(COMMIT_GRACE * 1000))})
        if not write.finish(connection, [ending]):
            raise LeaseLost(claim.job.message_id)

    def _was_committed(self, claim: Claim) -> bool:
        """Ask until Postgres answers. Raises: LeaseLost: not committed, and another worker may own the job."""
        pause = _ASK_MIN
        parameters = {"id": claim.job.id, "token": claim.token}
        while True:
            try:
                row = self.database.run(lambda c: c.execute(SQL["how_claim_ended"], parameters).fetchone())
            except (LedgerUnavailable, psycopg.Error) as error:
                logger.warning("cannot tell yet whether a commit arrived", error=str(error).strip())
                sleep(pause)
                pause = min(pause * 2, _ASK_MAX)
                continue
            completed, held = row if row is not None else (False, False)
            if not completed and not held:
                raise LeaseLost(claim.job.message_id)
            return bool(completed)


def _refuse_if_ended(claim: Claim) -> None:
    if claim.completion is not None:
        raise RuntimeError("this job is completed already; job.transaction() can complete it once")
    if claim.ending is not None:
        # The contradiction is the actor's bug: it fails by this error, instead of running again without a trace of it.
        claim.ending = None
        raise RuntimeError("this job has asked to run again later, so job.transaction() cannot complete it")


def _completed(claim: Claim, result: str | None) -> Finish:
    now = monotonic()
    return Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.COMPLETED,
        started=claim.started if claim.started is not None else now,
        finished=now,
        result=result,
        limited=claim.job.limited,
    )


def say_too_late(result: Any, exception: BaseException | None) -> None:
    """Log what an actor returned or raised after its transaction had completed the job."""
    if exception is not None:
        error = f"{type(exception).__name__}: {exception}"
        logger.error("raised after job.transaction() had completed the job, which stays completed", error=error)
    elif result is not None:
        logger.warning("a return value after job.transaction() is ignored, assign job.result inside the block")
