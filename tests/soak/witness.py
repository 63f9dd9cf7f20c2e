"""Every job has ended exactly once: the checker of tests.faults, over the rows that are left and those that retention has removed.

And what is left when all is drained: nothing that depends on how many jobs there were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import IsolationLevel, sql
from psycopg.rows import dict_row

from ledger.states import TERMINAL, State
from tests.faults.checker import Case, Verdict, check, waited_for_leases
from tests.faults.recorder import Event
from tests.soak.jobs import ENDS

_GONE = """
SELECT message_id::text AS id, actor, state, generation, attempt, failures, lost, max_attempts, last_token::text AS last_token,
    result, dead_reason, error_type, error
FROM soak_job
"""
_GONE_ATTEMPTS = """
SELECT i.message_id::text, a.generation, a.attempt, a.outcome FROM soak_attempt AS a JOIN soak_id AS i USING (job_id)
"""
_IDLE = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
    AND state_change < clock_timestamp() - interval '2 seconds'
"""
_LOCKS = """
SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE a.datname = current_database() AND l.pid <> pg_backend_pid() AND (l.locktype = 'advisory' OR NOT l.granted)
"""
_CLIENTS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class LastingCase(Case):
    """What is known about a soak: also of jobs whose rows are gone."""

    def __init__(self, connection: psycopg.Connection[Any], look: Callable[[], list[Event]], max_lost: int) -> None:
        super().__init__(connection, look, max_lost)
        with connection.cursor(row_factory=dict_row) as cursor:
            self.rows |= {row["id"]: row for row in cursor.execute(_GONE).fetchall()}
        for job, generation, attempt, outcome in connection.execute(_GONE_ATTEMPTS).fetchall():
            self.history[job].append((generation, attempt, outcome))


def judge_jobs(url: str, look: Callable[[], list[Event]], max_lost: int) -> Verdict:
    """Hold every job that there was against the invariants."""
    with psycopg.connect(url) as connection:
        # One moment for all that is read: retention goes on meanwhile.
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        case = LastingCase(connection, look, max_lost)
    verdict = check(case, ends=ENDS)
    verdict.complain("I1", "jobs have not ended exactly once in their generation", _endings(case))
    # Nobody was killed here, and nobody paused.
    verdict.complain("I2", "jobs were taken from workers that live", waited_for_leases(case))
    verdict.complain("I6", "jobs were run more than once without a failure", [verdict.reruns] if verdict.reruns else [])
    folded = {event.job for event in case.events if event.kind == "folded"}
    verdict.complain("P6", "sends that were told to be another job are there all the same", folded & case.rows.keys())
    return verdict


def _endings(case: Case) -> list[str]:
    """Jobs with a generation that has not ended, or more than once."""
    found = []
    for job, row in case.rows.items():
        ends = [generation for before, after, generation, *_ in case.steps[job] if before != after and State(after) in TERMINAL]
        if sorted(ends) != list(range(1, row["generation"] + 1)):
            found.append(f"{job} ({row['actor']}: {ends})")
    return found


def left_in(connection: psycopg.Connection[Any], tables: tuple[str, ...]) -> list[str]:
    """Tables that have to be empty and are not."""
    statement = sql.SQL("SELECT count(*) FROM switchyard.{}")
    counts = {table: connection.execute(statement.format(sql.Identifier(table))).fetchone() for table in tables}
    return [f"{row[0]} rows in {table}" for table, row in counts.items() if row is not None and row[0]]


def held_in(connection: psycopg.Connection[Any], *, clients: bool) -> list[str]:
    """Locks and transactions that nobody ended; ``clients``: connections too, since every process is gone."""
    asked = {"sessions idle in a transaction": _IDLE, "advisory or awaited locks": _LOCKS}
    asked |= {"connections": _CLIENTS} if clients else {}
    rows = {name: connection.execute(statement.encode()).fetchone() for name, statement in asked.items()}
    return [f"{row[0]} {name}" for name, row in rows.items() if row is not None and row[0]]
