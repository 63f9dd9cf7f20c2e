"""Results: what an actor returned, or why it did not, by Dramatiq's own calls."""

from __future__ import annotations

from datetime import UTC, datetime

import dramatiq
import pytest
from dramatiq.results import ResultMissing, ResultTimeout

import switchyard
from ledger import charts
from ledger.charts import percentile
from ledger.states import State
from tests.conformance.system import failure_of


def test_a_result_comes_back(system):
    message = system.jobs.add.send(1, 2)

    assert isinstance(message, dramatiq.Message)
    assert message.get_result(block=True) == 3
    assert system.job(message).result == 3
    assert switchyard.wait(message.message_id).state is State.COMPLETED


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1, 2.5, None, "ü𝄞"]}, 2**70, True])
def test_any_json_comes_back_as_it_was_sent(system, value):
    message = system.jobs.echo.send(value)

    assert message.get_result(block=True) == value
    assert system.job(message).args == (value,)


def test_a_result_is_dropped_when_the_actor_says_so(system):
    message = system.jobs.quiet.send()

    assert message.get_result(block=True) is None
    assert system.job(message).result is None


def test_a_failure_is_a_result_failure_with_the_error(system):
    error = failure_of(system.jobs.fails_once.send())

    assert error.orig_exc_type == "ValueError"
    assert error.orig_exc_msg == "once"


def test_a_cancelled_job_is_a_result_failure(system):
    message = system.jobs.add.send_with_options(args=(1, 2), delay=3_600_000)
    assert switchyard.cancel(message.message_id)

    assert failure_of(message).orig_exc_type == "cancelled"


def test_a_result_that_is_not_there_is_missing_or_times_out(system):
    message = system.jobs.add.send_with_options(args=(1, 2), delay=3_600_000)

    with pytest.raises(ResultMissing):
        message.get_result()
    with pytest.raises(ResultTimeout):
        message.get_result(block=True, timeout=50)
    with pytest.raises(TimeoutError):
        switchyard.wait(message.message_id, timeout=0.05)
    with pytest.raises(ResultMissing):
        system.jobs.add.message(1, 2).get_result()


def test_the_text_of_a_time_out_says_where_the_job_is_and_keeps_its_arguments_to_itself(system):
    waiting = system.jobs.echo.send_with_options(args=("canary",), delay=3_600_000)
    unknown = system.jobs.echo.message("canary")

    with pytest.raises(ResultTimeout) as waited:
        waiting.get_result(block=True, timeout=50)
    with pytest.raises(ResultTimeout) as searched:
        unknown.get_result(block=True, timeout=50)

    assert str(waited.value) == f"job {waiting.message_id} of actor 'echo' is still scheduled"
    assert str(searched.value) == f"no job has the id {unknown.message_id}"
    assert switchyard.cancel(waiting.message_id)


@pytest.mark.parametrize(("name", "reason"), [("unstorable", "is not JSON"), ("huge", "MAX_RESULT_BYTES")])
def test_a_result_that_cannot_be_stored_makes_the_job_dead(system, name, reason):
    job = system.ended(getattr(system.jobs, name).send())

    assert (job.state, job.dead_reason, job.attempt) == (State.DEAD, "result_unstorable", 1)
    assert reason in job.error


def test_a_pipeline_hands_each_result_to_the_next(system):
    pipe = (system.jobs.add.message(1, 2) | system.jobs.add.message(10) | system.jobs.add.message(100)).run()

    assert pipe.get_result(block=True) == 113
    assert list(pipe.get_results(block=True)) == [3, 13, 113]
    assert pipe.completed
    assert system.job(pipe.messages[1]).parent_id == pipe.messages[0].message_id


def test_a_pipeline_stops_where_a_step_dies(system):
    pipe = (system.jobs.fails_once.message() | system.jobs.echo.message()).run()

    assert system.ended(pipe.messages[0]).state is State.DEAD
    assert switchyard.get_job(pipe.messages[1].message_id) is None


def test_a_step_can_ignore_the_result_before_it_and_wait_for_its_delay(system):
    pipe = system.jobs.add.message(1, 2) | system.jobs.echo.message_with_options(args=("own",), pipe_ignore=True, delay=200)
    pipe.run()

    assert pipe.get_result(block=True) == "own"
    first, second = map(system.job, pipe.messages)
    assert (second.run_at - first.finished_at).total_seconds() > 0.15


def test_two_pipelines_that_share_their_last_step_do_not_harm_the_worker(system):
    last = system.jobs.echo.message()
    one = (system.jobs.add.message(1, 1) | last).run()
    two = (system.jobs.add.message(2, 2) | last).run()

    assert system.ended(one.messages[0]).state is State.COMPLETED
    assert system.ended(two.messages[0]).state is State.COMPLETED
    assert system.ended(one.messages[1]).result in (2, 4)
    assert system.jobs.add.send(3, 3).get_result(block=True) == 6


def test_a_group_runs_all_its_children(system):
    group = dramatiq.group([system.jobs.add.message(n, n) for n in range(20)]).run()

    assert list(group.get_results(block=True)) == [n + n for n in range(20)]
    assert group.completed


def test_a_group_of_pipelines(system):
    group = dramatiq.group([system.jobs.add.message(n, 1) | system.jobs.add.message(10) for n in range(3)]).run()

    assert list(group.get_results(block=True)) == [11, 12, 13]


def test_async_actors_return_fail_and_know_their_job(system):
    added, who, failing = system.jobs.async_add.send(2, 3), system.jobs.async_who.send(), system.jobs.async_fails.send()

    assert added.get_result(block=True) == 5
    assert who.get_result(block=True) == {"id": who.message_id, "task": who.message_id}
    assert [line.line for line in switchyard.logs(who.message_id)] == ["from a nested task"]
    assert failing.get_result(block=True) == 2
    assert [(a.outcome, a.error_type) for a in system.attempts(failing)] == [("failed", "ValueError"), ("completed", None)]


def test_what_a_worker_did_is_there_for_charts(fresh):
    system = fresh().start()
    messages = [system.jobs.add.send(n, 1) for n in range(5)]
    for message in messages:
        system.ended(message)

    system.stop()

    since, until = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    rows = system.database.run(lambda c: charts.activity(c, since=since, until=until, actor="add"))
    assert sum(row.completed for row in rows) == 5
    assert percentile([row.waits for row in rows], 1.0) < 600
