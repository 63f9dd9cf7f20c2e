"""Failures: retries, dead letters, limits of age and time, and that none of them ever vanishes."""

from __future__ import annotations

from itertools import pairwise

import pytest

import switchyard
from errors import JobExists, JobNotFound, OptionError
from ledger.states import State
from tests.conformance import jobs
from tests.rig.waiting import wait_until


def outcomes(system, message):
    return [attempt.outcome for attempt in system.attempts(message)]


def test_a_job_that_fails_is_tried_again_with_its_history_kept(system):
    message = system.jobs.fails_until.send(3)

    job = system.ended(message)

    assert (job.state, job.result, job.attempt, job.failures, job.error) == (State.COMPLETED, 3, 3, 2, None)
    history = system.attempts(message)
    assert [(a.attempt, a.outcome, a.error_type) for a in history] == [
        (1, "failed", "ValueError"), (2, "failed", "ValueError"), (3, "completed", None),
    ]  # fmt: skip
    assert "not yet, attempt 1" in history[0].traceback
    assert "fails_until" in history[0].traceback


def test_back_off_grows_within_its_bounds(system):
    message = system.jobs.fails_until.send_with_options(args=(4,), min_backoff=100, max_backoff=250)

    system.ended(message)

    pauses = [(after.started_at - before.finished_at).total_seconds() for before, after in pairwise(system.attempts(message))]
    assert 0.1 <= pauses[0] <= 0.15 + 10
    assert 0.2 <= pauses[1] <= 0.25 + 10
    assert 0.25 <= pauses[2] <= 0.25 + 10


def test_a_job_out_of_retries_is_dead_with_everything_on_view(system):
    message = system.jobs.always_fails.send("reason \x00 why".replace("\x00", ""))

    job = system.ended(message)

    assert (job.state, job.dead_reason, job.attempt, job.failures, job.max_attempts) == (State.DEAD, "max_retries", 3, 3, 3)
    assert (job.error_type, job.error) == ("ValueError", "reason  why")
    assert outcomes(system, message) == ["failed"] * 3


@pytest.mark.parametrize(
    ("name", "args", "reason", "attempts"),
    [
        ("fails_once", (), "max_retries", 1),
        ("throws", (), "permanent", 1),
        ("permanent", (), "permanent", 1),
        ("retry_when", ("os",), "max_retries", 3),
        ("retry_when", ("value",), "max_retries", 1),
        ("exits", (), "max_retries", 1),
    ],
)
def test_which_failures_are_final(system, name, args, reason, attempts):
    job = system.ended(getattr(system.jobs, name).send(*args))

    assert (job.state, job.dead_reason, job.attempt) == (State.DEAD, reason, attempts)


def test_without_a_bound_it_is_tried_until_it_succeeds(system):
    job = system.ended(system.jobs.unbounded.send())

    assert (job.state, job.result, job.max_attempts) == (State.COMPLETED, 5, None)


def test_a_message_may_have_a_bound_of_its_own(system):
    job = system.ended(system.jobs.always_fails.send_with_options(max_retries=0))

    assert (job.dead_reason, job.attempt) == ("max_retries", 1)


def test_retry_says_when(system):
    message = system.jobs.retry_soon.send()

    job = system.ended(message, 30)

    assert job.result == 2
    first, second = system.attempts(message)
    assert 0.1 <= (second.started_at - first.finished_at).total_seconds() < 30


@pytest.mark.parametrize("kind", ["minus infinity", "nan", "negative", "text", "timedelta", "truth"])
def test_a_time_that_retry_cannot_mean_spends_a_failure_and_nothing_else(system, kind):
    message = system.jobs.retry_after.send(kind)

    job = system.ended(message, 30)

    assert (job.state, job.result, job.failures) == (State.COMPLETED, 2, 1)
    first, _ = system.attempts(message)
    assert (first.outcome, first.error_type, first.error) == ("failed", "Retry", "later")


@pytest.mark.parametrize("kind", ["infinity", "huge"])
def test_a_time_that_is_farther_away_than_any_is_the_farthest_there_is(system, kind):
    message = system.jobs.retry_after.send(kind)

    job = system.until(message, lambda job: job.state is State.RETRYING)

    assert 99 < (job.run_at - job.created_at).days / 365 < 101
    assert system.attempts(message)[0].error == "later"
    assert switchyard.cancel(message)


@pytest.mark.parametrize("name", ["unprintable", "retry_when_raises"])
def test_a_failure_that_cannot_be_told_does_not_vanish_either(system, name):
    job = system.ended(getattr(system.jobs, name).send())

    assert job.state is State.DEAD
    assert job.error_type in ("Unprintable", "ValueError")
    assert system.attempts_of(job)[-1].outcome == "failed"


def test_snoozing_spends_no_failure(system):
    message = system.jobs.snoozes.send()

    job = system.ended(message)

    assert (job.state, job.result, job.failures) == (State.COMPLETED, 3, 0)
    assert outcomes(system, message) == ["snoozed", "snoozed", "completed"]


def test_a_job_that_enqueues_itself_is_snoozed(system):
    message = system.jobs.enqueues_itself.send()

    job = system.ended(message)

    assert (job.result, job.failures) == ("attempt 2", 0)
    assert outcomes(system, message) == ["snoozed", "completed"]


def test_a_body_past_its_time_limit_is_interrupted(system):
    job = system.ended(system.jobs.too_slow.send())

    assert (job.state, job.dead_reason, job.error_type) == (State.DEAD, "time_limit", "TimeLimitExceeded")
    assert (job.finished_at - job.started_at).total_seconds() < 9


