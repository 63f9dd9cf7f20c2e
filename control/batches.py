"""Batches (groups) from outside and from within: how far one is, and more jobs for one that is not complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from dramatiq import Message
from psycopg import Connection

from brokers.broker import SwitchyardBroker
from control import access
from ledger import batch as reads
from ledger import batches
from ledger.batch import Batch
from ledger.records import Enqueued, JobControl, NewJob


def batch(id: str) -> Batch:
    """How far a batch is: its jobs counted by state, its callbacks, the batches within it.

    Parameters:
        id: a group's ``id``, or a job's ``batch_id``.

    Raises:
        BatchNotFound: no batch has this id.
    """
    return access.ask(lambda connection: reads.get_batch(connection, id))


def list_batches(*, state: str | None = None, limit: int = 50) -> list[Batch]:
    """The outermost batches, the newest first.

    Parameters:
        state: only the ``waiting``, ``open``, ``failed`` or ``succeeded``.
        limit: most of them, 1 to 200.

    Raises:
        ValueError: the state is unknown, or the limit out of range.
    """
    return access.ask(lambda connection: reads.list_batches(connection, state=state, limit=limit))


def add_to_batch(id: str, messages: Iterable[Message[Any]], *, delay: int | timedelta | None = None) -> list[Message[Any]]:
    """Send more jobs as part of a batch that is not complete: all of them or none. Inside one of its own jobs it never is complete.

    Parameters:
        id: a group's ``id``; ``current_job().batch_id`` inside one of its jobs.
        messages: from ``actor.message(...)`` or ``actor.message_with_options(...)``.
        delay: milliseconds, or a ``timedelta``, until they may run.

    Raises:
        BatchNotFound: no batch has this id.
        BatchClosed: all its jobs have ended, or it waits for a step before it.
        PayloadError, OptionError, JobExists, LedgerUnavailable: as ``send()``; then nothing was stored.
    """
    broker = access.broker()
    if not isinstance(broker, SwitchyardBroker):
        raise NotImplementedError("batches need the ledger; BROKER=stub has none")
    return broker.enqueue_many(messages, delay=delay, whole=_Growth(id))


class _Growth:
    """Jobs that join a batch; ``ledger.batches.Together``."""

    def __init__(self, id_: str) -> None:
        self._id = id_
        self._member = JobControl(batch_id=id_)

    def before(self, connection: Connection[Any]) -> None:
        """Hold the batch: it cannot end before these jobs count."""
        batches.hold_open(connection, self._id)

    def place(self, position: int, job: NewJob) -> NewJob:
        """The row, in the batch."""
        return job._replace(control=self._member if job.control is None else replace(job.control, batch_id=self._id))

    def after(self, connection: Connection[Any], enqueued: Sequence[Enqueued]) -> None:
        """Count those that this send wrote; a repeated one finds its own."""
        batches.grow(connection, self._id, sum(entry.created for entry in enqueued))
