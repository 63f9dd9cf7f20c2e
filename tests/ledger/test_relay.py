"""The relay: what is due becomes pending and is published, what is not due or not ours stays."""

from __future__ import annotations

import pytest

from ledger import write
from ledger.states import State
from tests.ledger.factory import add, add_in, claim, claim_next, failed, fetch, row
from tests.rig.waiting import wait_until

NEVER = "2000-01-01T00:00:00Z"


def relay(ledger, broker="redis", **fields):
    return write.relay_due(ledger, broker=broker, **({"carries": broker != "postgres", "grace": 30.0} | fields))


def seconds_to_next_look(ledger, id_):
    return ledger.execute(
        "SELECT extract(epoch FROM next_publish_at - clock_timestamp())::float8 FROM switchyard.job WHERE id = %s", [id_]
    ).fetchone()[0]


def make_due(ledger, id_):
    ledger.execute("UPDATE switchyard.job SET next_publish_at = clock_timestamp() - interval '1 s' WHERE id = %s", [id_])


@pytest.mark.parametrize("state", [State.SCHEDULED, State.RETRYING])
def test_what_is_due_becomes_pending_in_the_relays_broker(ledger, state):
    id_ = add_in(ledger, state, priority=4)
    assert relay(ledger) == []
    make_due(ledger, id_)

    (job,) = relay(ledger)

    assert (job.id, job.queue, job.actor, job.priority) == (id_, "default", "work", 4)
    stored = row(ledger, id_)
    assert (stored["state"], stored["broker"], stored["publish_count"]) == ("pending", "redis", 1)
    assert 25 < seconds_to_next_look(ledger, id_) <= 30
    assert relay(ledger) == []


def test_rows_of_the_postgres_broker_need_no_second_look(ledger):
    id_ = add(ledger, delay=60.0)
    make_due(ledger, id_)

    assert [job.id for job in relay(ledger, "postgres")] == [id_]

    assert fetch(ledger, id_, "next_publish_at") is None
    assert write.next_due(ledger) is None
    assert [job.id for job in claim_next(ledger)] == [id_]


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPLETED, State.DEAD, State.CANCELLED])
def test_what_runs_or_has_ended_is_never_relayed(ledger, state):
    add_in(ledger, state, broker="redis", grace=0.0)

    assert relay(ledger) == []


def test_what_was_sent_is_not_published_again_unasked(ledger):
    sent, relayed = add(ledger, broker="redis", grace=30.0), add(ledger, broker="redis", grace=0.0)
    assert [job.id for job in relay(ledger)] == [relayed]

    make_due(ledger, sent)
    make_due(ledger, relayed)

    assert relay(ledger) == []
    assert write.next_due(ledger) is None
    write.make_due(ledger, [sent, relayed])
    assert [job.id for job in relay(ledger)] == [sent, relayed]


def test_a_suspect_is_published_with_growing_pauses_whatever_the_broker_holds(ledger):
    id_ = add(ledger, broker="redis", grace=0.0)
    ledger.execute("UPDATE switchyard.job SET suspect = true WHERE id = %s", [id_])
    pauses = []
    for _ in range(8):
        make_due(ledger, id_)
        assert [job.id for job in relay(ledger)] == [id_]
        pauses.append(round(seconds_to_next_look(ledger, id_)))

    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]


def test_a_claim_starts_the_pauses_again(ledger):
    id_ = add(ledger, broker="redis", grace=0.0)
    relay(ledger)
    by = claim(ledger, id_)

    assert fetch(ledger, id_, "publish_count") == 0
    write.finish(ledger, [failed(id_, by, delay=0.0)])
    relay(ledger)
    assert 25 < seconds_to_next_look(ledger, id_) <= 30


