"""Query plans on a ledger with a past: 50,000 completed jobs, a few of everything else, and no statement that walks over them.

The hot statements run as workers run them (dedicated connection, generic plans); what people ask for runs as on the pool, with the
planner's defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql

from keeper.retention import prune
from ledger import batches, control, dead, read, routes, sent, steps, write
from ledger.database import Database
from ledger.dead import DeadFilter
from ledger.records import JobControl, SentKey
from ledger.routes import Place
from ledger.sql import SQL
from ledger.states import State
from settings import Settings
from tests.ledger.factory import completed, failed, new_job, relay_due, token
from tests.rig.postgres import Databases

PAST = 50_000
A_FEW = 40
#: Who sent one job in a hundred.
PARENT = "00000000-0000-7000-8000-000000000001"

SEED = """
    INSERT INTO switchyard.job (
        message_id, queue, actor, state, payload, broker, priority, suspect, created_at, started_at, finished_at, last_token, worker,
        next_publish_at, token, lease_until, dead_reason, wait_reason, wait_since
    )
    SELECT
        gen_random_uuid(), 'q' || mod(i, 5), 'a' || mod(i, 20), state, '{"args": [1, 2], "kwargs": {"x": "y"}}', broker,
        mod(i, 3), mod(i, 10) = 0,
        now() - make_interval(secs => 100000 - i), CASE WHEN ended THEN now() END, CASE WHEN ended THEN now() END, gen_random_uuid(),
        'w' || mod(i, 4),
        CASE WHEN state IN ('scheduled', 'retrying') OR (state = 'pending' AND broker = 'redis' AND mod(i, 10) <> 2)
            THEN now() + make_interval(secs => i) END,
        CASE WHEN state = 'running' THEN gen_random_uuid() END, CASE WHEN state = 'running' THEN now() END,
        CASE WHEN state = 'dead' THEN 'max_retries' END,
        CASE WHEN state = 'pending' AND mod(i, 10) IN (1, 2) THEN CASE mod(i, 10) WHEN 1 THEN 'unknown_actor' ELSE 'paused' END END,
        CASE WHEN state = 'pending' AND mod(i, 10) IN (1, 2) THEN now() END
    FROM (
        SELECT i, state, broker, state IN ('completed', 'dead', 'cancelled') AS ended
        FROM unnest(%(states)s::text[]) AS s (state), unnest(ARRAY['postgres', 'redis']) AS b (broker), generate_series(1, %(count)s) AS i
    ) AS rows
    ORDER BY i
"""


@pytest.fixture(scope="module")
def seeded_url(databases: Databases) -> Iterator[str]:
    """The old ledger, analysed."""
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # rows begin in states that only history reaches
        rare = [state.value for state in State if state is not State.COMPLETED]
        connection.execute(SEED, {"states": rare, "count": A_FEW})
        connection.execute(SEED, {"states": ["completed"], "count": PAST // 2})
        connection.execute("UPDATE switchyard.job SET fingerprint = 'f' || mod(id, 4) WHERE state = 'dead'")
        connection.execute("UPDATE switchyard.job SET parent_id = %s WHERE mod(id, 100) = 0", [PARENT])
        connection.execute("VACUUM ANALYZE switchyard.job")
    yield url
    databases.drop(url)


def custom_plan(connection: Any, text: str, parameters: Any) -> list[Any]:
    """The plan for these very values."""
    return list(connection.execute(f"EXPLAIN {text}", parameters, prepare=False))


def generic_plan(connection: Any, text: str, parameters: dict[str, Any] | None) -> list[Any]:
    """The plan that a prepared statement has for any values."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
    numbered = re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", text).replace("%%", "%")
    connection.execute(f"PREPARE explained AS {numbered}")
    values = sql.SQL(", ").join([sql.Literal((parameters or {})[name]) for name in names])
    arguments = sql.SQL("({})").format(values) if names else sql.SQL("")
    rows = list(connection.execute(sql.SQL("EXPLAIN EXECUTE explained {}").format(arguments)))
    connection.execute("DEALLOCATE explained")
    return rows


