"""The read path: every field, every filter, stable pages, true counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import JobNotFound
from ledger import control, read, write
from ledger.job import Page
from ledger.states import SYNONYMS, WAIT_REASONS, State, states_named
from tests.ledger.factory import (
    LEASE,
    add,
    add_in,
    age_lease,
    claim,
    completed,
    failed,
    fetch,
    new_job,
    relay_due,
    row,
    token,
    worker_row,
)


def name_of(ledger, id_):
    return str(fetch(ledger, id_, "message_id"))


def listed(ledger, **filters):
    """Row ids of every page of a list, by following the cursors."""
    found, after = [], None
    while True:
        page = read.list_jobs(ledger, after=after, **filters)
        found += [job.id for job in page.jobs]
        after = page.next
        if after is None:
            return found
        assert len(page.jobs) == filters.get("limit", read.DEFAULT_LIMIT)


def test_a_job_is_read_with_every_field(ledger):
    parent = str(uuid4())
    id_ = add(
        ledger, payload='{"args": [1, "a"], "kwargs": {"z": 1, "a": [2]}}', priority=7, tags=["x", "y"], parent_id=parent,
        queue="mail", max_attempts=5,
    )  # fmt: skip
    by = claim(ledger, id_)
    write.record_progress(ledger, id_, by, 30.0, "query")
    write.finish(ledger, [completed(id_, by, '{"rows": 5}')])
    stored = row(ledger, id_)

    job = read.get_job(ledger, str(stored["message_id"]))

    assert job is not None
    assert (job.id, job.actor, job.queue, job.state) == (str(stored["message_id"]), "work", "mail", State.COMPLETED)
    assert isinstance(job.state, State)
    assert (job.args, job.kwargs, list(job.kwargs)) == ((1, "a"), {"z": 1, "a": [2]}, ["z", "a"])
    assert (job.priority, job.attempt, job.max_attempts, job.failures, job.lost, job.generation) == (7, 1, 5, 0, 0, 1)
    assert (job.progress, job.stage, job.result, job.tags, job.parent_id) == (100.0, "query", {"rows": 5}, ("x", "y"), parent)
    assert (job.broker, job.worker) == ("postgres", "w1")
    assert (job.error, job.error_type, job.dead_reason, job.wait_reason) == (None, None, None, None)
    assert (job.created_at, job.run_at) == (stored["created_at"], stored["run_at"])
    assert (job.started_at, job.finished_at) == (stored["started_at"], stored["finished_at"])


def test_a_dead_letter_says_why(ledger):
    job = read.get_job(ledger, name_of(ledger, add_in(ledger, State.DEAD)))

    assert (job.dead_reason, job.error_type, job.error, job.failures, job.result) == ("max_retries", "ValueError", "no", 1, None)


NOBODY = UUID("00000000-0000-4000-8000-000000000000")


@pytest.mark.parametrize("unknown", ["", "x", "0", str(NOBODY), NOBODY, "'; --", "\x00"])
def test_an_id_that_no_job_has_is_none_or_not_found(ledger, unknown):
    add(ledger)

    assert read.get_job(ledger, unknown) is None
    with pytest.raises(JobNotFound):
        read.attempts(ledger, unknown)
    with pytest.raises(JobNotFound):
        read.logs(ledger, unknown)


def test_an_id_may_be_a_uuid(ledger):
    id_ = add(ledger)

    assert read.get_job(ledger, UUID(name_of(ledger, id_))) == read.get_job(ledger, name_of(ledger, id_))


def test_lists_are_newest_first_and_pages_do_not_shift(ledger):
    names = [name_of(ledger, add(ledger)) for _ in range(7)]
    first = read.list_jobs(ledger, limit=3)
    add(ledger)
    control.cancel(ledger, names[4])

    second = read.list_jobs(ledger, limit=3, after=first.next)
    third = read.list_jobs(ledger, limit=3, after=second.next)

    assert [job.id for job in (*first.jobs, *second.jobs, *third.jobs)] == names[::-1]
    assert third.next is None


def test_a_full_last_page_has_no_next(ledger):
    names = [name_of(ledger, add(ledger)) for _ in range(4)]

    assert read.list_jobs(ledger, limit=4).next is None
    assert listed(ledger, limit=2) == names[::-1]
    assert read.list_jobs(ledger, state="dead") == Page(jobs=(), next=None)


def test_every_state_and_every_word_finds_its_jobs_in_each_broker(ledger):
    names: dict[State, set[str]] = {state: set() for state in State}
    for state in State:
        for broker, grace in (("postgres", None), ("redis", 30.0)):
            for _ in range(3):
                names[state].add(name_of(ledger, add_in(ledger, state, broker=broker, grace=grace)))

    for word in [*State, *SYNONYMS]:
        wanted = set().union(*(names[state] for state in states_named(word)))
        assert set(listed(ledger, state=word, limit=2)) == wanted, word
        assert len(listed(ledger, state=word)) == len(wanted)
    wanted = names[State.RETRYING] | names[State.DEAD] | names[State.RUNNING]
    assert set(listed(ledger, state=["failed", State.RUNNING])) == wanted
    assert set(listed(ledger, state=State)) == set().union(*names.values())
    assert listed(ledger, state=[]) == []


def test_rows_that_are_due_at_once_are_found_as_well(ledger):
    retried = add_in(ledger, State.DEAD)
    write.replay(ledger, name_of(ledger, retried))
    lost = add(ledger)
    claim(ledger, lost)
    age_lease(ledger, lost)
    write.rescue_worker(ledger, "w1", alive=False, max_lost=3)

    assert set(listed(ledger, state="pending")) == {name_of(ledger, retried), name_of(ledger, lost)}
    assert read.counts(ledger).by_state()[State.PENDING] == 2
    assert read.queue_depths(ledger)[0].pending == 2


def test_filters_narrow_each_other(ledger):
    parent = str(uuid4())
    wanted = add(ledger, actor="a", queue="q", tags=["x", "y"], parent_id=parent)
    changes = ("actor", "b"), ("queue", "r"), ("tags", ["xy"]), ("tags", None), ("parent_id", None), ("parent_id", str(uuid4()))
    for name, value in changes:
        add(ledger, **({"actor": "a", "queue": "q", "tags": ["x"], "parent_id": parent} | {name: value}))

    assert listed(ledger, actor="a", queue="q", tag="x", parent_id=parent, state="pending") == [name_of(ledger, wanted)]
    assert len(listed(ledger, actor="a", queue="q", tag="x")) == 3
    assert listed(ledger, parent_id=UUID(parent), tag="y") == [name_of(ledger, wanted)]
    assert listed(ledger, actor="a' OR true --") == []


def test_a_reason_to_wait_is_a_filter_in_whatever_state(ledger):
    ids = {reason: add(ledger, delay=60.0) for reason in (*WAIT_REASONS, None)}
    for reason, id_ in ids.items():
        ledger.execute("UPDATE switchyard.job SET wait_reason = %s WHERE id = %s", [reason, id_])
    # Its turn has come.
    called = add(ledger)
    ledger.execute("UPDATE switchyard.job SET wait_reason = 'concurrency' WHERE id = %s", [called])

    for reason in WAIT_REASONS:
        wanted = [called, ids[reason]] if reason == "concurrency" else [ids[reason]]
        assert listed(ledger, wait_reason=reason) == [name_of(ledger, id_) for id_ in wanted]
    both = listed(ledger, wait_reason=["paused", "upstream"])
    assert set(both) == {name_of(ledger, ids["paused"]), name_of(ledger, ids["upstream"])}
    assert listed(ledger, wait_reason="concurrency", state="waiting") == [name_of(ledger, called)]
    assert listed(ledger, wait_reason="concurrency", state="running") == []


def test_times_of_creation_bound_a_list(ledger):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    ids = [add(ledger) for _ in range(10)]
    for minute, id_ in enumerate(ids):
        moment = start + timedelta(minutes=10 * minute)
        ledger.execute("UPDATE switchyard.job SET created_at = %s WHERE id = %s", [moment, id_])
    names = [name_of(ledger, id_) for id_ in ids]

    def minutes(count):
        return start + timedelta(minutes=count)

    assert listed(ledger, created_after=minutes(70)) == names[:6:-1]
    assert listed(ledger, created_before=minutes(20)) == names[1::-1]
    assert listed(ledger, created_after=minutes(30), created_before=minutes(50)) == names[4:2:-1]
    assert listed(ledger, created_after=start - timedelta(days=1)) == names[::-1]
    assert listed(ledger, created_after=start + timedelta(days=1)) == []
    assert listed(ledger, created_before=start) == []


def test_times_of_creation_may_be_out_of_order_by_seconds(ledger):
    start = datetime(2026, 3, 1, tzinfo=UTC)
    ids = [add(ledger) for _ in range(8)]
    for position, id_ in enumerate(ids):
        moment = start + timedelta(seconds=position + (20 if position % 2 else -20))
        ledger.execute("UPDATE switchyard.job SET created_at = %s WHERE id = %s", [moment, id_])

    assert len(listed(ledger, created_after=start)) == 4
    assert len(listed(ledger, created_before=start)) == 4


def test_a_time_range_in_an_empty_ledger_is_empty(ledger):
    assert listed(ledger, created_after=datetime(2026, 1, 1, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"limit": 0}, "limit 0"),
        ({"limit": 201}, "limit 201"),
        ({"state": "asleep"}, "'asleep' is unknown"),
        ({"wait_reason": "bored"}, "wait_reason 'bored' is unknown; use concurrency, rate_limit, paused"),
        ({"created_after": datetime(2026, 1, 1)}, "naive"),
        ({"created_before": datetime(2026, 1, 1)}, "naive"),
        ({"parent_id": "x"}, "parent_id 'x'"),
        ({"after": ""}, "after ''"),
        ({"after": "é"}, "after 'é'"),
        ({"after": "12"}, "after '12'"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(ledger, filters, reason):
    with pytest.raises(ValueError, match=reason):
        read.list_jobs(ledger, **filters)


@given(st.integers(0, 2**63 - 1), st.data())
def test_a_cursor_comes_back_and_no_changed_one_is_accepted(row_id, data):
    cursor = read._cursor(row_id)
    position = data.draw(st.integers(0, len(cursor) - 1))
    changed = cursor[:position] + data.draw(st.characters(exclude_characters=cursor[position])) + cursor[position + 1 :]

    assert read._cursor_id(cursor) == row_id
    for wrong in (changed, cursor[:-1], cursor + "A", cursor + "=", " " + cursor):
        with pytest.raises(ValueError, match="not the cursor of a page"):
            read._cursor_id(wrong)


def test_attempts_are_the_history_and_the_execution_of_the_row(ledger):
    id_ = add(ledger)
    name = name_of(ledger, id_)
    assert read.attempts(ledger, name) == []
    write.finish(ledger, [failed(id_, claim(ledger, id_, holder="w1"), delay=0.0)])
    relay_due(ledger)
    by = claim(ledger, id_, holder="w2")

    running = read.attempts(ledger, name)
    write.finish(ledger, [completed(id_, by)])
    done = read.attempts(ledger, name)

    assert [(entry.attempt, entry.worker, entry.outcome) for entry in running] == [(1, "w1", "failed"), (2, "w2", "running")]
    assert (running[0].error_type, running[0].error, running[0].traceback) == ("ValueError", "no", "Traceback …")
    assert running[1].finished_at is None
    assert [(entry.attempt, entry.outcome) for entry in done] == [(1, "failed"), (2, "completed")]
    assert done[1].finished_at >= done[1].started_at


def test_attempts_of_every_generation_are_in_order(ledger):
    id_ = add_in(ledger, State.DEAD)
    for _ in range(2):
        write.replay(ledger, name_of(ledger, id_))
        write.finish(ledger, [failed(id_, claim(ledger, id_), state=State.DEAD)])

    found = read.attempts(ledger, name_of(ledger, id_))

    assert [(entry.generation, entry.attempt) for entry in found] == [(1, 1), (2, 1), (3, 1)]


def test_log_lines_come_in_order_and_can_be_followed(ledger):
    id_, other = add(ledger), add(ledger)
    by = claim(ledger, id_, other)
    write.append_log(ledger, id_, by, ["a", "b", "c"], [0.0, 0.0, 0.0])
    write.append_log(ledger, other, by, ["not mine"], [0.0])
    name = name_of(ledger, id_)

    first = read.logs(ledger, name, limit=2)

    assert [(line.line, line.generation, line.attempt) for line in first] == [("a", 1, 1), ("b", 1, 1)]
    assert [line.line for line in read.logs(ledger, name, after=first[-1].id)] == ["c"]
    with pytest.raises(ValueError, match="limit"):
        read.logs(ledger, name, limit=0)


def test_counts_are_per_queue_actor_and_state(ledger):
    for state in State:
        add_in(ledger, state, queue="a")
    add(ledger, queue="b", broker="redis", grace=30.0)
    add(ledger, queue="b", actor="other")

    counts = read.counts(ledger)

    assert counts.by_queue()["a"] == dict.fromkeys(State, 1)
    assert counts.by_queue()["b"] == dict.fromkeys(State, 0) | {State.PENDING: 2}
    assert counts.by_actor()["other"] == dict.fromkeys(State, 0) | {State.PENDING: 1}
    assert counts.by_state() == dict.fromkeys(State, 1) | {State.PENDING: 3}
    assert not counts.estimated


def test_an_empty_ledger_counts_nothing(ledger):
    assert read.counts(ledger).by_state() == dict.fromkeys(State, 0)
    assert read.counts(ledger).by_queue() == {}
    assert read.queue_depths(ledger) == []


def test_depths_and_latency_per_queue(ledger):
    add(ledger, queue="a")
    add(ledger, queue="a", broker="redis", grace=30.0)
    add(ledger, queue="a", delay=60.0)
    add_in(ledger, State.RUNNING, queue="b")
    add_in(ledger, State.RETRYING, queue="b")
    add_in(ledger, State.COMPLETED, queue="c")
    ledger.execute("UPDATE switchyard.job SET run_at = run_at - interval '90 s' WHERE broker = 'redis'")

    first, second = read.queue_depths(ledger)

    assert (first.queue, first.pending, first.scheduled, first.retrying, first.running) == ("a", 2, 1, 0, 0)
    assert 90 <= first.latency < 120
    assert (second.queue, second.pending, second.retrying, second.running, second.latency) == ("b", 0, 1, 1, 0.0)


def test_living_workers_with_what_they_hold(ledger):
    write.beat(ledger, worker_row("w1"))
    write.beat(ledger, worker_row("silent", lease=1.0))
    started, claimed = add(ledger), add(ledger)
    by = claim(ledger, started, claimed)
    write.record_start(ledger, started, by, LEASE)
    ledger.execute("UPDATE switchyard.worker SET beat_at = beat_at - interval '2 s' WHERE id = 'silent'")

    (worker,) = read.workers(ledger)

    assert (worker.id, worker.broker, worker.queues, worker.threads, worker.lease) == ("w1", "postgres", ("default",), 8, LEASE)
    assert [(job.id, job.attempt) for job in worker.jobs] == [(name_of(ledger, started), 1), (name_of(ledger, claimed), 1)]
    assert worker.jobs[0].started_at is not None
    assert worker.jobs[1].started_at is None
    assert read.workers(ledger, now=datetime(2100, 1, 1, tzinfo=UTC)) == []


def test_a_worker_says_its_version_beside_what_it_counts(ledger):
    telling, mute = worker_row("telling"), worker_row("mute")
    telling.version, telling.counters = "1.2", {"stale": 3}
    # The second beat is an update.
    for worker in (telling, telling, mute):
        write.beat(ledger, worker)

    assert [(worker.id, worker.version, worker.counters) for worker in read.workers(ledger)] == [
        ("telling", "1.2", {"stale": 3}),
        ("mute", None, {}),
    ]


def test_values_are_frozen(ledger):
    job = read.get_job(ledger, write.enqueue(ledger, new_job()).message_id)

    with pytest.raises(AttributeError):
        job.state = State.DEAD
    assert token() != token()
