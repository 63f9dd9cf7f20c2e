"""Two connections meet at one row: each pair of statements in both orders, stopped where they meet.

The first one has written and not yet committed. The second one either passes the locked row by, or provably waits for it and then looks
again. All of it once more on a database whose default is REPEATABLE READ, where a statement that waited would fail instead of looking
again: the ledger's connections are READ COMMITTED whatever the database says.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ledger import control, write
from ledger.database import BoundedConnection
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.factory import add, age_lease, claim, completed, failed, fetch, history, new_job, relay_due, row, token

LATER = "2100-01-01T00:00:00+00:00"


def cancel(connection: BoundedConnection, id_: int) -> Callable[[], State | None]:
    name = str(fetch(connection, id_, "message_id"))
    return lambda: control.cancel(connection, name)


def claim_of(connection: BoundedConnection, id_: int, holder: str = "w1") -> Callable[[], list[int]]:
    return lambda: [
        job.id for job in write.claim_by_id(connection, [id_], actors=["work"], worker=holder, token=token(), lease=30.0)
    ]


def rescue(connection: BoundedConnection) -> Callable[[], list[int]]:
    return lambda: [job.id for job in write.rescue_worker(connection, "w1", alive=False, max_lost=3)]


def relay(connection: BoundedConnection) -> Callable[[], list[int]]:
    return lambda: [job.id for job in relay_due(connection, "postgres", now=LATER)]


def expired(connection: BoundedConnection) -> tuple[int, str]:
    """A job whose claim's lease has ended."""
    id_ = add(connection)
    by = claim(connection, id_)
    age_lease(connection, id_)
    return id_, by


def test_the_ledgers_connections_are_read_committed_whatever_the_database_says(two, place):
    assert two.first.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
    with place.connection() as pooled:
        assert pooled.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_of_two_claims_the_second_finds_the_row_running(two):
    id_ = add(two.first)

    claims = two.waits_for(claim_of(two.first, id_), claim_of(two.second, id_, "w2"))

    assert claims == ([id_], [])
    assert (fetch(two.first, id_, "worker"), fetch(two.first, id_, "attempt")) == ("w1", 1)


def test_a_claim_before_a_cancellation_wins_and_is_asked_to_stop(two):
    id_ = add(two.first)

    assert two.waits_for(claim_of(two.first, id_), cancel(two.second, id_)) == ([id_], State.RUNNING)

    stored = row(two.first, id_)
    assert (stored["state"], stored["cancel_requested_at"] is not None) == ("running", True)


def test_a_cancellation_before_a_claim_wins(two):
    id_ = add(two.first)

    assert two.waits_for(cancel(two.first, id_), claim_of(two.second, id_)) == (State.CANCELLED, [])

    assert (fetch(two.first, id_, "state"), fetch(two.first, id_, "attempt")) == ("cancelled", 0)


def test_a_finish_before_a_rescue_wins(two):
    id_, by = expired(two.first)

    assert two.passes_by(lambda: write.finish(two.first, [completed(id_, by)]), rescue(two.second)) == ({id_}, [])

    assert rescue(two.second)() == []
    assert (fetch(two.first, id_, "state"), history(two.first, id_)) == ("completed", [])


def test_a_rescue_before_a_finish_wins(two):
    id_, by = expired(two.first)

    ends = two.waits_for(rescue(two.first), lambda: write.finish(two.second, [completed(id_, by)]))

    assert ends == ([id_], set())
    assert (fetch(two.first, id_, "state"), history(two.first, id_)) == ("pending", [(1, 1, "lost")])


def test_a_rescue_before_a_release_wins_and_the_attempt_is_spent_once(two):
    id_, by = expired(two.first)

    ends = two.waits_for(rescue(two.first), lambda: write.release_unstarted(two.second, [(id_, by)]))

    assert ends == ([id_], set())
    assert (fetch(two.first, id_, "attempt"), history(two.first, id_)) == (1, [(1, 1, "lost")])


def test_a_heartbeat_before_a_rescue_wins(two):
    id_, by = expired(two.first)

    assert two.passes_by(lambda: write.extend_leases(two.first, [(id_, by, None)], 30.0), rescue(two.second)) == ({id_}, [])

    assert rescue(two.second)() == []
    assert str(fetch(two.first, id_, "token")) == by


def test_a_heartbeat_during_a_rescue_neither_waits_nor_brings_the_lease_back(two):
    id_, by = expired(two.first)
    beat = [(id_, by, None)]

    # Until the rescue commits the claim is ours; the beat does not wait to hear more.
    assert two.passes_by(rescue(two.first), lambda: write.extend_leases(two.second, beat, 30.0)) == ([id_], {id_})

    assert write.extend_leases(two.second, beat, 30.0) == set()
    assert (fetch(two.first, id_, "state"), fetch(two.first, id_, "lease_until")) == ("pending", None)


def test_a_rescue_before_the_start_of_a_suspect_keeps_it_from_starting(two):
    id_, by = expired(two.first)

    ends = two.waits_for(rescue(two.first), lambda: write.record_start(two.second, id_, by, 30.0))

    assert ends == ([id_], False)
    assert fetch(two.first, id_, "lost") == 0


