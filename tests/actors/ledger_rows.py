"""Rows in the ledger, many at a time, each taken through legal states."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

#: When the rows' jobs ended, unless the test says otherwise.
ENDED = datetime(2026, 1, 31, 10, 30, tzinfo=UTC)

_INSERT = """
INSERT INTO switchyard.job (message_id, queue, actor, state, payload, broker, created_at)
SELECT gen_random_uuid(), %(queue)s, %(actor)s, 'pending', '{"args": [], "kwargs": {}}', 'postgres', %(created)s
FROM generate_series(1, %(count)s) RETURNING id
"""
_CLAIM = """
UPDATE switchyard.job SET state = 'running', token = gen_random_uuid(), lease_until = now(), attempt = 1, started_at = %(started)s
WHERE id = ANY(%(ids)s)
"""
_END = """
UPDATE switchyard.job SET state = %(state)s, token = NULL, lease_until = NULL, finished_at = %(ended)s, next_publish_at = NULL,
    dead_reason = CASE WHEN %(state)s = 'dead' THEN 'max_retries' END, error = %(error)s
WHERE id = ANY(%(ids)s)
"""
_FAILED = """
INSERT INTO switchyard.attempt (job_id, generation, attempt, outcome, error_type, error, finished_at)
SELECT id, 1, 1, 'failed', 'ValueError', 'no', %(ended)s FROM unnest(%(ids)s::bigint[]) AS id
"""


def add(
    connection: Connection[Any],
    count: int,
    state: str = "completed",
    *,
    actor: str = "send_email",
    queue: str = "emails",
    ended: datetime = ENDED,
    seconds: float = 2.0,
    error: str | None = None,
) -> list[int]:
    """Add jobs in a state: pending, running, completed or dead; a dead one has one failed attempt. Returns their ids."""
    started = ended - timedelta(seconds=seconds)
    values = {"queue": queue, "actor": actor, "created": started - timedelta(seconds=1), "count": count, "error": error}
    values |= {"state": state, "started": started, "ended": ended}
    ids = [row[0] for row in connection.execute(_INSERT, values)]
    if state != "pending":
        connection.execute(_CLAIM, {**values, "ids": ids})
    if state in ("completed", "dead"):
        connection.execute(_END, {**values, "ids": ids})
    if state == "dead":
        connection.execute(_FAILED, {**values, "ids": ids})
    return ids
