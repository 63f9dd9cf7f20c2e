"""Sends that belong to the caller's own transaction: committed with it, or gone with it.

    with enlist(session):           nothing is sent yet
        order = Order(...)
        charge.send(order.id)       the row is written on the session's connection; due now, and a NOTIFY goes with it
    session.commit()                row and NOTIFY become visible together: a keeper publishes, or a fetcher claims

No hook and no event of SQLAlchemy's takes part: the database alone decides whether the job exists. Nothing is handed to the publisher
either, since only the server knows when the commit is done. If the process dies right after it, the keepers have been told already; if
nobody listens (PgBouncer), their poll finds the row within a second.

Which block a send belongs to is a context variable: other threads send plainly, a task sees the block it was made in for as long as that is
open, and of nested blocks the innermost counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, cast

from errors import EnlistRefused
from ledger import write
from ledger.batches import Together
from ledger.borrowed import Borrowed, LedgerOnly, borrow
from ledger.records import Enqueued, NewJob
from ledger.sql import SQL

#: The channel on which keepers learn that a commit made something due.
DUE_CHANNEL: Final = "switchyard_due"


class Enlistment:
    """One block. ``outer`` is the block around it."""

    def __init__(self, borrowed: Borrowed, ledger: LedgerOnly | None, outer: Enlistment | None) -> None:
        self._borrowed = borrowed
        self._ledger = ledger
        self.outer = outer
        self.open = True

    def write(self, jobs: Sequence[NewJob], rings: Sequence[tuple[str, str]], whole: Together | None = None) -> list[Enqueued]:
        """Write jobs, all or none, and the notifications (channel, payload) that wake somebody at the commit.

        Raises:
            EnlistRefused: the connection has no transaction, leads to another database, or cannot carry a send with keys.
            JobExists, IdempotencyConflict: another job has one of these ids or keys; the caller's transaction goes on.
        """
        if self._ledger is not None:
            self._ledger.check(self._borrowed)
        if any(job.has_keys for job in jobs):
            self._check_keys(jobs)
        # It has what the write path uses of a connection: execute and transaction.
        written = write.enqueue_many(cast("write.Conn", self._borrowed), jobs, whole)
        # With every send: a savepoint that is rolled back takes its notification along, so an earlier one proves nothing.
        for channel, payload in rings:
            self._borrowed.execute(SQL["ring_at_commit"], {"channel": channel, "payload": payload})
        return written

    def _check_keys(self, jobs: Sequence[NewJob]) -> None:
        """Raises: EnlistRefused: the transaction could not tell whether a key is free, or would keep workers from a job."""
        for job in jobs:
            if job.control is not None and job.control.unique is not None and job.control.unique.mode == "debounce":
                raise EnlistRefused(
                    f"actor {job.actor!r} is debounced: a send changes the job that waits, which workers could not take before this "
                    "transaction ends; send it outside of enlist(), or with unique_mode='skip'"
                )
        level = self._borrowed.execute(SQL["transaction_isolation"]).fetchone()[0]
        if level not in ("read committed", "read uncommitted"):
            raise EnlistRefused(
                f"the transaction is {level.upper()}, where a send with a key cannot see the job that took the key meanwhile; "
                "use READ COMMITTED for it, or send outside of enlist()"
            )


_innermost: Final[ContextVar[Enlistment | None]] = ContextVar("switchyard_enlistment", default=None)


def current_enlistment() -> Enlistment | None:
    """The block that a send belongs to now; None: it commits by itself."""
    enlistment = _innermost.get()
    # A task or a thread may have inherited a block that has ended since.
    while enlistment is not None and not enlistment.open:
        enlistment = enlistment.outer
    return enlistment


@contextmanager
def enlist(target: object, ledger: LedgerOnly | None) -> Iterator[None]:
    """Have the sends inside the block belong to the transaction of ``target``; see ``switchyard.enlist``.

    Parameters:
        ledger: makes sure that ``target`` leads to the ledger's database; None where that is known.
    """
    enlistment = Enlistment(borrow(target), ledger, _innermost.get())
    _innermost.set(enlistment)
    try:
        yield
    finally:
        enlistment.open = False
        # An interruption between two frames leaves this to the garbage collector, which may come when other blocks are open.
        if _innermost.get() is enlistment:
            _innermost.set(enlistment.outer)


def leave_all() -> None:
    """Begin outside of every block, whatever an execution before left behind on this thread."""
    _innermost.set(None)
