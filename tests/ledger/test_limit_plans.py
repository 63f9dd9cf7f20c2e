"""What decisions about limits read, on a ledger with a past: 50,000 completed jobs of the same keys, and long lines.

The statements inside of functions cannot be explained from outside, so what they read is counted: rows and scans of this transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from ledger import limits, read, write
from ledger.database import Database
from tests.ledger.factory import token
from tests.ledger.limiting import admit, at_once, rate
from tests.ledger.test_plans import custom_plan
from tests.rig.postgres import Databases

PAST = 50_000
LINE = 5_000

SEED = """
    INSERT INTO switchyard.job (
        message_id, queue, actor, state, payload, broker, limited, concurrency_key, rate_key, rate_cost, blocked_on, line, wait_reason,
        run_at, next_publish_at, finished_at, token, lease_until, priority
    )
    SELECT
        gen_random_uuid(), 'default', 'work', %(state)s, '{"args": [], "kwargs": {}}', (ARRAY['postgres', 'redis'])[1 + mod(i, 2)],
        %(limited)s, CASE WHEN %(limited)s THEN 'work:' || mod(i, %(keys)s) END, CASE WHEN %(limited)s THEN 'work' END, 1,
        CASE WHEN %(state)s = 'scheduled' THEN 'work:' || mod(i, %(keys)s) END, i,
        CASE WHEN %(state)s = 'scheduled' THEN 'concurrency' END,
        CASE WHEN %(state)s = 'scheduled' THEN 'infinity'::timestamptz ELSE now() END,
        CASE WHEN %(state)s = 'pending' AND mod(i, 2) = 1 THEN now() END,
        CASE WHEN %(state)s = 'completed' THEN now() END,
        CASE WHEN %(state)s = 'running' THEN gen_random_uuid() END, CASE WHEN %(state)s = 'running' THEN now() + interval '1 day' END,
        mod(i, 3)
    FROM generate_series(1, %(count)s) AS i
"""


@pytest.fixture(scope="module")
def seeded_url(databases: Databases) -> Iterator[str]:
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for state, limited, count, keys in (
            ("completed", True, PAST, 5),
            ("scheduled", True, LINE, 5),
            ("running", True, 10, 5),
            ("pending", True, 300, 300),
            ("pending", False, LINE, 1),
        ):
            connection.execute(SEED, {"state": state, "limited": limited, "count": count, "keys": keys})
        connection.execute(
            "INSERT INTO switchyard.gate (kind, key, name) SELECT 'slot', 'work:' || i, 'work' FROM generate_series(0, 4) AS i"
        )
        limits.declare_rules(connection, [rate(1_000_000, burst=1_000), at_once(3)])
        connection.execute("VACUUM ANALYZE")
    yield url
    databases.drop(url)


def read_by(connection: Any, call: Callable[[Any], Any]) -> tuple[int, int]:
    """How often a call scanned the whole table, and how many of its rows it read; what it did is undone."""
    figures = (
        "SELECT seq_scan, seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'switchyard.job'::regclass"
    )
    with connection.transaction(force_rollback=True):
        before = connection.execute(figures).fetchone()
        call(connection)
        after = connection.execute(figures).fetchone()
    return after[0] - before[0], after[1] - before[1]


def first_running(connection: Any) -> list[int]:
    found = connection.execute("SELECT id FROM switchyard.job WHERE state = 'running' ORDER BY lease_until LIMIT 3").fetchall()
    return [row[0] for row in found]


#: What is done, and how many rows it may read.
READS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "250 jobs of 250 keys": (lambda c: admit(c, idle=8), 6_000),
    "three jobs": (lambda c: admit(c, idle=8, examine=3), 200),
    "freed slots": (lambda c: limits.free_slots(c, first_running(c)), 300),
    "missed wakes": (limits.wake_missed, 300),
    "limited queues": (lambda c: limits.limited_queues(c, ["default", "other"], ["work"]), 20),
}


# What people do runs on the pool, with the planner's defaults; what workers and keepers do, on connections of their own.
@pytest.mark.parametrize(
    ("what", "kind"), [*((what, "worker's") for what in READS), ("freed slots", "pooled"), ("missed wakes", "pooled")]
)
def test_a_decision_reads_no_more_than_it_decides_about(seeded_url, what, kind):
    call, bound = READS[what]
    database = Database(seeded_url)
    with database.dedicated("plans") if kind == "worker's" else database.connection() as connection:
        scans, rows = read_by(connection, call)
    database.close()

    assert scans == 0
    assert rows <= bound


def test_a_plain_claim_walks_past_no_limited_job(seeded_url):
    claim = {"actors": ["work"], "worker": "w", "token": token(), "lease": 30.0}
    with Database(seeded_url).dedicated("plans") as connection:
        scans, rows = read_by(connection, lambda c: write.claim_next(c, "default", 20, **claim))

    assert scans == 0
    assert rows <= 60


WAITING = "SELECT 1 FROM switchyard.job WHERE state = 'scheduled' AND next_publish_at IS NULL"


def test_those_in_line_are_listed_without_a_walk(seeded_url):
    database = Database(seeded_url)
    with database.connection() as connection:
        plan = custom_plan(connection, WAITING, None)
        scans, rows = read_by(connection, read.queue_depths)
    database.close()

    assert "job_timeless" in str(plan)
    assert scans == 0
    assert rows < 3 * LINE
