"""What looks for what is due walks over nothing that is not due yet, however much of it there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from ledger.database import Database
from ledger.sql import SQL
from tests.rig.postgres import Databases

#: Rows of each kind whose time has not come.
FUTURE = 3_000
DAY = 86_400.0

STATEMENTS: dict[str, dict[str, Any]] = {
    "relay_due": {
        "own": "redis", "carrying": ["redis"], "reachable": ["redis", "postgres"], "refused": [], "limit": 1_000,
        "grace": 30.0, "now": None, "age": None,
    },
    "look": {},
    "expired_workers": {"now": None},
    "expire": {"now": None, "limit": 1_000},
    "prune_keys": {"now": None, "limit": 1_000},
    "forget_ticks": {"now": None, "keep": DAY, "limit": 1_000},
    "forget_samples": {"keep": DAY},
    "forget_activity": {"keep": DAY},
}  # fmt: skip


@pytest.fixture(scope="module")
def future_url(databases: Databases) -> Iterator[str]:
    """A ledger in which everything is about tomorrow, but for one job."""
    url = databases.create()
    rows = {
        "job (message_id, queue, actor, broker, payload, state, next_publish_at, expires_at)": (
            "gen_random_uuid(), 'q', 'a', 'redis', '{}', 'scheduled', now() + interval '1 day', now() + interval '2 days'"
        ),
        "idempotency (kind, scope, key, message_id, expires_at)": "'unique', 'a', i, gen_random_uuid(), now() + interval '1 day'",
        "tick (tick_at, schedule, message_id)": "now(), i, gen_random_uuid()",
        "sample (at, queue, scheduled, pending, running, retrying)": "now(), i, 0, 0, 0, 0",
        "activity (at, queue, actor, completed, failed, dead, waits, runs)": "now(), i, 'a', 0, 0, 0, '{}', '{}'",
    }
    with psycopg.connect(url, autocommit=True) as connection:
        for place, values in rows.items():
            statement = f"INSERT INTO switchyard.{place} SELECT {values} FROM generate_series(1, {FUTURE}) AS i"  # noqa: S608
            connection.execute(statement.encode())
        connection.execute(
            "UPDATE switchyard.job SET state = 'pending' WHERE id % 2 = 0;"
            "UPDATE switchyard.job SET state = 'running', token = gen_random_uuid(), lease_until = now() + interval '1 day',"
            " next_publish_at = NULL WHERE id % 2 = 0;"
            "UPDATE switchyard.job SET next_publish_at = now() WHERE id = 1"
        )
        connection.execute("VACUUM ANALYZE")
    yield url
    databases.drop(url)


@pytest.mark.parametrize("name", STATEMENTS)
def test_what_is_not_due_costs_nothing(future_url, name):
    with Database(future_url).dedicated("plans") as connection, connection.transaction(force_rollback=True):
        rows = connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {SQL[name]}".encode(), STATEMENTS[name]).fetchall()
    plan = "\n".join(line for (line,) in rows)

    passed_over = [int(number) for number in re.findall(r"Rows Removed by (?:Filter|Index Recheck): (\d+)", plan)]
    assert sum(passed_over) < FUTURE / 10, plan
    assert "Seq Scan on job" not in plan, plan
