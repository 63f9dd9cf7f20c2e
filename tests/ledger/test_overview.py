"""The overview and the names, on a ledger of 100,000 completed jobs and a backlog: what they say, what they read, how long they take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest

from ledger import names, overview
from ledger.database import Database
from ledger.overview import BOUND
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.factory import add, add_in, claim
from tests.ledger.test_plans import A_FEW, SEED, plans_of
from tests.rig.postgres import Databases

PAST = 100_000
BACKLOG = 20_000


@pytest.fixture(scope="module")
def seeded_url(databases: Databases) -> Iterator[str]:
    """A ledger with a past, a backlog of two queues, and a few of everything else, analysed."""
    url = databases.create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # rows begin in states that only history reaches
        rare = [state.value for state in State if state is not State.COMPLETED]
        connection.execute(SEED, {"states": rare, "count": A_FEW})
        connection.execute(SEED, {"states": ["completed"], "count": PAST // 2})
        connection.execute(SEED, {"states": ["pending"], "count": BACKLOG // 2})
        connection.execute(
            "INSERT INTO switchyard.sample (at, queue, scheduled, pending, running, retrying) SELECT now() - i * interval '1 min', 'q' ||"
            " mod(i, 5), 0, i, 0, 0 FROM generate_series(1, 10000) AS i"
        )
        connection.execute(
            "INSERT INTO switchyard.activity (at, queue, actor, completed, failed, dead, waits, runs) SELECT now() - i * interval '1 min',"
            " 'q' || mod(i, 5), 'a' || mod(i, 20), 1, 0, 0, '{}', '{}' FROM generate_series(1, 50000) AS i"
        )
        connection.execute("VACUUM ANALYZE")
    yield url
    databases.drop(url)


ASKED: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "overview": (overview.overview, {"job_lease", "job_due", "job_parked", "job_timeless", "job_ended_badly|job_dead_group"}),
    "workers": (overview.worker_states, {"job_lease"}),
    "an id's beginning": (lambda c: names.jobs_beginning(c, "aaaaaaaa"), {"job_message_id_key"}),
    "a batch's beginning": (lambda c: names.batches_beginning(c, "aaaaaaaa"), set()),
    "queues": (names.known_queues, {"job_pkey", "job_ended_badly|job_dead_group"}),
    "actors": (names.known_actors, {"job_pkey", "job_ended_badly|job_dead_group"}),
    "tags": (names.known_tags, {"job_pkey"}),
    "types of error": (names.known_error_types, {"job_ended_badly|job_dead_group"}),
    "groups of the dead": (names.known_fingerprints, {"job_ended_badly|job_dead_group"}),
    "reasons": (names.known_reasons, {"job_ended_badly|job_dead_group"}),
}


@pytest.mark.parametrize("name", ASKED)
def test_nothing_walks_over_the_past(seeded_url, name):
    call, indexes = ASKED[name]
    database = Database(seeded_url)
    with database.connection() as connection:
        plan = plans_of(connection, call, generic=False)
    database.close()

    assert "Seq Scan on job" not in plan, plan
    assert all(re.search(rf" ({index})( |\n|$)", plan) for index in indexes), plan


@pytest.mark.parametrize("name", ["overview", "queues", "actors"])
def test_whoever_looks_every_second_takes_little_of_it(seeded_url, name):
    """A bound that a machine under load keeps as well: it takes a twentieth of it."""
    call, _ = ASKED[name]
    database = Database(seeded_url)
    with database.connection() as connection:
        call(connection)
        started = monotonic()
        call(connection)
        took = monotonic() - started
    database.close()

    assert took < 2.0


def test_no_part_reads_more_rows_than_its_bound(seeded_url):
    """However long a backlog is."""
    database = Database(seeded_url)
    with database.connection() as connection:
        found = overview.overview(connection, bound=100)
        statement = SQL["overview_queues"].replace("%(bound)s", "100")
        text = "\n".join(line for (line,) in connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {statement}".encode()))
    database.close()

    assert found.as_of is not None
    assert found.dead_at_least is False
    reads = [int(rows) for rows in re.findall(r"Scan[^\n]* on job [^\n]*\(actual rows=(\d+)", text)]
    assert reads
    assert max(reads) <= 100, text


def test_figures_are_exact_below_the_bound(seeded_url):
    database = Database(seeded_url)
    with database.connection() as connection:
        found = overview.overview(connection)
    database.close()

    assert BOUND > BACKLOG
    assert not found.at_least
    assert found.as_of is None
    assert sum(queue.waiting for queue in found.queues) == BACKLOG + 2 * A_FEW
    for name in ("running", "retrying", "scheduled", "dead"):
        assert sum(getattr(queue, name) for queue in found.queues) == 2 * A_FEW, name
    assert abs(found.jobs - PAST) < PAST * 0.35


def test_a_queue_says_what_is_in_it(ledger):
    for state in (State.SCHEDULED, State.PENDING, State.RUNNING, State.RETRYING, State.DEAD, State.COMPLETED, State.CANCELLED):
        add_in(ledger, state)
    id_ = add(ledger)
    ledger.execute("UPDATE switchyard.job SET run_at = now() - interval '90 s' WHERE id = %s", [id_])
    parked = add(ledger)
    ledger.execute(
        "UPDATE switchyard.job SET wait_reason = 'paused', next_publish_at = NULL, run_at = now() - interval '1 h' WHERE id = %s",
        [parked],
    )
    blocked = add(ledger, delay=3_600.0)
    ledger.execute("UPDATE switchyard.job SET wait_reason = 'rate_limit' WHERE id = %s", [blocked])
    ledger.execute("INSERT INTO switchyard.pause (queue, actor) VALUES ('*', 'work')")

    (queue,) = overview.overview(ledger).queues

    assert (queue.waiting, queue.running, queue.retrying, queue.scheduled, queue.dead) == (3, 1, 1, 2, 1)
    assert (queue.limited, queue.parked, queue.workers) == (1, 1, 0)
    # What is parked is no reason to worry how long it waits, and an actor's pause is none of the queue.
    assert queue.oldest == pytest.approx(90, abs=30)
    assert not queue.paused
    ledger.execute("INSERT INTO switchyard.pause (queue, actor) VALUES ('default', '*')")
    assert overview.overview(ledger).queues[0].paused


def test_an_empty_ledger_has_nothing(ledger):
    found = overview.overview(ledger)

    assert (list(found.queues), list(found.workers), found.jobs, found.dead, found.lost, found.unkept) == ([], [], 0, 0, 0, None)


def test_a_claim_whose_lease_ended_a_minute_ago_counts_as_not_rescued(ledger):
    ids = [add(ledger), add(ledger)]
    claim(ledger, *ids)
    for id_, ago in zip(ids, (50, 70), strict=True):
        ledger.execute("UPDATE switchyard.job SET lease_until = now() - %s * interval '1 s' WHERE id = %s", [ago, id_])

    assert overview.overview(ledger).lost == 1


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("aaaaaaaa", "aaaaaaaa-0000-0000-0000-000000000000", "aaaaaaaa-ffff-ffff-ffff-ffffffffffff"),
        ("AAAAAAAA-0", "aaaaaaaa-0000-0000-0000-000000000000", "aaaaaaaa-0fff-ffff-ffff-ffffffffffff"),
        ("0" * 32, "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000"),
    ],
)
def test_a_beginning_is_a_range_of_ids(text, first, last):
    assert names.id_range(text) == (UUID(first), UUID(last))


@pytest.mark.parametrize("text", ["", "aaaaaaa", "0" * 33, "xaaaaaaa", "aaaa aaaa", "--------"])
def test_what_is_no_beginning_has_no_range(text):
    assert names.id_range(text) is None


def test_names_come_from_whatever_knows_them(ledger):
    add(ledger, queue="sent", actor="sender")
    statements = {
        "worker": "INSERT INTO switchyard.worker (id, host, pid, broker, queues, threads, lease_seconds, actors)"
        " VALUES ('w', 'h', 1, 'redis', '{worked}', 1, 30, '{worker}')",
        "route": "INSERT INTO switchyard.route (queue, broker) VALUES ('*', 'redis'), ('routed', 'redis')",
        "declaration": "INSERT INTO switchyard.declaration (queue, broker, entered_at, until) VALUES ('declared', 'redis', now(), now())",
        "rules": "INSERT INTO switchyard.rule (kind, name, amount, declared_amount) VALUES ('queue', 'limited', 1, 1),"
        " ('queue', 'mistyped', 1, NULL), ('concurrency', 'limiter', 1, 1)",
        "sample": "INSERT INTO switchyard.sample (at, queue, scheduled, pending, running, retrying) VALUES (now(), 'sampled', 0, 0, 0, 0)",
        "activity": "INSERT INTO switchyard.activity (at, queue, actor, completed, failed, dead, waits, runs)"
        " VALUES (now(), 'busy', 'doer', 1, 0, 0, '{}', '{}')",
    }
    for statement in statements.values():
        ledger.execute(statement)

    assert names.known_queues(ledger) == ["busy", "declared", "limited", "routed", "sampled", "sent", "worked"]
    assert names.known_actors(ledger) == ["doer", "limiter", "sender", "worker"]
