"""Claims: one valid holder at a time, in the order promised, and a lost reply that is read back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ledger import write
from ledger.records import Unclaimed
from ledger.states import State
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.factory import (
    LEASE,
    add,
    add_in,
    claim,
    claim_next,
    completed,
    fetch,
    history,
    new_job,
    released,
    row,
    token,
    worker_row,
)


def claim_by_id(ledger, ids, **fields):
    arguments = {"actors": ["work"], "worker": "w1", "token": token(), "lease": LEASE}
    return write.claim_by_id(ledger, ids, **(arguments | fields))


def test_a_claim_makes_the_worker_the_owner(ledger):
    id_ = add(ledger, broker="redis", grace=30.0, payload='{"args": [1], "kwargs": {"a": 2}}', options='{"o": 3}', tags=["t"])
    by = token()

    (job,) = claim_by_id(ledger, [id_], token=by, worker="me")

    stored = row(ledger, id_)
    assert (job.id, job.message_id, job.attempt) == (id_, str(stored["message_id"]), 1)
    assert job.payload == {"args": [1], "kwargs": {"a": 2}}
    assert (job.options, job.tags, job.max_attempts, job.suspect) == ({"o": 3}, ["t"], 3, False)
    assert (stored["state"], str(stored["token"]), stored["worker"], stored["attempt"]) == ("running", by, "me", 1)
    assert stored["next_publish_at"] is None
    assert stored["started_at"] is None


def test_claims_by_id_come_back_in_the_order_of_the_triggers(ledger):
    ids = [add(ledger) for _ in range(5)]
    wanted = [ids[3], ids[0], ids[4]]

    assert [job.id for job in claim_by_id(ledger, wanted)] == wanted


def test_a_trigger_that_came_twice_is_claimed_once(ledger):
    id_ = add(ledger)

    assert len(claim_by_id(ledger, [id_, id_])) == 1
    assert claim_by_id(ledger, [id_]) == []
    assert fetch(ledger, id_, "attempt") == 1


@pytest.mark.parametrize("state", [state for state in State if state is not State.PENDING])
def test_only_pending_rows_can_be_claimed(ledger, state):
    id_ = add_in(ledger, state)
    before = row(ledger, id_)

    assert claim_by_id(ledger, [id_, id_ + 1_000_000]) == []
    assert claim_next(ledger) == []
    assert row(ledger, id_) == before


def test_rows_of_an_unknown_actor_are_left_alone(ledger):
    id_ = add(ledger, actor="stranger")

    assert claim_by_id(ledger, [id_]) == []
    assert claim_next(ledger) == []
    assert write.why_not_claimed(ledger, [id_, id_ + 1]) == {
        id_: Unclaimed(State.PENDING, "stranger", False, paused=False, queue="default", limited=False)
    }


def test_suspects_are_claimed_only_when_asked_for(ledger):
    plain, suspect = add(ledger), add(ledger)
    ledger.execute("UPDATE switchyard.job SET suspect = true WHERE id = %s", [suspect])

    assert sorted(write.ready_queues(ledger, ["default"], ["work"])) == [("default", False), ("default", True)]
    assert [job.id for job in claim_next(ledger, 10)] == [plain]
    assert claim_by_id(ledger, [suspect]) == []
    assert [(job.id, job.suspect) for job in claim_next(ledger, 10, suspects=True)] == [(suspect, True)]


def test_the_next_rows_are_the_best_priority_then_the_oldest(ledger):
    late = add(ledger, priority=5)
    first, second = add(ledger, priority=0), add(ledger, priority=0)
    urgent = add(ledger, priority=-5)
    other_queue, other_broker = add(ledger, queue="other"), add(ledger, broker="redis", grace=0.0)

    assert [job.id for job in claim_next(ledger, 3)] == [urgent, first, second]
    assert [job.id for job in claim_next(ledger, 3)] == [late]
    assert fetch(ledger, other_queue, "state") == fetch(ledger, other_broker, "state") == "pending"


def test_two_workers_that_ask_for_the_next_share_the_queue(ledger, connect):
    ids = [add(ledger) for _ in range(6)]
    other = connect()
    with ledger.transaction():
        mine = [job.id for job in claim_next(ledger, 3)]
        theirs = [job.id for job in claim_next(other, 10, worker="w2")]

    assert mine == ids[:3]
    assert theirs == ids[3:]


def test_race_4_two_workers_claim_one_row(ledger, connect):
    id_ = add(ledger)
    other = connect()
    ledger.execute("BEGIN")
    by = claim(ledger, id_)
    meanwhile = Meanwhile(lambda: claim_by_id(other, [id_], worker="w2"))
    wait_for_lock(connect(), other.info.backend_pid)

    ledger.execute("COMMIT")

    assert meanwhile.result() == []
    assert str(fetch(ledger, id_, "token")) == by
    assert fetch(ledger, id_, "attempt") == 1


def test_race_4_the_second_worker_gets_what_the_first_rolled_back(ledger, connect):
    id_ = add(ledger)
    other = connect()
    ledger.execute("BEGIN")
    claim(ledger, id_)
    meanwhile = Meanwhile(lambda: claim_by_id(other, [id_], worker="w2"))
    wait_for_lock(connect(), other.info.backend_pid)

    ledger.execute("ROLLBACK")

    assert [job.attempt for job in meanwhile.result()] == [1]
    assert fetch(ledger, id_, "worker") == "w2"


def test_batches_in_any_order_lock_in_one_order(ledger, connect):
    ids = [add(ledger) for _ in range(50)]
    other = connect()
    ledger.execute("BEGIN")
    claim(ledger, ids[-1])
    meanwhile = Meanwhile(lambda: claim_by_id(other, [ids[-1], *ids[:-1]], worker="w2"))
    wait_for_lock(connect(), other.info.backend_pid)

    # The other batch waits for our last row, so it holds the rows before it: it went through them by id.
    locked = connect().execute("SELECT id FROM switchyard.job ORDER BY id FOR UPDATE SKIP LOCKED").fetchall()
    ledger.execute("COMMIT")

    assert locked == []
    assert [job.id for job in meanwhile.result()] == ids[:-1]


def test_race_7_a_claim_whose_reply_was_lost_is_read_back(ledger, connect):
    ids = [add(ledger, priority=priority) for priority in (2, 1)]
    stranger = add(ledger)
    by = claim(ledger, *ids)
    claim(ledger, stranger)

    found = write.claimed_with_token(connect(), worker="w1", token=by)

    assert [job.id for job in found] == list(reversed(ids))
    assert all(job.attempt == 1 for job in found)
    assert write.claimed_with_token(ledger, worker="w1", token=token()) == []


def test_a_start_is_recorded_by_the_holder_alone(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)

    assert not write.record_start(ledger, id_, token(), LEASE)
    assert fetch(ledger, id_, "started_at") is None
    assert write.record_start(ledger, id_, by, LEASE)
    assert fetch(ledger, id_, "started_at") is not None


def test_a_heartbeat_extends_what_is_ours_and_tells_what_is_not(ledger):
    kept, finished, stolen = (add(ledger) for _ in range(3))
    by = claim(ledger, kept, finished, stolen, lease=5.0)
    write.finish(ledger, [completed(finished, by)])
    write.finish(ledger, [released(stolen, by)])
    claim(ledger, stolen, holder="w2", lease=5.0)
    before = fetch(ledger, kept, "lease_until")
    stolen_before = row(ledger, stolen)

    ours = write.extend_leases(ledger, [(kept, by, 2.0), (finished, by, 1.0), (stolen, by, None)], 60.0)

    assert ours == {kept}
    assert (fetch(ledger, kept, "lease_until") - before).total_seconds() > 50
    assert row(ledger, stolen) == stolen_before


def test_a_heartbeat_records_when_an_execution_started(ledger):
    running, waiting = add(ledger), add(ledger)
    by = claim(ledger, running, waiting)

    write.extend_leases(ledger, [(running, by, 10.0), (waiting, by, None)], LEASE)

    age = ledger.execute(
        "SELECT extract(epoch FROM clock_timestamp() - started_at)::float8 FROM switchyard.job WHERE id = %s", [running]
    ).fetchone()[0]
    assert 10 <= age < 40
    assert fetch(ledger, waiting, "started_at") is None


def test_a_heartbeat_neither_waits_for_a_locked_row_nor_loses_it(ledger, connect):
    id_ = add(ledger)
    by = claim(ledger, id_)
    other = connect()
    other.execute("BEGIN")
    other.execute("SELECT 1 FROM switchyard.job WHERE id = %s FOR UPDATE", [id_])

    ledger.execute("SET lock_timeout = '1s'")
    assert write.extend_leases(ledger, [(id_, by, None)], LEASE) == {id_}


def test_a_late_heartbeat_revives_a_lease_that_nobody_took(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_, lease=-5.0)

    assert write.extend_leases(ledger, [(id_, by, None)], LEASE) == {id_}
    assert write.expired_workers(ledger) == []


def test_an_unstarted_claim_goes_back_without_a_trace(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)

    assert write.release_unstarted(ledger, [(id_, by), (id_, token())]) == {id_}

    stored = row(ledger, id_)
    assert (stored["state"], stored["attempt"], stored["worker"]) == ("pending", 0, None)
    assert history(ledger, id_) == []
    assert write.next_due(ledger) <= 0
    assert write.release_unstarted(ledger, [(id_, by)]) == set()
    assert claim_by_id(ledger, [id_])[0].attempt == 1


def test_progress_and_log_lines_are_the_holders_alone(ledger):
    id_ = add(ledger)
    by = claim(ledger, id_)

    assert write.record_progress(ledger, id_, by, 40.0, "formatting")
    assert not write.record_progress(ledger, id_, token(), 90.0, "no")
    assert write.append_log(ledger, id_, by, ["one", "two"], [2.0, 1.0])
    assert not write.append_log(ledger, id_, token(), ["no"], [0.0])
    write.finish(ledger, [completed(id_, by)])
    assert not write.record_progress(ledger, id_, by, 50.0, None)
    assert not write.append_log(ledger, id_, by, ["late"], [0.0])

    stored = row(ledger, id_)
    assert (stored["progress"], stored["stage"]) == (100, "formatting")
    lines = ledger.execute("SELECT line, at, attempt FROM switchyard.job_log ORDER BY id").fetchall()
    assert [line for line, _, _ in lines] == ["one", "two"]
    assert all(earlier[1] < later[1] for earlier, later in pairwise(lines))


def test_a_worker_is_known_while_it_beats(ledger):
    worker = worker_row("w9")
    write.beat(ledger, worker)
    worker.running, worker.counters = 3, {"stale": 2}

    write.beat(ledger, worker)

    assert ledger.execute("SELECT running, counters FROM switchyard.worker WHERE id = 'w9'").fetchall() == [(3, {"stale": 2})]
    write.retire_worker(ledger, "w9")
    assert ledger.execute("SELECT count(*) FROM switchyard.worker").fetchone()[0] == 0


def test_ready_queues_are_those_with_something_claimable(ledger):
    add(ledger, queue="a")
    add(ledger, queue="b", actor="stranger")
    add(ledger, queue="c", broker="redis", grace=30.0)
    add(ledger, queue="d", delay=60.0)

    assert write.ready_queues(ledger, ["a", "b", "c", "d", "e"], ["work"]) == [("a", False)]


def test_postponed_suspects_are_offered_later(ledger):
    suspect, plain = add(ledger, broker="redis", grace=0.0), add(ledger, broker="redis", grace=0.0)
    ledger.execute("UPDATE switchyard.job SET suspect = true WHERE id = %s", [suspect])
    before = fetch(ledger, plain, "next_publish_at")

    write.postpone_suspects(ledger, [suspect, plain], 60.0)

    assert (fetch(ledger, suspect, "next_publish_at") - before).total_seconds() > 50
    assert fetch(ledger, plain, "next_publish_at") == before


def test_a_bulk_can_be_claimed_whole(ledger):
    ids = [entry.id for entry in write.enqueue_many(ledger, [new_job() for _ in range(500)])]

    assert len(claim_by_id(ledger, ids)) == 500