def test_an_async_body_past_its_time_limit_is_interrupted(system):
    job = system.ended(system.jobs.async_too_slow.send())

    assert (job.state, job.dead_reason) == (State.DEAD, "time_limit")


def test_a_body_that_ends_in_time_is_never_hit(system):
    messages = [system.jobs.too_slow.send_with_options(kwargs={"seconds": 0.02}, time_limit=5_000) for _ in range(30)]

    assert {system.ended(message).state for message in messages} == {State.COMPLETED}


def test_a_job_too_old_for_its_turn_is_dead_and_never_runs(system):
    message = system.jobs.ages.send_with_options(delay=200)

    job = system.ended(message)

    assert (job.state, job.dead_reason, job.failures) == (State.DEAD, "expired", 0)
    assert "max_age" in job.error
    assert system.ended(system.jobs.ages.send_with_options(max_age=60_000)).result == "young"


def test_a_dead_job_is_replayed_with_its_id_and_its_history(system):
    message = system.jobs.fails_once.send()
    system.ended(message)

    assert switchyard.replay(message.message_id)

    job = system.until(message, lambda job: job.generation == 2 and job.state is State.DEAD)
    assert (job.attempt, job.failures) == (1, 1)
    assert [(a.generation, a.attempt, a.outcome) for a in system.attempts(message)] == [(1, 1, "failed"), (2, 1, "failed")]


def test_what_has_completed_or_runs_is_not_replayed(system):
    done = system.jobs.add.send(1, 1)
    system.ended(done)
    running = system.jobs.wait_at_gate.send(f"replay {done.message_id}")
    system.until(running, lambda job: job.state is State.RUNNING)

    assert [switchyard.replay(m.message_id) for m in (done, running)] == [False, False]

    jobs.gate(f"replay {done.message_id}").set()
    assert running.get_result(block=True) == "through"


def test_a_waiting_job_is_cancelled_and_never_runs_until_it_is_replayed(system):
    key = f"cancel {system.settings.broker}"
    later = system.jobs.count.send_with_options(args=(key,), delay=300)
    pending = system.jobs.parked.send()

    assert switchyard.cancel(later.message_id)
    assert switchyard.cancel(pending.message_id)
    assert not switchyard.cancel(later.message_id)

    assert [system.job(m).state for m in (later, pending)] == [State.CANCELLED] * 2
    after = system.jobs.count.send_with_options(args=(key, "after"), delay=400)
    system.ended(after)
    assert jobs.seen[key] == ["after"]
    assert switchyard.replay(later.message_id)
    assert system.ended(later).state is State.COMPLETED
    assert jobs.runs[key] == 2


def test_unknown_ids_are_told(system):
    unknown = system.jobs.add.message(1, 2).message_id

    assert switchyard.get_job(unknown) is None
    for command in (switchyard.cancel, switchyard.replay, switchyard.attempts, switchyard.logs, switchyard.wait):
        with pytest.raises(JobNotFound):
            command(unknown)


def test_callbacks_follow_from_the_end_and_are_jobs_of_their_own(system):
    good, bad = system.jobs.with_callbacks.send(False), system.jobs.with_callbacks.send(True)

    system.ended(good)
    system.ended(bad)

    wait_until(lambda: jobs.runs[f"exhausted {bad.message_id}"], message="the callbacks run")
    wait_until(lambda: jobs.runs[f"failure {bad.message_id}"] == 2, message="one for each failure")
    wait_until(lambda: jobs.runs[f"success {good.message_id}"], message="the callback of the success")
    assert jobs.seen[f"success {good.message_id}"] == [7]
    assert jobs.seen[f"failure {bad.message_id}"][0] == {"type": "ValueError", "message": "told to"}
    assert jobs.seen[f"exhausted {bad.message_id}"] == [{"retries": 1, "max_retries": 1}]
    (follower,) = switchyard.list_jobs(parent_id=good.message_id).jobs
    assert follower.actor == "on_success"


def test_the_same_message_sent_twice_is_one_job(system):
    message = system.jobs.parked.send("once")
    before = system.count()

    system.broker.enqueue(message)
    switchyard.enqueue_many([message, message])

    assert system.count() == before
    assert switchyard.cancel(message.message_id)


def test_an_id_that_is_taken_is_told_and_nothing_is_stored(system):
    done, waiting = system.jobs.add.send(1, 2), system.jobs.parked.send("one")
    system.ended(done)
    before = system.count()

    with pytest.raises(JobExists, match="completed"):
        system.broker.enqueue(done)
    with pytest.raises(JobExists, match="other arguments"):
        system.broker.enqueue(waiting.copy(args=("two",)))
    with pytest.raises(JobExists):
        switchyard.enqueue_many([system.jobs.add.message(1, 1), waiting.copy(args=("two",))])

    assert system.count() == before
    assert switchyard.cancel(waiting.message_id)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_retries", -1), ("max_retries", "3"), ("min_backoff", "soon"), ("max_backoff", -5), ("time_limit", "1s"),
        ("time_limit", 0), ("max_age", []), ("priority", 1.5), ("tags", "blue"), ("tags", [""]),
        ("on_worker_lost", "maybe"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_work_is_refused_at_the_send(system, option, value):
    before = system.count()

    with pytest.raises(OptionError, match=rf"(?s)'add'.*'{option}'"):
        system.jobs.add.send_with_options(args=(1, 2), **{option: value})

    assert system.count() == before
