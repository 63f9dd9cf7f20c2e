"""What people ask for: cancelling what waits, replaying what ended badly, and Dramatiq's flush and join."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ledger import control, write
from ledger.records import JobControl
from ledger.sql import SQL
from ledger.states import WAITING, State
from tests.ledger.factory import add, add_in, age_lease, claim, claim_next, completed, failed, fetch, history, row


def name_of(ledger, id_):
    return str(fetch(ledger, id_, "message_id"))


def test_an_unknown_job_is_neither_cancelled_nor_replayed(ledger):
    assert control.cancel(ledger, str(uuid4())) is None
    assert not write.replay(ledger, str(uuid4()))


@pytest.mark.parametrize("state", State)
def test_replaying_restarts_what_ended_badly_and_nothing_else(ledger, state):
    id_ = add_in(ledger, state)
    before = row(ledger, id_)

    done = write.replay(ledger, name_of(ledger, id_))

    assert done is (state in (State.DEAD, State.CANCELLED))
    if not done:
        assert row(ledger, id_) == before


def test_a_replay_is_a_new_generation_with_counters_at_zero_and_its_history_kept(ledger):
    id_ = add_in(ledger, State.DEAD)
    write.replay(ledger, name_of(ledger, id_))
    stored = row(ledger, id_)

    assert (stored["generation"], stored["attempt"], stored["failures"], stored["lost"]) == (2, 0, 0, 0)
    assert (stored["state"], stored["dead_reason"], stored["finished_at"], stored["suspect"]) == ("pending", None, None, False)
    assert write.next_due(ledger) <= 0
    assert history(ledger, id_) == [(1, 1, "failed")]

    by = claim(ledger, id_)
    write.finish(ledger, [failed(id_, by, state=State.DEAD)])
    assert write.replay(ledger, name_of(ledger, id_))
    assert not write.replay(ledger, name_of(ledger, id_))
    by = claim(ledger, id_)
    write.finish(ledger, [completed(id_, by)])
    assert history(ledger, id_) == [(1, 1, "failed"), (2, 1, "failed")]
    assert (fetch(ledger, id_, "generation"), fetch(ledger, id_, "error")) == (3, None)


def test_a_holder_from_before_the_replay_cannot_write(ledger):
    id_ = add(ledger)
    zombie = claim(ledger, id_, holder="zombie")
    assert write.record_start(ledger, id_, zombie, 30.0)
    age_lease(ledger, id_)
    write.rescue_worker(ledger, "zombie", alive=True, max_lost=1)
    assert fetch(ledger, id_, "lost") == 1
    write.replay(ledger, name_of(ledger, id_))
    assert fetch(ledger, id_, "lost") == 0
    claim(ledger, id_, holder="w2")
    before = row(ledger, id_)

    assert write.finish(ledger, [completed(id_, zombie)]) == set()
    assert row(ledger, id_) == before


def test_a_claim_skips_what_is_being_cancelled(ledger, connect):
    id_ = add(ledger)
    other = connect()
    other.execute("BEGIN")
    assert control.cancel(other, name_of(ledger, id_)) is State.CANCELLED

    assert claim_next(ledger) == []

    other.execute("COMMIT")
    assert claim_next(ledger) == []
    assert fetch(ledger, id_, "state") == "cancelled"


def test_flush_cancels_what_waits_in_a_queue_and_join_counts_what_is_left(ledger):
    ids = {state: add_in(ledger, state) for state in State}
    other = add(ledger, queue="other")
    assert ledger.execute(SQL["active_count"], {"queue": "default"}).fetchone()[0] == 4

    assert control.flush(ledger, ["default"]) == 3

    assert ledger.execute(SQL["active_count"], {"queue": "default"}).fetchone()[0] == 1
    assert {state for state, id_ in ids.items() if fetch(ledger, id_, "state") != state} == WAITING
    assert fetch(ledger, other, "state") == "pending"


def test_a_flush_takes_along_the_steps_that_wait_in_other_queues(ledger):
    first = add(ledger)
    waits = JobControl(upstream_id=name_of(ledger, first), wait_reason="upstream")
    step = add(ledger, queue="other", control=waits)

    assert control.flush(ledger, ["default"]) == 2

    assert fetch(ledger, step, "state") == "cancelled"
