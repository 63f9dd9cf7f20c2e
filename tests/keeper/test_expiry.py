"""What waits beyond its max_age is dead, whoever consumes its queue; what waits within it, or runs, is left alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keeper import expiry
from keeper.duty import Keeping, Seen
from keeper.expiry import expire
from ledger import write
from ledger.states import State
from tests.keeper.conftest import Broker
from tests.ledger.factory import add, add_in, claim, completed, fetch, history, new_job, row

MINUTE = 60_000.0


def in_an_hour(ledger):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0] + timedelta(hours=1)


@pytest.mark.parametrize("state", [State.SCHEDULED, State.PENDING, State.RETRYING])
@pytest.mark.parametrize("broker", ["postgres", "redis"])
def test_what_waits_beyond_its_max_age_is_dead_with_the_reason(ledger, state, broker):
    id_ = add_in(ledger, state, max_age=MINUTE, broker=broker, grace=30.0)

    assert expire(ledger) == 0
    assert expire(ledger, now=in_an_hour(ledger)) == 1

    stored = row(ledger, id_)
    assert (stored["state"], stored["dead_reason"], stored["error_type"]) == ("dead", "expired", "Expired")
    assert "max_age of 60 s" in stored["error"]
    assert write.next_due(ledger) is None


@pytest.mark.parametrize("state", State)
def test_without_a_max_age_nothing_expires(ledger, state):
    id_ = add_in(ledger, state)
    before = row(ledger, id_)

    assert expire(ledger, now=in_an_hour(ledger)) == 0
    assert row(ledger, id_) == before


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED, State.DEAD, State.CANCELLED])
def test_what_runs_or_has_ended_does_not_expire(ledger, state):
    id_ = add_in(ledger, state, max_age=MINUTE)
    before = row(ledger, id_)

    assert expire(ledger, now=in_an_hour(ledger)) == 0
    assert row(ledger, id_) == before


def test_jobs_sent_together_have_their_own_max_age(ledger):
    jobs = [new_job(max_age=max_age) for max_age in (MINUTE, None, 120 * MINUTE)]
    young, ageless, old = [enqueued.id for enqueued in write.enqueue_many(ledger, jobs)]

    expire(ledger, now=in_an_hour(ledger))

    assert [fetch(ledger, id_, "state") for id_ in (young, ageless, old)] == ["dead", "pending", "pending"]


def test_a_replay_gives_a_job_its_max_age_anew(ledger):
    id_ = add(ledger, max_age=MINUTE)
    ledger.execute("UPDATE switchyard.job SET expires_at = clock_timestamp() - interval '1 day'")
    expire(ledger)
    write.replay(ledger, str(fetch(ledger, id_, "message_id")))

    assert expire(ledger) == 0
    by = claim(ledger, id_)
    write.finish(ledger, [completed(id_, by)])

    assert fetch(ledger, id_, "state") == "completed"
    assert history(ledger, id_) == []


def test_a_turn_is_bounded_and_asks_for_the_next(ledger, node, monkeypatch):
    monkeypatch.setattr(expiry, "CHUNK", 10)
    for _ in range(15):
        add(ledger, max_age=0.0)
    keeping = Keeping(node, Broker(), seen=Seen(expired=True))

    assert expiry.sweep(ledger, keeping) == expiry.SOON
    assert expiry.sweep(ledger, keeping) is None
    assert ledger.execute("SELECT count(*) FROM switchyard.job WHERE state = 'dead'").fetchone() == (15,)


def test_a_row_that_is_being_claimed_is_passed_by(ledger, database):
    id_ = add(ledger, max_age=0.0)
    with database.dedicated("other") as other, other.transaction():
        other.execute("SELECT 1 FROM switchyard.job WHERE id = %s FOR UPDATE", [id_])

        assert expire(ledger) == 0
    assert expire(ledger) == 1
