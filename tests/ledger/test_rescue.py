"""The rescue: a dead process's jobs come back, the one that killed it is found, and nobody else pays for it."""

from __future__ import annotations

import random
from uuid import uuid4

import pytest

from ledger import write
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.factory import (
    LEASE,
    add,
    age_lease,
    claim,
    claim_next,
    completed,
    fetch,
    history,
    new_job,
    relay_due,
    row,
    token,
    worker_row,
)
from tests.rig.waiting import wait_until

SOON, LATER = "2100-01-01T00:00:00Z", "2200-01-01T00:00:00Z"


def rescue(ledger, worker="w1", *, alive=False, max_lost=3, **fields):
    return write.rescue_worker(ledger, worker, alive=alive, max_lost=max_lost, **fields)


def start_suspect(ledger, id_, holder="w1"):
    """Claim a row as a suspect and let it start."""
    ledger.execute("UPDATE switchyard.job SET suspect = true WHERE id = %s", [id_])
    by = claim(ledger, id_, holder=holder, suspects=True)
    assert write.record_start(ledger, id_, by, LEASE)
    return by


def test_all_jobs_of_a_dead_process_come_back_as_suspects(ledger):
    ids = [add(ledger) for _ in range(3)]
    claim(ledger, *ids)
    age_lease(ledger, *ids)

    rescued = rescue(ledger)

    assert [(job.id, job.state, job.lost, job.guilty) for job in rescued] == [(id_, State.PENDING, 0, False) for id_ in ids]
    for id_ in ids:
        stored = row(ledger, id_)
        assert (stored["state"], stored["suspect"]) == ("pending", True)
        assert (stored["lost"], stored["attempt"], stored["failures"]) == (0, 1, 0)
        assert history(ledger, id_) == [(1, 1, "lost")]
    assert write.next_due(ledger) <= 0


def test_a_dead_process_is_rescued_once_its_last_lease_has_ended(ledger):
    early, late = add(ledger), add(ledger)
    claim(ledger, early)
    claim(ledger, late)
    age_lease(ledger, early)

    assert write.expired_workers(ledger) == [("w1", False)]
    assert rescue(ledger) == []

    age_lease(ledger, late)
    assert {job.id for job in rescue(ledger)} == {early, late}


def test_a_started_suspect_alone_is_guilty(ledger):
    others = [add(ledger) for _ in range(3)]
    claim(ledger, *others)
    suspect = add(ledger)
    start_suspect(ledger, suspect)
    age_lease(ledger, suspect, *others)

    rescued = rescue(ledger)

    assert [(job.id, job.state, job.lost) for job in rescued if job.guilty] == [(suspect, State.SCHEDULED, 1)]
    for id_ in others:
        stored = row(ledger, id_)
        assert (stored["state"], stored["suspect"], stored["lost"]) == ("pending", False, 0)
    stored = row(ledger, suspect)
    assert (stored["suspect"], stored["error_type"], stored["failures"]) == (True, "WorkerLost", 0)


def test_a_suspect_that_had_not_started_is_not_guilty(ledger):
    suspect = add(ledger)
    ledger.execute("UPDATE switchyard.job SET suspect = true WHERE id = %s", [suspect])
    claim(ledger, suspect, suspects=True)
    age_lease(ledger, suspect)

    assert [job.guilty for job in rescue(ledger)] == [False]
    assert (fetch(ledger, suspect, "suspect"), fetch(ledger, suspect, "lost")) == (True, 0)


@pytest.mark.parametrize("how", ["by id", "next"])
def test_the_start_of_an_earlier_attempt_proves_nothing(ledger, how):
    suspect = add(ledger)
    start_suspect(ledger, suspect)
    age_lease(ledger, suspect)
    rescue(ledger)
    relay_due(ledger, now=LATER)
    if how == "by id":
        claim(ledger, suspect, suspects=True)
    else:
        assert claim_next(ledger, suspects=True)
    age_lease(ledger, suspect)

    assert [job.guilty for job in rescue(ledger)] == [False]
    assert fetch(ledger, suspect, "lost") == 1


def test_a_job_that_is_dead_when_lost_never_runs_again_and_clears_nobody(ledger):
    begun, waiting, ordinary = add(ledger, max_lost=1), add(ledger, max_lost=1), add(ledger)
    by = claim(ledger, begun, waiting, ordinary)
    assert write.record_start(ledger, begun, by, LEASE)
    age_lease(ledger, begun, waiting, ordinary)

    rescued = rescue(ledger, max_lost=3)

    assert [(job.id, job.state, job.lost, job.guilty) for job in rescued] == [
        (begun, State.DEAD, 1, True), (waiting, State.PENDING, 0, False), (ordinary, State.PENDING, 0, False),
    ]  # fmt: skip
    assert (fetch(ledger, begun, "dead_reason"), fetch(ledger, begun, "suspect")) == ("worker_lost", False)
    # Who killed the process is not known, so the others are suspects all the same.
    assert fetch(ledger, waiting, "suspect")
    assert fetch(ledger, ordinary, "suspect")