class Recorder:
    """Stands between a function of ours and its connection, and explains each statement under the settings it runs with."""

    def __init__(self, connection: Any, generic: bool) -> None:
        self.connection = connection
        self.generic = generic
        self.plans: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    @contextmanager
    def cursor(self, **options: Any) -> Iterator[Recorder]:
        with self.connection.cursor(**options) as cursor:
            recorder = Recorder(cursor, self.generic)
            recorder.plans = self.plans
            yield recorder

    def execute(self, statement: Any, parameters: Any = None, **options: Any) -> Any:
        text = statement.decode() if isinstance(statement, bytes) else statement
        if "pg_try_advisory" not in text:
            plain = getattr(self.connection, "connection", self.connection)
            explain = generic_plan if self.generic else custom_plan
            self.plans.append("\n".join(line for (line,) in explain(plain, text, parameters)))
        return self.connection.execute(statement, parameters, **options)


def plans_of(connection: Any, call: Callable[[Any], Any], *, generic: bool) -> str:
    """The plans of every statement that a call makes, undone afterwards."""
    recorder = Recorder(connection, generic)
    with connection.transaction(force_rollback=True):
        call(recorder)
    assert recorder.plans
    return "\n".join(recorder.plans)


IDS = list(range(1, 51))
CLAIM: dict[str, Any] = {"actors": ["a1", "a2"], "worker": "w", "lease": 30.0}

