"""A line for slots with jobs whose actor nobody knows any more, as after a deploy that renamed it: they hold up nobody who is known."""

from __future__ import annotations

from time import monotonic

import pytest

from keeper import look, unknown
from keeper.duty import Keeping
from ledger import limits, write
from ledger.limits import Rule
from tests.keeper.conftest import Broker
from tests.ledger.factory import worker_row
from tests.ledger.limiting import add_limited, admit, at_once, finish_limited, forget, rows
from tests.rig.waiting import wait_until

BOTH = ["work", "old"]
QUEUE = Rule("queue", "default", 1)


@pytest.fixture
def beat(ledger):
    """Have a worker process say what it knows."""

    def beat(*actors):
        worker = worker_row("one")
        worker.actors = list(actors)
        write.beat(ledger, worker)

    forget(ledger)
    return beat


@pytest.fixture
def keeping(ledger, node):
    node.settings = node.settings.model_copy(update={"lease": 1.0})
    up = "SELECT clock_timestamp() > pg_postmaster_start_time() + interval '1 s'"
    wait_until(lambda: ledger.execute(up).fetchone()[0], message="Postgres has been up for a lease")
    return Keeping(node, Broker())


def sweep(ledger, keeping):
    # Everybody has been in touch for a minute, so that silence says something.
    ledger.execute("UPDATE switchyard.duty SET due_at = clock_timestamp(), position = position - 60000 WHERE name = 'in touch'")
    look.sweep(ledger, keeping)
    unknown.sweep(ledger, keeping)


def line_up(ledger, beat, broker="postgres", limit=QUEUE):
    """A running job, three of an actor that is gone then, of which the first has its turn, and one that waits behind them."""
    beat(*BOTH)
    limits.declare_rules(ledger, [limit])
    control = {} if limit is QUEUE else {"concurrency_key": "work"}
    fields = {"broker": broker, "grace": None if broker == "postgres" else 9.0, "control": control}
    made = [add_limited(ledger, count, actor=actor, **fields) for count, actor in ((1, "work"), (3, "old"), (1, "work"))]
    (first,), gone, (waits,) = made
    assert [job.id for job in admit(ledger, actors=BOTH).jobs] == [first]
    beat("work")
    finish_limited(ledger, first)
    assert rows(ledger, "state, blocked_on IS NULL", f"id = ANY(ARRAY{gone})") == [
        ("pending", False),
        *[("scheduled", False)] * 2,
    ]
    # What the fetcher of a broker that carries triggers does with one of an actor it does not know; of the others the duty notices.
    write.postpone_unknown(ledger, [gone[0]] if broker == "redis" else [], ["work"], 5.0)
    return gone, waits


@pytest.mark.parametrize("limit", [QUEUE, at_once(1)], ids=["queue", "key"])
@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_who_waits_behind_jobs_of_an_actor_that_is_gone_has_his_turn_within_two_sweeps(ledger, keeping, beat, broker, limit):
    gone, waits = line_up(ledger, beat, broker, limit)

    sweep(ledger, keeping)
    sweep(ledger, keeping)

    assert rows(ledger, "state, wait_reason, blocked_on", f"id = ANY(ARRAY{gone})") == [("pending", "unknown_actor", None)] * 3
    assert [job.id for job in admit(ledger, actors=["work"]).jobs] == [waits]


def test_what_left_a_line_is_dead_after_a_time_or_runs_once_somebody_knows_it(ledger, keeping, beat):
    gone, waits = line_up(ledger, beat)
    sweep(ledger, keeping)
    sweep(ledger, keeping)
    ledger.execute("UPDATE switchyard.job SET wait_since = wait_since - interval '2 hours' WHERE id = %s", [gone[0]])
    sweep(ledger, keeping)
    assert rows(ledger, "state", f"id = ANY(ARRAY{gone})") == [("dead",), ("pending",), ("pending",)]

    beat(*BOTH)
    sweep(ledger, keeping)

    ran = []
    while jobs := admit(ledger, actors=BOTH).jobs:
        ran += [job.id for job in jobs]
        finish_limited(ledger, jobs[0].id)
    assert sorted(ran) == sorted([*gone[1:], waits])


def test_nobody_leaves_a_line_within_a_lease_of_this_keepers_own_return(ledger, keeping, beat):
    gone, _ = line_up(ledger, beat)
    keeping.node.settings = keeping.node.settings.model_copy(update={"lease": 30.0})
    keeping.connected_again_at = monotonic()

    sweep(ledger, keeping)
    sweep(ledger, keeping)

    assert rows(ledger, "blocked_on IS NULL", f"id = ANY(ARRAY{gone})") == [(False,)] * 3
