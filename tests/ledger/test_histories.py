"""What a job's history keeps: everything of most jobs; of one that runs thousands of times a bounded part, and the count of the rest."""

from __future__ import annotations

from collections import Counter

import pytest

from ledger import dead, read, write
from ledger.database import Database
from ledger.states import State
from tests.ledger.factory import add, age_lease, claim, completed, failed, history, name_of, released

#: Nine executions may come between two looks.
MOST = 10 + 90 + 9


def snooze(ledger, id_):
    by = claim(ledger, id_)
    quiet = {"error_type": None, "error": None, "traceback": None}
    assert write.finish(ledger, [failed(id_, by, state=State.PENDING, outcome="snoozed", delay=0.0, **quiet)])


def fail(ledger, id_, state=State.PENDING):
    by = claim(ledger, id_)
    assert write.finish(ledger, [failed(id_, by, state=state, delay=0.0)])


def release(ledger, id_):
    assert write.finish(ledger, [released(id_, claim(ledger, id_))])


def lose(ledger, id_):
    """Its process dies before it began: nobody's fault, however often."""
    held = ledger.execute("SELECT suspect FROM switchyard.job WHERE id = %s", [id_]).fetchone()[0]
    claim(ledger, id_, suspects=held)
    age_lease(ledger, id_)
    assert [job.guilty for job in write.rescue_worker(ledger, "w1", alive=False, max_lost=3)] == [False]


def told(ledger, id_):
    """How many executions of each outcome the history tells of, kept or counted."""
    found = Counter()
    for entry in read.attempts(ledger, name_of(ledger, id_)):
        found[entry.outcome] += 1 + entry.omitted
    return found


@pytest.mark.parametrize(("end", "outcome"), [(snooze, "snoozed"), (release, "released"), (fail, "failed"), (lose, "lost")])
def test_of_many_executions_that_ended_alike_the_first_and_the_latest_are_kept_and_the_others_counted(ledger, end, outcome):
    id_ = add(ledger, max_attempts=None)
    for _ in range(235):
        end(ledger, id_)

    kept = read.attempts(ledger, name_of(ledger, id_))

    assert len(kept) <= MOST
    numbers = [entry.attempt for entry in kept]
    assert numbers[:10] == list(range(1, 11))
    assert numbers[-90:] == list(range(146, 236))
    assert [entry.attempt for entry in kept if entry.omitted] == [10]
    assert told(ledger, id_) == {outcome: 235}


def test_a_hundred_executions_are_all_kept(ledger):
    id_ = add(ledger, max_attempts=None)
    for _ in range(100):
        fail(ledger, id_)

    assert history(ledger, id_) == [(1, number, "failed") for number in range(1, 101)]


def test_failures_are_kept_among_any_number_of_snoozes(ledger):
    id_ = add(ledger)
    for number in range(1, 361):
        (fail if number in (5, 150, 200) else snooze)(ledger, id_)

    kept = read.attempts(ledger, name_of(ledger, id_))

    assert [(entry.attempt, entry.traceback) for entry in kept if entry.outcome == "failed"] == [
        (number, "Traceback …") for number in (5, 150, 200)
    ]
    assert told(ledger, id_) == {"failed": 3, "snoozed": 357}
    assert len(kept) <= 3 + MOST


def test_replays_without_end_are_bounded_as_well(ledger):
    id_ = add(ledger, max_attempts=1)
    for _ in range(160):
        fail(ledger, id_, State.DEAD)
        assert dead.replay(ledger, name_of(ledger, id_))
    write.finish(ledger, [completed(id_, claim(ledger, id_))])

    kept = read.attempts(ledger, name_of(ledger, id_))

    assert len(kept) <= MOST + 1
    assert [(entry.generation, entry.outcome) for entry in kept[-2:]] == [(160, "failed"), (161, "completed")]
    assert told(ledger, id_) == {"failed": 160, "completed": 1}