HOT: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "claim_next": (lambda c: write.claim_next(c, "q1", 20, token=token(), **CLAIM), {"job_ready"}),
    "claim_by_id": (lambda c: write.claim_by_id(c, IDS, token=token(), **CLAIM), {"job_pkey"}),
    "claimed_with_token": (lambda c: write.claimed_with_token(c, worker="w1", token=token()), {"job_lease"}),
    "ready_queues": (lambda c: write.ready_queues(c, ["q1", "q2"], ["a1"]), {"job_ready"}),
    "why_not_claimed": (lambda c: write.why_not_claimed(c, IDS), {"job_pkey"}),
    "release_unstarted": (lambda c: write.release_unstarted(c, [(id_, token()) for id_ in IDS]), set()),
    "extend_leases": (lambda c: write.extend_leases(c, [(id_, token(), 1.0) for id_ in IDS], 30.0), {"job_pkey"}),
    "relay_due": (lambda c: relay_due(c, "redis"), {"job_due", "route_pkey"}),
    "pending_places": (routes.pending_places, {"job_placed", "job_ready"}),
    "move_pending": (
        lambda c: routes.move_pending(c, Place("redis", "q1"), "postgres", carries=False, grace=30.0),
        {"job_placed", "job_ready"},
    ),
    "reroute": (lambda c: routes.reroute(c, IDS, "redis", carries=True, grace=30.0), {"job_pkey"}),
    "next_due": (write.next_due, {"job_due"}),
    "sent_rows": (lambda c: sent.sent_rows(c, "redis", 0.0, 4e9, 100), {"job_due"}),
    "sent_groups": (lambda c: sent.sent_groups(c, "redis", 0.0, 4e9), {"job_due"}),
    "epoch_due": (lambda c: sent.epoch_due(c, "redis", "", 4e9, grace=30.0, limit=100), {"job_due"}),
    "lost_due": (lambda c: sent.lost_due(c, IDS, 4e9), {"job_pkey"}),
    "expired_workers": (write.expired_workers, {"job_lease"}),
    "rescue_worker": (lambda c: write.rescue_worker(c, "w1", alive=False, max_lost=3), {"job_lease"}),
    "cancel": (lambda c: control.cancel(c, token()), {"job_message_id_key"}),
    "cancel_rows": (lambda c: control.cancel_rows(c, IDS, list(State)), {"job_pkey"}),
    "orders": (lambda c: control.orders(c, "w1", IDS), {"job_pkey"}),
    "pauses": (control.pauses, {"job_parked"}),
    "park_rows": (lambda c: control.park_rows(c, IDS), {"job_pkey"}),
    "park_place": (lambda c: control.park_place(c, "redis", "q1", "a1"), {"job_placed", "job_ready", "job_pkey"}),
    "unpark": (control.unpark, {"job_parked", "job_pkey"}),
    "replay": (lambda c: write.replay(c, token()), {"job_message_id_key"}),
    "prune": (lambda c: prune(c, Settings()), {"job_pkey"}),
    "look": (lambda c: c.execute(SQL["look"]), {"job_lease", "job_expiry", "job_unknown_actor", "job_ready", "job_parked"}),
    "settle_unknown": (
        lambda c: c.execute(SQL["settle_unknown"], {"now": None, "after": 60.0}),
        {"job_unknown_actor", "job_pkey"},
    ),
    "expire": (lambda c: c.execute(SQL["expire"], {"now": None, "limit": 100}), {"job_expiry"}),
    "mark_unknown": (lambda c: c.execute(SQL["mark_unknown"]), {"job_ready", "job_pkey"}),
    "take_hooks": (lambda c: dead.take_hooks(c, ["a1"], 100), {"dead_notice_pkey"}),
    "take_for_broker": (lambda c: dead.take_for_broker(c, "redis", own="redis", limit=100), {"dead_notice_pkey"}),
    "forget_workers": (lambda c: c.execute(SQL["forget_workers"]), {"job_lease"}),
    "feed_steps": (lambda c: batches.feed(c, [(token(), "1")]), {"job_upstream", "job_pkey", "batch_waiting"}),
    "cancel_followers": (lambda c: batches.cancel_followers(c, [token()]), {"job_upstream", "job_pkey"}),
    "wait_again": (lambda c: batches.wait_again(c, [token()]), {"job_message_id_key"}),
    "look_at_batches": (lambda c: batches.close(c, [token()]), {"job_batch", "batch_pkey", "batch_nested"}),
    "batches_to_check": (lambda c: batches.to_check(c, 0, 100), {"batch_open"}),
    "prune_batches": (lambda c: batches.prune(c, keep=1.0, limit=100), {"job_batch", "job_upstream"}),
    "job_steps": (lambda c: steps.remembered(c, 1), {"job_step_pkey"}),
    "remember_step": (lambda c: steps.remember(c, 1, token(), "a", "1"), {"job_pkey"}),
}


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_uses_its_index_on_a_workers_connection(seeded_url, name):
    call, indexes = HOT[name]
    with Database(seeded_url).dedicated("plans") as connection:
        plan = plans_of(connection, call, generic=True)

    assert "Seq Scan on job" not in plan, plan
    assert all(f" {index} " in plan or f" {index}\n" in plan for index in indexes), plan


def finish_both(connection: Any) -> None:
    write.finish(connection, [completed(1, token()), failed(2, token())])


def test_finishing_finds_rows_by_id(seeded_url):
    with Database(seeded_url).dedicated("plans") as connection:
        plan = plans_of(connection, finish_both, generic=True)

    # By id, or by the short index of what runs; with few running rows either may look cheaper. Once to lock, then once for each statement.
    assert "Seq Scan on job" not in plan, plan
    assert plan.count("job_pkey") + plan.count("job_lease") == 3, plan


def test_the_next_claim_is_not_sorted(seeded_url):
    """The index gives the order, so a claim from a long backlog costs no more than one from a short one."""
    with Database(seeded_url).dedicated("plans") as connection:
        plan = plans_of(connection, HOT["claim_next"][0], generic=True)

    assert "Sort" not in plan, plan


