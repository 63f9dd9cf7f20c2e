"""Stock ``dramatiq.group`` with completion callbacks: its barrier is a batch in the ledger, which no FLUSHALL and no crash can lose.

Effect: ``group.run()`` makes the batch, each child joins it as it is sent, and the callbacks are sent when all children have ended, dead
and cancelled ones included. A stock group sends its children one by one: one that lacks some after an hour ends with those it has.
Message options: ``group_completion_uuid`` and ``group_completion_callbacks``, both Dramatiq's.
Store: the table ``batch``; Postgres away, ``run()`` raises ``LedgerUnavailable`` before the first child is sent.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from dramatiq import Broker, Message, MessageProxy
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits import RateLimiterBackend

from ledger import batches, write
from ledger.database import Database
from ledger.records import NewBatch, NewJob


class WritesJobs(Protocol):
    """The broker, as far as this middleware needs it."""

    def new_job(self, message: Message[Any], delay: float = 0.0) -> NewJob:
        """The row of a message."""


class LedgerBarriers(RateLimiterBackend):
    """Makes a batch where Dramatiq makes a barrier; nobody waits at it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, key: str, value: int, ttl: int) -> bool:
        """Make the batch ``key`` of ``value`` jobs; ``ttl`` does not matter."""
        self._database.run(lambda c: batches.make(c, [NewBatch(id=key, root_id=key, expected=value)]))
        return True


class LedgerGroupCallbacks(GroupCallbacks):
    """Dramatiq's middleware by class, so that ``group.run()`` finds it, and ours by what it does."""

    def __init__(self, database: Database) -> None:
        super().__init__(LedgerBarriers(database))
        self._database = database
        #: The group whose callbacks were written last by this process: its other children need not do it again.
        self._written: str | None = None

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """A child is sent: the batch learns from the first one what to send at its end."""
        batch = message.options.get("group_completion_uuid") if message.options else None
        if batch is None or batch == self._written:
            return
        callbacks: list[Message[Any]] = [Message(**fields) for fields in message.options.get("group_completion_callbacks") or ()]
        rows = callback_rows(broker, callbacks)
        self._database.run(lambda c: batches.set_callbacks(c, batch, rows))
        self._written = batch

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Nothing to do: the child's end is in its row, and whoever wrote it looks at the batch."""


def callback_rows(broker: Broker, callbacks: list[Message[Any]]) -> list[dict[str, Any]] | None:
    """The rows that a batch keeps until it sends them; None when there are none. Raises: PayloadError, OptionError."""
    jobs = []
    for message in callbacks:
        broker.emit_before("enqueue", message, None)
        delay = (message.options.get("delay") or 0) / 1000
        # Due at once when the time has come: a keeper publishes them, to what is the route then.
        jobs.append(cast("WritesJobs", broker).new_job(message, delay)._replace(grace=0.0))
        broker.emit_after("enqueue", message, None)
    return write.controlled_rows(jobs) or None