def test_a_job_has_the_bound_it_was_sent_with_also_as_a_suspect(ledger):
    once, twice = add(ledger, max_lost=1), add(ledger, max_lost=2)
    for id_ in (once, twice):
        start_suspect(ledger, id_, holder=f"worker {id_}")
        age_lease(ledger, id_)

    assert [(job.state, job.lost) for job in rescue(ledger, f"worker {once}", max_lost=9)] == [(State.DEAD, 1)]
    assert [(job.state, job.lost) for job in rescue(ledger, f"worker {twice}", max_lost=1)] == [(State.SCHEDULED, 1)]


def test_the_guilty_wait_longer_each_time_and_are_dead_in_the_end(ledger):
    id_, pauses = add(ledger), []
    for lost in (1, 2):
        start_suspect(ledger, id_)
        age_lease(ledger, id_)
        assert [(job.state, job.lost) for job in rescue(ledger, backoff=10.0)] == [(State.SCHEDULED, lost)]
        pauses.append(round(write.next_due(ledger)))
        relay_due(ledger, now=SOON)

    start_suspect(ledger, id_)
    age_lease(ledger, id_)
    assert [(job.state, job.lost) for job in rescue(ledger)] == [(State.DEAD, 3)]

    stored = row(ledger, id_)
    assert pauses == [10, 20]
    assert (stored["dead_reason"], stored["error_type"], stored["suspect"]) == ("worker_lost", "WorkerLost", False)
    assert "w1" in stored["error"]
    assert history(ledger, id_) == [(1, 1, "lost"), (1, 2, "lost"), (1, 3, "lost")]


def test_what_a_living_process_gave_up_is_guilty_without_a_trial(ledger):
    write.beat(ledger, worker_row())
    given_up, held = add(ledger), add(ledger)
    by = claim(ledger, given_up, held)
    write.extend_leases(ledger, [(given_up, by, 1.0)], LEASE)
    age_lease(ledger, given_up)

    assert write.expired_workers(ledger) == [("w1", True)]
    assert [(job.id, job.state, job.lost) for job in rescue(ledger, alive=True)] == [(given_up, State.SCHEDULED, 1)]
    assert fetch(ledger, held, "state") == "running"


def test_a_living_process_s_claim_that_never_started_is_nobody_s_fault(ledger):
    """A claim that was committed after its process had looked for it in vain: the process knows nothing of it."""
    write.beat(ledger, worker_row())
    id_ = add(ledger)
    claim(ledger, id_)
    age_lease(ledger, id_)

    assert [(job.id, job.state, job.lost) for job in rescue(ledger, alive=True)] == [(id_, State.PENDING, 0)]
    assert (fetch(ledger, id_, "suspect"), fetch(ledger, id_, "error_type")) == (False, None)
    assert write.next_due(ledger) <= 0


def test_what_is_known_to_have_run_beside_the_guilty_one_becomes_a_suspect(ledger):
    """The verdict may hit an innocent suspect while a job that nobody suspects yet is the killer: they do not meet a second time."""
    innocent, killer, unstarted = add(ledger), add(ledger), add(ledger)
    start_suspect(ledger, innocent)
    by = claim(ledger, killer, unstarted)
    write.extend_leases(ledger, [(killer, by, 1.0)], LEASE)
    age_lease(ledger, innocent, killer, unstarted)

    assert [(job.id, job.guilty) for job in rescue(ledger)] == [(innocent, True), (killer, False), (unstarted, False)]
    assert [fetch(ledger, id_, "suspect") for id_ in (innocent, killer, unstarted)] == [True, True, False]
    assert [fetch(ledger, id_, "lost") for id_ in (innocent, killer, unstarted)] == [1, 0, 0]


def test_a_process_that_fell_silent_counts_as_dead(ledger):
    write.beat(ledger, worker_row(lease=2.0))
    id_ = add(ledger)
    claim(ledger, id_)
    age_lease(ledger, id_)
    ledger.execute("UPDATE switchyard.worker SET beat_at = beat_at - interval '3 s'")

    assert write.expired_workers(ledger) == [("w1", False)]