@pytest.fixture(scope="module")
def backlog_url(databases: Databases) -> Iterator[str]:
    """A ledger in which nearly everything waits, each a trigger that was published."""
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO switchyard.job (message_id, queue, actor, broker, payload, state, publish_count, next_publish_at)"
            " SELECT gen_random_uuid(), 'q1', 'a1', 'redis', '{}', 'pending', 1, now() - i * interval '1 ms'"
            " FROM generate_series(1, %s) AS i",
            [PAST],
        )
        connection.execute("VACUUM ANALYZE switchyard.job")
    yield url
    databases.drop(url)


def walk_on(connection: Any) -> list[sent.SentRow]:
    return sent.sent_rows(connection, "redis", 0.0, 4e9, 5_000)


@pytest.mark.parametrize("ledger_url", ["backlog_url", "seeded_url", "emptied_url"])
def test_a_walk_over_a_backlog_neither_sorts_it_nor_scans_the_table(request, ledger_url):
    """The index gives the order, so each chunk costs what it returns, however long the backlog is and whatever the statistics say."""
    with Database(request.getfixturevalue(ledger_url)).dedicated("plans") as connection:
        plan = plans_of(connection, walk_on, generic=True)

    assert "Sort" not in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Index Scan using job_due" in plan, plan


def test_a_chunk_of_a_backlog_reads_no_more_rows_than_it_returns(backlog_url):
    with Database(backlog_url).dedicated("plans") as connection:
        text = re.sub(
            r"%\((\w+)\)s",
            lambda match: {"broker": "'redis'", "after": "0", "upto": "4e9", "limit": "100"}[match[1]],
            SQL["sent_rows"],
        )
        plan = "\n".join(line for (line,) in connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {text}".encode()))

    assert re.search(r"Index Scan using job_due .*\(actual rows=100 ", plan), plan


@pytest.fixture
def emptied_url(databases: Databases) -> Iterator[str]:
    """A ledger that was empty when its statistics were taken."""
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE switchyard.job")
    yield url
    databases.drop(url)


@pytest.mark.parametrize("name", ["claim_next", "relay_due"])
def test_a_plan_made_while_the_table_was_empty_does_for_a_full_one(emptied_url, name):
    with Database(emptied_url).dedicated("plans") as connection:
        plan = plans_of(connection, HOT[name][0], generic=True)

    update = plan[plan.index("CTE Scan") :]
    assert "Index Scan using job_pkey" in update, plan
    assert "Index Cond: (id = ANY" in update, plan


def test_a_workers_connection_makes_its_plans_anew_once_in_a_while(emptied_url):
    statement = "SELECT j.id FROM switchyard.job AS j JOIN generate_series(1, $1::bigint) AS s (id) ON s.id = j.id"
    with Database(emptied_url).dedicated("plans") as connection, psycopg.connect(emptied_url, autocommit=True) as other:
        connection.execute(f"PREPARE kept AS {statement}")

        def plan() -> list[Any]:
            return connection.execute("EXPLAIN EXECUTE kept (3)").fetchall()

        made_empty = plan()
        write.enqueue_many(other, [new_job() for _ in range(5_000)])
        assert plan() == made_empty
        connection._replan_at = 0.0

        assert plan() != made_empty


NAMES = '[{"scope": "a1", "key": "k"}]'
KEYED = new_job(control=JobControl(idempotency_key="k", sent=SentKey(fingerprint="f", ttl=60.0)))
#: Either has all dead rows; which one is read follows from what else is asked for, and from the statistics.
OF_THE_DEAD = "job_ended_badly|job_dead_group"


def parent_of(connection: Any) -> Any:
    """A job, for whoever asks what it sent."""
    return next(iter(connection.execute("SELECT message_id FROM switchyard.job WHERE id = 1")))[0]


ASKED: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "scheduled": (lambda c: read.list_jobs(c, state="scheduled"), {"job_due"}),
    "retrying": (lambda c: read.list_jobs(c, state="retrying"), {"job_due"}),
    "pending": (lambda c: read.list_jobs(c, state="pending"), {"job_due", "job_ready"}),
    "running": (lambda c: read.list_jobs(c, state="running"), {"job_lease"}),
    "dead": (lambda c: read.list_jobs(c, state="dead"), {OF_THE_DEAD}),
    "cancelled": (lambda c: read.list_jobs(c, state="cancelled"), {"job_ended_badly"}),
    "failed": (lambda c: read.list_jobs(c, state="failed"), {"job_due", OF_THE_DEAD}),
    "pending of an actor": (lambda c: read.list_jobs(c, state="pending", actor="a1"), {"job_due", "job_ready"}),
    "completed": (lambda c: read.list_jobs(c, state="completed"), {"job_pkey"}),
    "all": (read.list_jobs, {"job_pkey"}),
    "a later page": (lambda c: read.list_jobs(c, after=read._cursor(PAST // 2)), {"job_pkey"}),
    "one": (lambda c: read.get_job(c, token()), {"job_message_id_key"}),
    "what a job sent": (lambda c: read.children(c, parent_of(c)), {"job_parent", "job_message_id_key"}),
    "jobs by who sent them": (lambda c: read.list_jobs(c, parent_id=PARENT), {"job_parent"}),
    "a later page by who sent them": (
        lambda c: read.list_jobs(c, parent_id=PARENT, after=read._cursor(PAST // 2)),
        {"job_parent"},
    ),
    "dead jobs by who sent them": (lambda c: read.list_jobs(c, parent_id=token(), state="dead"), {"job_parent"}),
    "depths": (read.queue_depths, {"job_due", "job_ready", "job_lease"}),
    "workers": (read.workers, {"job_lease"}),
    "a key's job": (lambda c: c.execute(SQL["keys_taken"], {"kind": "unique", "keys": NAMES}), {"job_message_id_key"}),
    "an active key's job": (lambda c: c.execute(SQL["holders_of_keys"], {"keys": NAMES}), {"job_unique_active"}),
    "a key for a person": (
        lambda c: c.execute(SQL["find_key"], {"kind": "unique", "actor": "a1", "key": "k"}),
        {"job_unique_active"},
    ),
    "a send with a key": (lambda c: write.enqueue(c, KEYED), {"job_message_id_key"}),
    "a debounced send": (
        lambda c: c.execute(
            SQL["debounce"],
            {"id": 1, "key": "k", "payload": "{}", "delay": 1.0, "max_wait": 10.0, "options": None, "limited": False},
        ),
        {"job_pkey"},
    ),
    "expired keys": (lambda c: c.execute(SQL["prune_keys"], {"now": None, "limit": 1_000}), set()),
    "dead letters": (lambda c: dead.page(c, DeadFilter()), {OF_THE_DEAD}),
    "a later page of dead letters": (
        lambda c: dead.page(c, DeadFilter(actor="a1"), after=dead._cursor(datetime.now(UTC), PAST)),
        {OF_THE_DEAD},
    ),
    "dead letters of a group": (lambda c: dead.page(c, DeadFilter(fingerprint="f1")), {"job_dead_group"}),
    "dead letters searched": (lambda c: dead.page(c, DeadFilter(search="x", since=datetime.now(UTC))), {OF_THE_DEAD}),
    "dead groups": (lambda c: dead.groups(c, DeadFilter()), {OF_THE_DEAD}),
    "one dead group": (lambda c: dead.groups(c, DeadFilter(fingerprint="f1")), {"job_dead_group"}),
    "count of the dead": (lambda c: dead.count(c, DeadFilter(actor="a1")), {OF_THE_DEAD}),
    "a chunk of a replay": (
        lambda c: dead.replay_rows(c, next(dead.chunks(c, DeadFilter(), size=50)), interval=0.1),
        {"job_pkey"},
    ),
    "a chunk of a removal": (lambda c: dead.discard_rows(c, next(dead.chunks(c, DeadFilter(), size=50))), {"job_pkey"}),
    "unfinished": (lambda c: c.execute(SQL["count_unfinished"]), {"job_due", "job_ready", "job_lease", OF_THE_DEAD}),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_people_ask_for_walks_over_no_completed_jobs(seeded_url, name):
    call, indexes = ASKED[name]
    database = Database(seeded_url)
    with database.connection() as connection:
        plan = plans_of(connection, call, generic=False)
    database.close()

    assert "Seq Scan on job" not in plan, plan
    assert all(re.search(rf" ({index})( |\n|$)", plan) for index in indexes), plan


@pytest.mark.parametrize("name", ["what a job sent", "jobs by who sent them"])
def test_what_a_job_sent_is_not_sorted(seeded_url, name):
    """The index gives the order, so a page of a hundred thousand children costs no more than a page of a hundred."""
    database = Database(seeded_url)
    with database.connection() as connection:
        plan = plans_of(connection, ASKED[name][0], generic=False)
    database.close()

    assert "Index Scan Backward using job_parent" in plan, plan
    assert "Sort" not in plan, plan


def test_a_time_range_is_bounded_by_ids(seeded_url):
    database = Database(seeded_url)
    with database.connection() as connection:
        row = connection.execute("SELECT created_at FROM switchyard.job WHERE id = %s", [PAST // 2]).fetchone()
        assert row is not None
        moment = row[0]
        plan = plans_of(connection, lambda c: read.list_jobs(c, created_after=moment, created_before=moment), generic=False)
    database.close()

    last = plan[plan.rindex("Limit") :]
    assert "Index Cond: ((id >= " in last, plan


def test_large_ledgers_are_sampled_and_small_ones_counted(seeded_url, monkeypatch):
    database = Database(seeded_url)
    with database.connection() as connection:
        exact = read.counts(connection)
        monkeypatch.setattr(read, "COUNT_CAP", PAST // 5)
        estimate = read.counts(connection)
        again = read.counts(connection)
    database.close()

    assert not exact.estimated
    assert exact.by_state()[State.COMPLETED] == PAST
    assert estimate.estimated
    assert abs(estimate.by_state()[State.COMPLETED] - PAST) < PAST * 0.15
    assert again == estimate
    for state in State:
        if state is not State.COMPLETED:
            assert estimate.by_state()[state] == exact.by_state()[state] == 2 * A_FEW


@pytest.mark.parametrize("name", ["feed_steps", "cancel_followers"])
def test_the_flusher_finds_the_steps_it_feeds_by_what_they_wait_for(seeded_url, name):
    call, indexes = HOT[name]
    with Database(seeded_url).dedicated("plans", batches=True) as connection:
        plan = plans_of(connection, call, generic=True)

    assert "Seq Scan on job" not in plan, plan
    assert all(f" {index} " in plan for index in indexes), plan
    assert re.search(r"Index Cond: \(+upstream_id = ", plan), plan


BATCHES: dict[str, Callable[[Any], Any]] = {
    "finish": finish_both,
    "release_unstarted": HOT["release_unstarted"][0],
    "extend_leases": HOT["extend_leases"][0],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("analysed", [True, False])
def test_a_batch_of_ends_is_hashed_and_finds_its_rows_by_id(databases, name, analysed):
    """Also where the statistics say that nothing runs: the index of running rows would then look cheap, and is walked per row."""
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as connection:
        write.enqueue_many(connection, [new_job() for _ in range(1_000)])
        if analysed:
            connection.execute("VACUUM ANALYZE switchyard.job")
    with Database(url).dedicated("plans", batches=True) as connection:
        plan = plans_of(connection, BATCHES[name], generic=True)
    databases.drop(url)

    assert "Nested Loop" not in plan, plan
    assert "job_lease" not in plan, plan
    # What only locks joins with nothing.
    assert plan.count("Hash Join") == plan.count("Index Scan using job_pkey") - plan.count("LockRows  (cost") * (
        name == "finish"
    ), plan