def test_pending_rows_in_a_broker_that_others_consume_are_theirs(ledger):
    theirs = add(ledger, broker="rabbitmq", grace=0.0)
    orphaned = add(ledger, broker="postgres", grace=0.0)
    retry = add(ledger, broker="rabbitmq", delay=60.0)
    make_due(ledger, retry)

    assert {job.id for job in relay(ledger, elsewhere=["rabbitmq"])} == {orphaned, retry}
    assert fetch(ledger, theirs, "broker") == "rabbitmq"

    assert [job.id for job in relay(ledger)] == [theirs]
    assert fetch(ledger, theirs, "broker") == "redis"


def test_two_relays_share_what_is_due(ledger, connect):
    ids = [add(ledger, broker="redis", grace=0.0) for _ in range(6)]
    other = connect()
    with ledger.transaction():
        mine = [job.id for job in relay(ledger, limit=4)]
        theirs = [job.id for job in relay(other)]

    assert sorted(mine + theirs) == ids
    assert sorted(mine) == ids[:4]
    assert relay(other) == []


def test_a_relay_that_dies_before_its_commit_published_nothing(ledger, connect):
    id_ = add(ledger, broker="redis", grace=0.0)
    other = connect()
    other.execute("BEGIN")
    assert [job.id for job in relay(other)] == [id_]
    other.close()

    assert [job.id for job in wait_until(lambda: relay(ledger), 30)] == [id_]


def test_the_clock_can_be_given(ledger):
    id_ = add(ledger, delay=3_600.0)

    assert relay(ledger, now=NEVER) == []
    assert [job.id for job in relay(ledger, now="2100-01-01T00:00:00Z")] == [id_]
    assert fetch(ledger, id_, "next_publish_at").year == 2100


def test_the_oldest_due_come_first(ledger):
    late, early = add(ledger, delay=60.0), add(ledger, delay=30.0)

    assert [job.id for job in relay(ledger, limit=1, now="2100-01-01T00:00:00Z")] == [early]
    assert fetch(ledger, late, "state") == "scheduled"


def test_triggers_that_did_not_reach_their_broker_are_due_at_once(ledger):
    failed_, claimed, row_is_message = (
        add(ledger, broker="redis", grace=30.0), add(ledger, broker="redis", grace=30.0), add(ledger)
    )  # fmt: skip
    claim(ledger, claimed)

    write.make_due(ledger, [failed_, claimed, row_is_message])

    assert write.next_due(ledger) <= 0
    assert [job.id for job in relay(ledger)] == [failed_]


def test_the_relay_knows_when_it_is_needed(ledger):
    assert write.next_due(ledger) is None
    add(ledger, delay=100.0)
    add(ledger, delay=50.0)

    assert 45 < write.next_due(ledger) <= 50


def test_jobs_of_an_unknown_actor_are_offered_with_growing_pauses(ledger):
    id_, known = add(ledger, actor="stranger", broker="redis", grace=30.0), add(ledger, broker="redis", grace=30.0)
    pauses, since = [], set()
    for _ in range(6):
        write.postpone_unknown(ledger, [id_, known], ["work"], 5.0)
        pauses.append(round(seconds_to_next_look(ledger, id_)))
        since.add(fetch(ledger, id_, "wait_since"))
        make_due(ledger, id_)
        assert [job.id for job in relay(ledger)] == [id_]

    assert pauses == [5, 10, 20, 40, 60, 60]
    assert len(since) == 1
    assert fetch(ledger, id_, "wait_reason") == "unknown_actor"
    assert fetch(ledger, known, "wait_reason") is None


def test_a_worker_that_knows_the_actor_ends_the_wait(ledger):
    id_ = add(ledger, actor="stranger", broker="redis", grace=30.0)
    write.postpone_unknown(ledger, [id_], ["work"], 5.0)

    write.claim_by_id(ledger, [id_], actors=["stranger"], worker="w", token="0" * 32, lease=30.0)

    stored = row(ledger, id_)
    assert (stored["state"], stored["wait_reason"], stored["wait_since"]) == ("running", None, None)
