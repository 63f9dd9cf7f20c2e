"""The relay: what is due becomes pending and is published, what is not due or not ours stays."""

from __future__ import annotations

import pytest

from ledger import routes, write
from ledger.states import State
from tests.ledger.factory import add, add_in, claim, claim_next, failed, fetch, relay_due, row
from tests.rig.waiting import wait_until

NEVER = "2000-01-01T00:00:00Z"


def relay(ledger, broker="redis", **fields):
    return relay_due(ledger, broker, **({"grace": 30.0} | fields))


def seconds_to_next_look(ledger, id_):
    return ledger.execute(
        "SELECT extract(epoch FROM next_publish_at - clock_timestamp())::float8 FROM switchyard.job WHERE id = %s", [id_]
    ).fetchone()[0]


def make_due(ledger, *ids):
    ledger.execute(
        "UPDATE switchyard.job SET next_publish_at = clock_timestamp() - interval '1 s' WHERE id = ANY(%s)", [list(ids)]
    )


def declare(ledger, declared):
    routes.declare(ledger, declared, 30.0, entering=True)
    routes.settle(ledger, settled=False)


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


def test_each_row_goes_to_the_route_of_its_own_queue(ledger):
    declare(ledger, {"*": "redis", "exports": "rabbitmq", "kept": "postgres"})
    plain, exported, kept = (add(ledger, queue=queue, delay=60.0) for queue in ("default", "exports", "kept"))
    moved = add(ledger, queue="exports", broker="redis", grace=0.0)
    make_due(ledger, plain, exported, kept)

    relayed = {job.id: job.broker for job in relay(ledger, "postgres")}

    assert relayed == {plain: "redis", exported: "rabbitmq", kept: "postgres", moved: "rabbitmq"}
    assert {id_: fetch(ledger, id_, "broker") for id_ in relayed} == relayed
    assert [fetch(ledger, id_, "next_publish_at") is None for id_ in (plain, exported, kept, moved)] == [
        False,
        False,
        True,
        False,
    ]


def test_rows_whose_broker_cannot_be_reached_stay_untouched(ledger):
    declare(ledger, {"*": "redis", "exports": "rabbitmq"})
    away, here = add(ledger, broker="redis", grace=0.0), add(ledger, broker="redis", queue="exports", grace=0.0)
    before = row(ledger, away)

    assert [job.id for job in relay(ledger, reachable=["rabbitmq", "postgres"])] == [here]

    assert row(ledger, away) == before


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