def test_the_clock_can_be_given(ledger):
    write.beat(ledger, worker_row())
    id_ = add(ledger)
    claim(ledger, id_)

    assert write.expired_workers(ledger) == []
    assert rescue(ledger) == []
    assert write.expired_workers(ledger, now=SOON) == [("w1", False)]
    assert [job.id for job in rescue(ledger, now=SOON)] == [id_]
    assert fetch(ledger, id_, "next_publish_at").year == 2100


def test_one_rescuer_at_a_time_judges_a_process(ledger, connect):
    ids = [add(ledger) for _ in range(3)]
    claim(ledger, *ids)
    age_lease(ledger, *ids)
    other = connect()

    with ledger.transaction():
        assert len(rescue(ledger)) == 3
        assert rescue(other) == []
    assert rescue(other) == []
    assert [history(ledger, id_) for id_ in ids] == [[(1, 1, "lost")]] * 3


def test_the_rescue_lock_alone_keeps_a_second_rescuer_out(ledger, connect):
    id_ = add(ledger)
    claim(ledger, id_)
    age_lease(ledger, id_)
    other = connect()
    other.execute("BEGIN")
    other.execute("SELECT pg_advisory_xact_lock(hashtext('switchyard.rescue'), hashtext('w1'))")

    assert rescue(ledger) == []

    other.execute("COMMIT")
    assert len(rescue(ledger)) == 1


def test_processes_are_judged_apart(ledger):
    mine, theirs = add(ledger), add(ledger)
    claim(ledger, mine, holder="w1")
    claim(ledger, theirs, holder="w2")
    age_lease(ledger, mine, theirs)

    assert [job.id for job in rescue(ledger, "w1")] == [mine]
    assert fetch(ledger, theirs, "state") == "running"


def test_a_lost_unstarted_claim_counts_as_nothing(ledger):
    id_ = add(ledger, max_attempts=1)
    claim(ledger, id_)
    age_lease(ledger, id_)
    rescue(ledger)

    by = claim(ledger, id_, suspects=True)
    write.finish(ledger, [completed(id_, by)])

    stored = row(ledger, id_)
    assert (stored["state"], stored["suspect"], stored["lost"], stored["failures"]) == ("completed", False, 0, 0)


def test_one_job_that_kills_its_process_among_a_thousand(ledger):
    entries = write.enqueue_many(ledger, [new_job() for _ in range(1_000)])
    poison = entries[random.Random(7).randrange(1_000)].id
    deaths = 0

    def work(rounds):
        """Live as worker processes do: a batch of plain jobs on 8 threads, or one suspect at a time; die of the poison."""
        nonlocal deaths
        for _ in range(rounds):
            relay_due(ledger, now=LATER)
            ready = dict(write.ready_queues(ledger, ["default"], ["work"]))
            if not ready:
                return
            me, by, suspects = f"w{uuid4()}", token(), ready["default"]
            claimed = claim_next(ledger, 1 if suspects else 50, worker=me, token=by, suspects=suspects)
            if suspects:
                write.record_start(ledger, claimed[0].id, by, LEASE)
            fatal = [place for place, job in enumerate(claimed) if job.id == poison]
            survived = claimed if not fatal else claimed[: max(0, fatal[0] - 8)]
            write.finish(ledger, [completed(job.id, by) for job in survived])
            if fatal:
                deaths += 1
                assert rescue(ledger, me, now=SOON)

    work(rounds=200)

    states = dict(ledger.execute("SELECT state, count(*) FROM switchyard.job GROUP BY state").fetchall())
    assert states == {"completed": 999, "dead": 1}
    stored = row(ledger, poison)
    assert (stored["state"], stored["dead_reason"], stored["lost"]) == ("dead", "worker_lost", 3)
    assert deaths == 4
    assert ledger.execute("SELECT max(lost) FROM switchyard.job WHERE id <> %s", [poison]).fetchone()[0] == 0


def test_processes_long_gone_are_forgotten_unless_they_hold_something(ledger):
    for name in ("gone", "holding", "here"):
        write.beat(ledger, worker_row(name, lease=1.0))
    id_ = add(ledger)
    claim(ledger, id_, holder="holding")
    ledger.execute("UPDATE switchyard.worker SET beat_at = beat_at - interval '11 s' WHERE id <> 'here'")

    ledger.execute(SQL["forget_workers"])

    assert {name for (name,) in ledger.execute("SELECT id FROM switchyard.worker").fetchall()} == {"holding", "here"}


def test_the_rescuer_can_tell_how_long_postgres_has_been_up(ledger):
    wait_until(lambda: ledger.execute(SQL["settled_uptime"]).fetchone()[0] > 0, 30, "an uptime")
