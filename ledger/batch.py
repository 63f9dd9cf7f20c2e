"""What the ledger answers about batches (groups): where they are, and how many of their jobs are in which state.

Reads alone, as in ``ledger.read``; jobs are counted when somebody asks, some 0.1 s per hundred thousand of a batch. Connection errors are
``LedgerUnavailable`` at ``Database.connection``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from errors import BatchNotFound
from ledger.sql import SQL
from ledger.states import TERMINAL, State

Conn = Connection[Any]

#: The most batches of one answer.
MAX_LIMIT: Final = 200

#: ``waiting``: for a step before it; ``failed``: every job has ended, and not all are completed, be it that it never began. A replay may
#: yet make it succeed.
BatchState = Literal["waiting", "open", "failed", "succeeded"]

_CONDITIONS: Final[dict[str, str]] = {
    "waiting": "b.waits_for IS NOT NULL AND b.completed_at IS NULL",
    "open": "b.waits_for IS NULL AND b.completed_at IS NULL",
    "failed": "b.completed_at IS NOT NULL AND b.succeeded_at IS NULL",
    "succeeded": "b.succeeded_at IS NOT NULL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCallback:
    """A message that a batch sends at its end, or sent."""

    when: Literal["on_complete", "on_success", "on_death"]
    #: The job that it is, once it was sent.
    id: str
    actor: str
    sent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch. All times are aware, on the database's clock."""

    id: str
    name: str | None
    #: The batch around it, and the job whose actor made it.
    parent_id: str | None
    sent_by: str | None
    #: The job or batch whose completion it waits for; None: it has begun.
    waits_for: str | None
    #: How many jobs were put into it, those of batches within it not counted.
    total: int
    #: How many of them are in each state.
    counts: Mapping[State, int]
    created_at: datetime
    #: When its first job was dead; when all had ended; when all were completed. None: not yet.
    died_at: datetime | None
    completed_at: datetime | None
    succeeded_at: datetime | None
    callbacks: tuple[BatchCallback, ...]
    #: The batches within it.
    batches: tuple[Batch, ...]

    @property
    def state(self) -> BatchState:
        """``waiting``, ``open``, ``failed`` or ``succeeded``."""
        if self.succeeded_at is not None:
            return "succeeded"
        if self.completed_at is not None:
            return "failed"
        return "open" if self.waits_for is None else "waiting"

    @property
    def ended(self) -> int:
        """How many of its jobs are completed, dead or cancelled."""
        return sum(self.counts[state] for state in TERMINAL)

    @property
    def percent(self) -> float:
        """The share of its jobs, and of those of the batches within it, that are completed; 100 for an empty one."""
        done, total = self._progress()
        return 100.0 if total == 0 else 100.0 * min(done, total) / total

    def _progress(self) -> tuple[int, int]:
        parts = [batch._progress() for batch in self.batches]
        # Of one that has succeeded jobs may have been removed since.
        done = self.total if self.succeeded_at is not None else self.counts[State.COMPLETED]
        return done + sum(part[0] for part in parts), self.total + sum(part[1] for part in parts)


def get_batch(connection: Conn, id_: str | UUID) -> Batch:
    """Read one batch, with those within it. Raises: BatchNotFound: no batch has this id."""
    try:
        uuid = id_ if isinstance(id_, UUID) else UUID(id_)
    except ValueError:
        raise BatchNotFound(str(id_)) from None
    tree = [row[0] for row in connection.execute(SQL["batch_tree"], {"id": uuid}).fetchall()]
    rows = _rows(connection, "b.id = ANY(%(ids)s::uuid[])", "ORDER BY b.number", {"ids": tree})
    if str(uuid) not in (row["id"] for row in rows):
        raise BatchNotFound(str(id_))
    return _nested(str(uuid), {row["id"]: row for row in rows}, _counts(connection, rows))


def list_batches(connection: Conn, *, state: str | None = None, limit: int = 50) -> list[Batch]:
    """List the outermost batches, the newest first, without those within them.

    Parameters:
        state: only the ``waiting``, ``open``, ``failed`` or ``succeeded``.
        limit: 1 to 200.

    Raises:
        ValueError: the state is unknown, or the limit out of range.
    """
    if state is not None and state not in _CONDITIONS:
        raise ValueError(f"state {state!r} is unknown; use one of {', '.join(_CONDITIONS)}")
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit {limit} is out of range: 1 to {MAX_LIMIT} batches")
    condition = "b.parent_id IS NULL AND " + ("true" if state is None else _CONDITIONS[state])
    rows = _rows(connection, condition, "ORDER BY b.number DESC LIMIT %(limit)s", {"limit": limit})
    counts = _counts(connection, rows)
    return [_batch(row, counts[row["id"]], ()) for row in rows]


def _rows(connection: Conn, condition: str, rest: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that meet a condition, which is a text of this module's own."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"{SQL['batches']} WHERE {condition} {rest}".encode(), parameters).fetchall()


def _counts(connection: Conn, rows: list[dict[str, Any]]) -> dict[str, dict[State, int]]:
    counts = {row["id"]: dict.fromkeys(State, 0) for row in rows}
    for id_, state, count in connection.execute(SQL["batch_states"], {"ids": list(counts)}).fetchall():
        counts[id_][State(state)] = count
    return counts


def _nested(id_: str, rows: dict[str, dict[str, Any]], counts: dict[str, dict[State, int]]) -> Batch:
    inner = [_nested(other, rows, counts) for other, row in rows.items() if row["parent_id"] == id_]
    return _batch(rows[id_], counts[id_], tuple(inner))


def _batch(row: dict[str, Any], counts: dict[State, int], inner: tuple[Batch, ...]) -> Batch:
    sent = {"on_death": row["died_at"], "on_complete": row["completed_at"], "on_success": row["succeeded_at"]}
    return Batch(
        id=row["id"],
        name=row["name"],
        parent_id=row["parent_id"],
        sent_by=row["sent_by"],
        waits_for=row["waits_for"],
        total=max(row["total"], row["expected"] or 0),
        counts=counts,
        created_at=row["created_at"],
        died_at=row["died_at"],
        completed_at=row["completed_at"],
        succeeded_at=row["succeeded_at"],
        callbacks=tuple(
            BatchCallback(when=when, id=job["message_id"], actor=job["actor"], sent=at is not None)  # type: ignore[arg-type]
            for when, at in sent.items()
            for job in row[when] or ()
        ),
        batches=inner,
    )
