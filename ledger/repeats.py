"""Sends that are made again: what was stored under an id tells whether it is the same send, whose reply was lost, or another job's.

The ids are the senders', so a repeat finds its own row, also when the first try's commit is the one that counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from errors import JobExists
from ledger.records import Enqueued, NewJob
from ledger.sql import SQL
from ledger.states import TERMINAL, State

Conn = Connection[Any]


def sorted_out(connection: Conn, jobs: Sequence[NewJob], ids: dict[str, int]) -> list[Enqueued]:
    """Tell the jobs that were written from those stored before, and those that stand in the batch twice."""
    written = {}
    for position, job in enumerate(jobs):
        id_ = ids.pop(str(UUID(job.message_id)), None)
        if id_ is not None:
            written[position] = Enqueued(id_, job.message_id, True)
    others = iter(recognise(connection, [job for position, job in enumerate(jobs) if position not in written]))
    return [written.get(position) or next(others) for position in range(len(jobs))]


def recognise(connection: Conn, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """A send repeats itself after a lost reply: the same actor and arguments under the same id are the same job, while it lives."""
    rows = connection.execute(SQL["existing_jobs"], {"message_ids": [job.message_id for job in jobs]}).fetchall()
    found = {row[1]: row for row in rows}
    same: list[Enqueued] = []
    for job in jobs:
        row = found.get(str(UUID(job.message_id)))
        if row is None:
            raise JobExists(job.message_id, "it was removed while it was being sent again")
        id_, _, queue, actor, state, payload = row
        if (queue, actor, payload) != (job.queue, job.actor, job.payload):
            raise JobExists(job.message_id, f"with actor {actor!r} and other arguments")
        if State(state) in TERMINAL:
            raise JobExists(job.message_id, f"it is {state}")
        same.append(Enqueued(id_, job.message_id, False))
    return same