def test_a_claim_before_a_relay_is_passed_by(two):
    id_ = add(two.first, broker="redis", grace=0.0)

    assert two.passes_by(claim_of(two.first, id_), relay(two.second)) == ([id_], [])

    assert relay(two.second)() == []
    assert (fetch(two.first, id_, "state"), fetch(two.first, id_, "next_publish_at")) == ("running", None)


def test_a_relay_before_a_claim_lets_it_have_the_row(two):
    id_ = add(two.first, broker="redis", grace=0.0)

    assert two.waits_for(relay(two.first), claim_of(two.second, id_)) == ([id_], [id_])

    assert (fetch(two.first, id_, "state"), fetch(two.first, id_, "next_publish_at")) == ("running", None)


@pytest.mark.parametrize("end", ["success", "failure", "release", "rescue"])
def test_an_end_before_a_cancellation_leaves_it_nothing_to_stop_or_what_waits(two, end):
    id_, by = expired(two.first)
    ends = {
        "success": lambda: write.finish(two.first, [completed(id_, by)]),
        "failure": lambda: write.finish(two.first, [failed(id_, by)]),
        "release": lambda: write.release_unstarted(two.first, [(id_, by)]),
        "rescue": rescue(two.first),
    }

    _, asked = two.waits_for(ends[end], cancel(two.second, id_))

    assert asked is (None if end == "success" else State.CANCELLED)
    assert fetch(two.first, id_, "state") == ("completed" if end == "success" else "cancelled")


@pytest.mark.parametrize("end", ["success", "failure", "release"])
def test_an_end_that_waits_for_a_cancellation_is_a_cancellation_unless_it_is_a_success(two, end):
    id_ = add(two.first)
    by = claim(two.first, id_)
    ends = {
        "success": lambda: write.finish(two.second, [completed(id_, by)]),
        "failure": lambda: write.finish(two.second, [failed(id_, by)]),
        "release": lambda: write.release_unstarted(two.second, [(id_, by)]),
    }

    assert two.waits_for(cancel(two.first, id_), ends[end]) == (State.RUNNING, {id_})

    assert fetch(two.first, id_, "state") == ("completed" if end == "success" else "cancelled")


def test_a_rescue_passes_a_cancellation_by_and_the_next_one_ends_the_job(two):
    id_, _ = expired(two.first)

    assert two.passes_by(cancel(two.first, id_), rescue(two.second)) == (State.RUNNING, [])

    assert rescue(two.second)() == [id_]
    assert (fetch(two.first, id_, "state"), history(two.first, id_)) == ("cancelled", [(1, 1, "lost")])


def test_a_pause_that_is_not_committed_lets_a_claim_pass_and_a_committed_one_does_not(two):
    early, late = add(two.first), add(two.first)

    pausing, taken = two.passes_by(lambda: control.pause(two.first, "default", "*"), claim_of(two.second, early))

    assert (pausing, taken) == (True, [early])
    assert claim_of(two.second, late)() == []


def test_a_relay_before_a_cancellation_leaves_a_trigger_that_no_claim_accepts(two):
    id_ = add(two.first, delay=60.0)

    assert two.waits_for(relay(two.first), cancel(two.second, id_)) == ([id_], State.CANCELLED)

    assert claim_of(two.first, id_)() == []
    assert (fetch(two.first, id_, "state"), fetch(two.first, id_, "next_publish_at")) == ("cancelled", None)


def test_a_cancellation_before_a_relay_is_passed_by(two):
    id_ = add(two.first, delay=60.0)

    assert two.passes_by(cancel(two.first, id_), relay(two.second)) == (State.CANCELLED, [])

    assert relay(two.second)() == []
    assert fetch(two.first, id_, "state") == "cancelled"


def test_a_retry_before_a_repeated_finish_is_not_undone(two):
    id_ = add(two.first)
    by = claim(two.first, id_)
    ends = [failed(id_, by, delay=0.0)]

    both = two.waits_for(lambda: write.finish(two.first, ends), lambda: write.finish(two.second, ends))

    assert both == ({id_}, set())
    assert (fetch(two.first, id_, "failures"), history(two.first, id_)) == (1, [(1, 1, "failed")])


def test_two_rivals_for_one_id_make_one_job(two):
    job = new_job()

    first, second = two.waits_for(lambda: write.enqueue(two.first, job), lambda: write.enqueue(two.second, job))

    assert (first.created, second.created, first.id == second.id) == (True, False, True)


def test_two_bulks_that_share_an_id_make_one_job_of_it(two):
    shared = new_job()

    first, second = two.waits_for(
        lambda: write.enqueue_many(two.first, [shared]), lambda: write.enqueue_many(two.second, [new_job(), shared])
    )

    assert [entry.created for entry in second] == [True, False]
    assert second[1].id == first[0].id


def test_expiry_before_a_claim_wins(two):
    id_ = add(two.first, max_age=1.0)
    expire = {"limit": 10, "now": LATER}

    ends = two.waits_for(lambda: two.first.execute(SQL["expire"], expire).fetchall(), claim_of(two.second, id_))

    assert ends == ([(id_, "work")], [])
    assert row(two.first, id_)["dead_reason"] == "expired"
