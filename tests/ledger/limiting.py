"""Limited jobs at the ledger: rows with keys, rules, and the step that decides about them at any time one likes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

from ledger import limits, write
from ledger.limits import Admitted, Rule
from ledger.records import JobControl
from tests.ledger.factory import LEASE, clear, completed, new_job, token

Conn = Connection[Any]

#: What of a job's control has it counted by the rate, and by the slots, of the actor ``work``.
KEYED: dict[str, Any] = {"rate_key": "work", "rate_cost": 1}
SLOT: dict[str, Any] = {"concurrency_key": "work"}

#: Noon of some day: tests count seconds from here.
NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def seconds(moment: datetime) -> float:
    """Seconds after noon."""
    return (moment - NOON).total_seconds()


def rate(amount: int, period: float = 1.0, burst: int = 1) -> Rule:
    """A rate of the actor ``work``."""
    return Rule("rate", "work", amount, period, burst)


def at_once(amount: int) -> Rule:
    """So many of the actor ``work`` at once, by key."""
    return Rule("concurrency", "work", amount)


def declare(ledger: Conn, *rules: Rule) -> None:
    """Put limits in force, as a worker that starts."""
    limits.declare_rules(ledger, rules)


def add_limited(ledger: Conn, count: int = 1, *, control: dict[str, Any] | None = None, **fields: Any) -> list[int]:
    """Jobs of the actor ``work``; their rows' ids."""
    return [
        entry.id
        for entry in write.enqueue_many(ledger, [new_job(control=JobControl(**(control or {})), **fields) for _ in range(count)])
    ]


def admit(ledger: Conn, when: float | None = None, *, idle: int = 1_000, **fields: Any) -> Admitted:
    """Decide about the queue ``default`` so many seconds after noon; None: now."""
    arguments: dict[str, Any] = {"actors": ["work"], "worker": "w1", "token": token(), "lease": LEASE}
    now = None if when is None else at(when)
    return limits.admit(ledger, fields.pop("queue", "default"), idle=idle, now=now, **(arguments | fields))


def finish_limited(ledger: Conn, *ids: int) -> None:
    """Running jobs complete, and free their slots."""
    entries = [completed(id_, str(fetch(ledger, id_, "token"))) for id_ in ids]
    for entry in entries:
        entry.limited = True
    assert write.finish(ledger, entries) == set(ids)


def come_due(ledger: Conn, when: float) -> list[int]:
    """Rows whose slot has come by then become pending, as the relay makes them."""
    came = ledger.execute(
        "UPDATE switchyard.job SET state = 'pending', publish_count = 1"
        " WHERE state = 'scheduled' AND next_publish_at <= %s RETURNING id",
        [at(when)],
    )
    return [row[0] for row in came.fetchall()]


def next_slot(ledger: Conn) -> float | None:
    """Seconds after noon of the first slot that was promised."""
    row = ledger.execute("SELECT min(next_publish_at) FROM switchyard.job WHERE state = 'scheduled'").fetchone()
    return None if row is None or row[0] is None else seconds(row[0])


def fetch(ledger: Conn, id_: int, column: str) -> Any:
    """One column of a job's row; times that are infinite are none."""
    value = f"CASE WHEN isfinite({column}) THEN {column} END" if column.endswith("_at") else column
    row = ledger.execute(f"SELECT {value} FROM switchyard.job WHERE id = %s".encode(), [id_]).fetchone()  # noqa: S608
    assert row is not None
    return row[0]


def rows(ledger: Conn, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
    """Columns of the jobs, by id."""
    return ledger.execute(f"SELECT {columns} FROM switchyard.job WHERE {where} ORDER BY id".encode()).fetchall()  # noqa: S608


def forget(ledger: Conn) -> None:
    """Empty the ledger of jobs, rules, gates and pauses."""
    clear(ledger)
    ledger.execute("DELETE FROM switchyard.pause")
    ledger.execute("DELETE FROM switchyard.rule")
    ledger.execute("DELETE FROM switchyard.gate")