def test_the_log_of_an_execution_goes_with_it_and_that_of_the_others_stays(ledger):
    id_, other = add(ledger), add(ledger)
    write.append_log(ledger, other, claim(ledger, other), ["not mine"], [0.0])
    for number in range(1, 131):
        by = claim(ledger, id_)
        assert write.append_log(ledger, id_, by, [f"at {number}", "and more"], [0.0, 0.0])
        write.finish(ledger, [released(id_, by)])

    lines = ledger.execute("SELECT attempt FROM switchyard.job_log WHERE job_id = %s ORDER BY id", [id_]).fetchall()

    kept = [entry.attempt for entry in read.attempts(ledger, name_of(ledger, id_))]
    assert [attempt for (attempt,) in lines] == [attempt for attempt in kept for _ in range(2)]
    assert len(kept) < 130
    assert [line.line for line in read.logs(ledger, name_of(ledger, other))] == ["not mine"]


def test_a_history_that_grew_before_there_was_a_bound_is_cut_down_bit_by_bit(ledger):
    id_ = add(ledger)
    with ledger.transaction():
        # As it was before the trigger.
        ledger.execute("SET LOCAL session_replication_role = replica")
        ledger.execute(
            "INSERT INTO switchyard.attempt (job_id, generation, attempt, outcome)"
            " SELECT %s, 1, n, CASE WHEN n %% 100 = 0 THEN 'failed' ELSE 'snoozed' END FROM generate_series(1, 3000) AS n",
            [id_],
        )
        ledger.execute("UPDATE switchyard.job SET attempt = 3000 WHERE id = %s", [id_])
    sizes = []
    for _ in range(60):
        snooze(ledger, id_)
        sizes.append(len(history(ledger, id_)))

    steps = [before - after for before, after in zip([3000, *sizes], sizes, strict=False)]
    assert max(steps) < 1_000
    assert sizes[-1] <= MOST + 30
    assert told(ledger, id_) == {"failed": 30, "snoozed": 3_030}
    assert [attempt for _, attempt, outcome in history(ledger, id_) if outcome == "failed"] == list(range(100, 3_001, 100))


@pytest.fixture
def flusher(ledger_url):
    """The kind of connection that ends are written on."""
    with Database(ledger_url).dedicated("flusher", batches=True) as connection:
        yield connection


def reads(ledger, table):
    """The rows of a table that this transaction has read, by scans and by indexes."""
    return ledger.execute(
        "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relid = %s::regclass", [table]
    ).fetchone()[0]


def test_of_a_history_that_grew_before_there_was_a_bound_no_end_reads_more_than_the_oldest(ledger, flusher):
    executions, looked_at = 20_000, 1_000
    id_ = add(ledger)
    with ledger.transaction():
        ledger.execute("SET LOCAL session_replication_role = replica")
        ledger.execute(
            "INSERT INTO switchyard.attempt (job_id, generation, attempt, outcome)"
            " SELECT %s, 1, n, 'snoozed' FROM generate_series(1, %s) AS n",
            [id_, executions],
        )
        ledger.execute(
            "INSERT INTO switchyard.job_log (job_id, generation, attempt, line)"
            " SELECT %s, 1, n, 'waits' FROM generate_series(1, %s) AS n",
            [id_, executions],
        )
        ledger.execute("UPDATE switchyard.job SET attempt = %s WHERE id = %s", [executions + 8, id_])
    ledger.execute("ANALYZE switchyard.attempt, switchyard.job_log")
    by = claim(ledger, id_)
    tables = ("switchyard.attempt", "switchyard.job_log")

    with flusher.transaction():
        before = [reads(flusher, table) for table in tables]
        assert write.finish(flusher, [released(id_, by)])
        read_ = [reads(flusher, table) - count for table, count in zip(tables, before, strict=True)]

    assert len(history(ledger, id_)) == executions + 1 - 900
    assert [entry < 6 * looked_at for entry in read_] == [True, True], read_
    lines = ledger.execute("SELECT count(*), min(attempt), max(attempt) FROM switchyard.job_log WHERE job_id = %s", [id_])
    assert lines.fetchone() == (executions - 900, 1, executions)
