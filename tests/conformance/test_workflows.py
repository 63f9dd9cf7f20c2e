"""Pipelines and groups of ours: written whole, moved on by the commits of their jobs, ended once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.results import ResultFailure

import switchyard
from errors import BatchClosed, BatchNotFound, JobExists, PayloadError
from ledger.states import TERMINAL, State
from settings import Settings
from switchyard import group, pipeline
from tests.conformance import flow_jobs
from tests.conformance.jobs import gate, runs
from tests.conformance.system import System
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers


@pytest.fixture(scope="module")
def flows(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system; look at jobs of your own only."""
    system = System(make_settings(), declare=flow_jobs.declare)
    system.start(queues={queue for queue in system.broker.queues if queue != "parked"})
    yield system
    system.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def states(flows: System, workflow: Any) -> list[str]:
    """The states of a pipeline's steps."""
    return [flows.job(message).state.value for message in workflow.messages]


def over(batch: Any, state: str = "succeeded") -> switchyard.Batch:
    """The batch, once it is in a state."""
    wait_until(lambda: switchyard.batch(batch.id).state == state, 20, lambda: f"it is {state}: {switchyard.batch(batch.id)}")
    return switchyard.batch(batch.id)


def test_a_pipeline_is_written_whole_and_hands_each_result_on(flows):
    jobs = flows.jobs

    pipe = pipeline([jobs.add.message(1, 2), jobs.add.message(10), jobs.add.message(100)]).run()

    assert all(switchyard.get_job(message.message_id) for message in pipe.messages)
    assert pipe.get_result(block=True) == 113
    assert list(pipe.get_results(block=True)) == [3, 13, 113]
    assert (pipe.completed, pipe.completed_count) == (True, 3)
    first, second, third = map(flows.job, pipe.messages)
    assert (second.args, third.args, second.parent_id, third.parent_id) == ((10, 3), (100, 13), first.id, second.id)
    assert [job.id for job in switchyard.children(first.id)] == [second.id]


def test_numbers_and_the_order_of_keys_are_handed_on_as_they_were(flows):
    value = {"z": 2**70, "a": 1.10, "m": ["ü𝄞", None, {"b": 1, "a": 2}]}

    pipe = (pipeline([flows.jobs.collect.message(value)]) | flows.jobs.collect.message("own")).run()

    assert pipe.get_result(block=True) == ["own", [value]]
    text = flows.rows("SELECT payload::text FROM switchyard.job WHERE message_id = %s", pipe.messages[1].message_id)
    assert text == [('{"args":["own",[{"z":1180591620717411303424,"a":1.1,"m":["ü𝄞",null,{"b":1,"a":2}]}]],"kwargs":{}}',)]


def test_a_result_that_its_job_does_not_keep_is_handed_on(flows):
    pipe = pipeline([flows.jobs.secretive.message({"n": 1}), flows.jobs.collect.message()]).run()

    assert pipe.get_result(block=True) == [{"n": 1}]
    assert flows.job(pipe.messages[0]).result is None


def test_a_result_that_cannot_be_handed_on_is_a_dead_step(flows):
    pipe = pipeline([flows.jobs.unstorable.message(), flows.jobs.collect.message()]).run()

    first = flows.ended(pipe.messages[0])

    assert (first.state, first.dead_reason) == (State.DEAD, "result_unstorable")
    assert flows.job(pipe.messages[1]).wait_reason == "upstream"


def test_a_step_can_ignore_the_result_and_still_hand_on_its_own(flows):
    jobs = flows.jobs
    pipe = pipeline(
        [jobs.add.message(1, 2), jobs.collect.message_with_options(args=("b",), pipe_ignore=True), jobs.collect.message("c")]
    ).run()
    quiet = pipeline([jobs.keeps_to_itself.message(), jobs.collect.message("alone")]).run()

    assert pipe.get_result(block=True) == ["c", ["b"]]
    assert quiet.get_result(block=True) == ["alone"]


def test_a_steps_delay_and_max_age_count_from_the_end_of_the_step_before(flows):
    jobs = flows.jobs
    pipe = pipeline([jobs.add.message(1, 2), jobs.ages.message_with_options(delay=300)]).run(delay=100)

    assert pipe.get_result(block=True) == [3]
    first, second = map(flows.job, pipe.messages)
    assert (second.run_at - first.finished_at).total_seconds() > 0.25
    expires = flows.rows("SELECT expires_at - run_at FROM switchyard.job WHERE message_id = %s", second.id)[0][0]
    assert 59 < expires.total_seconds() < 60


def test_a_dead_step_leaves_the_rest_waiting_and_its_replay_goes_on(flows, key):
    jobs = flows.jobs
    pipe = pipeline([jobs.add.message(1, 2), jobs.needs.message(key), jobs.collect.message("end")]).run()
    flows.ended(pipe.messages[1])
    assert states(flows, pipe) == ["completed", "dead", "scheduled"]
    last = flows.job(pipe.messages[2])
    assert (last.wait_reason, last.upstream_id) == ("upstream", pipe.messages[1].message_id)

    gate(key).set()
    assert switchyard.replay(pipe.messages[1].message_id)

    assert pipe.get_result(block=True) == ["end", [3, "open"]]
    assert flows.job(pipe.messages[2]).upstream_id is None


def test_a_step_that_the_result_does_not_fit_is_dead_at_once_with_the_reason(flows):
    jobs = flows.jobs
    ours = pipeline([jobs.add.message(1, 2), jobs.takes_nothing.message()]).run()
    stock = (jobs.add.message(1, 2) | jobs.takes_nothing.message()).run()

    for pipe in (ours, stock):
        wait_until(lambda pipe=pipe: switchyard.get_job(pipe.messages[1].message_id) is not None, 10)
        step = flows.ended(pipe.messages[1])
        assert (step.state, step.dead_reason, step.attempt) == (State.DEAD, "permanent", 1)
        assert "too many positional arguments" in step.error
        assert flows.job(pipe.messages[0]).state is State.COMPLETED


def test_what_does_not_fit_from_the_start_is_refused_and_nothing_is_stored(flows):
    jobs = flows.jobs
    pipe = pipeline([jobs.add.message(1), jobs.add.message(2)])

    with pytest.raises(PayloadError):
        pipe.run()
    with pytest.raises(ValueError, match="at least one"):
        pipeline([])

    assert [switchyard.get_job(message.message_id) for message in pipe.messages] == [None, None]


def test_cancelling_a_step_that_waits_cancels_what_waits_for_it(flows):
    jobs = flows.jobs
    pipe = pipeline([jobs.parked.message(), jobs.collect.message(), jobs.collect.message()]).run()

    assert switchyard.cancel(pipe.messages[0].message_id)

    assert states(flows, pipe) == ["cancelled", "cancelled", "cancelled"]
    # Replayed, a step waits again for what it was not given.
    assert switchyard.replay(pipe.messages[2].message_id)
    assert (flows.job(pipe.messages[2]).state, flows.job(pipe.messages[2]).wait_reason) == (State.SCHEDULED, "upstream")
    assert switchyard.cancel(pipe.messages[2].message_id)


def test_a_workflow_is_cancelled_as_a_whole(flows, key):
    jobs = flows.jobs
    inner = group([jobs.parked.message(), jobs.parked.message() | jobs.collect.message()])
    pipe = pipeline([jobs.waits.message(key), group([jobs.collect.message(), inner]), jobs.collect.message()]).run()
    other = group([jobs.parked.message()]).run()
    wait_until(lambda: flows.job(pipe.messages[0]).state is State.RUNNING, 10)

    pipe.cancel()
    other.cancel()

    gate(key).set()
    assert flows.ended(pipe.messages[0]).state in (State.CANCELLED, State.COMPLETED)
    assert flows.job(pipe.messages[2]).state is State.CANCELLED
    for batch in (pipe.messages[1], inner):
        assert {job.state for job in switchyard.list_jobs(batch=batch.id).jobs} == {State.CANCELLED}
    over(other, "failed")


def test_a_step_cancelled_while_it_waited_has_its_result_when_it_is_replayed(flows, key):
    jobs = flows.jobs
    pipe = pipeline([jobs.waits.message(key), jobs.collect.message("late")]).run()
    assert switchyard.cancel(pipe.messages[1].message_id)
    gate(key).set()
    flows.ended(pipe.messages[0])
    assert flows.job(pipe.messages[1]).state is State.CANCELLED

    assert switchyard.replay(pipe.messages[1].message_id)

    assert pipe.get_result(block=True) == ["late", key]


def test_a_job_that_completes_itself_moves_its_pipeline_on(flows):
    pipe = pipeline([flows.jobs.completes_itself.message(1), flows.jobs.collect.message()]).run()

    assert pipe.get_result(block=True) == [2]


def test_a_workflow_of_which_one_job_cannot_be_written_is_not_written_at_all(flows, key):
    jobs = flows.jobs
    taken = jobs.parked.send(key)
    last = jobs.parked.message("other").copy(message_id=taken.message_id)
    pipe = pipeline([jobs.add.message(1, 2), group([jobs.add.message(1), jobs.add.message(2)]), last])
    batch = group([jobs.add.message(1, 2), last])

    for workflow in (pipe, batch):
        with pytest.raises(JobExists):
            workflow.run()

    first, children, _ = pipe.messages
    unwritten = [first, *children.children, batch.children[0]]
    assert [switchyard.get_job(message.message_id) for message in unwritten] == [None] * 4
    for made in (children, batch):
        with pytest.raises(BatchNotFound):
            switchyard.batch(made.id)
    assert switchyard.cancel(taken)


def test_a_workflow_belongs_to_the_callers_transaction(flows):
    jobs = flows.jobs
    inside = pipeline([jobs.add.message(1, 2), group([jobs.add.message(1), jobs.add.message(2)]), jobs.collect.message()])
    undone = group([jobs.add.message(1, 2)])

    with flows.database.connection() as connection:
        with connection.transaction(), switchyard.enlist(connection):
            inside.run()
        with connection.transaction(force_rollback=True), switchyard.enlist(connection):
            undone.run()

    assert inside.get_result(block=True) == [[4, 5]]
    with pytest.raises(BatchNotFound):
        switchyard.batch(undone.id)


def test_a_group_counts_its_jobs_and_calls_back_once(flows, key):
    jobs = flows.jobs
    children = group(
        [jobs.add.message(n, n) for n in range(20)],
        name="twenty",
        on_complete=[jobs.notes.message(key + " complete"), jobs.notes.message(key + " complete too")],
        on_success=jobs.notes.message(key + " success"),
        on_death=jobs.notes.message(key + " death"),
    ).run()

    assert list(children.get_results(block=True)) == [2 * n for n in range(20)]
    batch = over(children)

    assert (batch.name, batch.total, batch.ended, batch.percent, batch.counts[State.COMPLETED]) == ("twenty", 20, 20, 100.0, 20)
    assert {(c.when, c.sent) for c in batch.callbacks} == {("on_complete", True), ("on_success", True), ("on_death", False)}
    for callback in batch.callbacks:
        if callback.sent:
            assert switchyard.wait(callback.id).state is State.COMPLETED
    assert (runs[key + " complete"], runs[key + " complete too"], runs[key + " success"], runs[key + " death"]) == (1, 1, 1, 0)
    assert {job.batch_id for job in switchyard.list_jobs(batch=children.id).jobs} == {children.id}
    assert len(switchyard.list_jobs(batch=children.id, state="completed").jobs) == 20


def test_a_group_with_a_dead_child_completes_and_succeeds_after_its_replay(flows, key):
    jobs = flows.jobs
    bad = jobs.needs.message(key)
    children = group(
        [jobs.add.message(1, 1), bad, jobs.dies.message()],
        on_complete=jobs.notes.message(key + " complete"),
        on_success=jobs.notes.message(key + " success"),
        on_death=jobs.notes.message(key + " death"),
    ).run()
    batch = over(children, "failed")
    for callback in batch.callbacks:
        if callback.sent:
            switchyard.wait(callback.id)
    assert (batch.counts[State.DEAD], runs[key + " death"], runs[key + " complete"], runs[key + " success"]) == (2, 1, 1, 0)

    gate(key).set()
    dead = [job for job in switchyard.list_jobs(batch=children.id, state="dead").jobs if job.id != bad.message_id]
    assert switchyard.replay(bad.message_id)
    assert flows.ended(bad).state is State.COMPLETED

    assert switchyard.batch(children.id).state == "failed"
    assert [job.actor for job in dead] == ["dies"]


def test_success_comes_once_after_the_replay_of_all_that_died(flows, key):
    jobs = flows.jobs
    bad = [jobs.needs.message(key) for _ in range(3)]
    children = group(
        [*bad, jobs.add.message(1, 1)], on_success=jobs.notes.message(key), on_complete=jobs.notes.message(key + "c")
    ).run()
    over(children, "failed")

    gate(key).set()
    assert all(switchyard.replay(message.message_id) for message in bad)

    for callback in over(children).callbacks:
        assert switchyard.wait(callback.id).state is State.COMPLETED
    assert (runs[key], runs[key + "c"]) == (1, 1)


def test_a_cancelled_child_completes_its_group_without_success_or_death(flows, key):
    jobs = flows.jobs
    parked = jobs.parked.message()
    children = group(
        [jobs.add.message(1, 1), parked],
        on_complete=jobs.notes.message(key + " complete"),
        on_success=jobs.notes.message(key + " success"),
        on_death=jobs.notes.message(key + " death"),
    ).run()
    assert switchyard.batch(children.id).state == "open"

    assert switchyard.cancel(parked.message_id)

    batch = over(children, "failed")
    assert {c.when for c in batch.callbacks if c.sent} == {"on_complete"}
    wait_until(lambda: runs[key + " complete"] == 1, 10)


def test_an_empty_group_is_over_at_once_and_so_is_what_holds_nothing_else(flows, key):
    jobs = flows.jobs
    empty = group([], on_complete=jobs.notes.message(key), on_success=jobs.notes.message(key + "s")).run()
    nested = group([group([]), group([group([])])], on_success=jobs.notes.message(key + "n")).run()
    piped = pipeline([jobs.add.message(1, 2), group([]), jobs.collect.message("end")]).run()

    assert (switchyard.batch(empty.id).state, switchyard.batch(nested.id).state) == ("succeeded", "succeeded")
    wait_until(lambda: (runs[key], runs[key + "s"], runs[key + "n"]) == (1, 1, 1), 10)
    assert piped.get_result(block=True) == ["end", []]


def test_groups_in_pipelines_hand_on_the_list_of_their_results(flows):
    jobs = flows.jobs
    pipe = pipeline(
        [
            jobs.add.message(1, 2),
            group(
                [
                    jobs.add.message(10),
                    jobs.add.message(20) | jobs.add.message(100),
                    group([jobs.add.message(5)]),
                    jobs.add.message(1),
                ]
            ),
            jobs.collect.message("sum"),
        ]
    ).run()

    assert pipe.get_result(block=True) == ["sum", [13, 123, [8], 4]]
    assert list(pipe.get_results(block=True)) == [3, [13, 123, [8], 4], ["sum", [13, 123, [8], 4]]]
    assert (pipe.completed, pipe.completed_count) == (True, 3)


def test_a_pipeline_may_end_in_a_group_and_a_group_hold_pipelines_and_groups(flows, key):
    jobs = flows.jobs
    inner = group([jobs.add.message(1, 1), jobs.add.message(2, 2)], on_success=jobs.notes.message(key + "i"))
    outer = group(
        [inner, pipeline([jobs.add.message(3, 3), group([jobs.add.message(1)])])], on_success=jobs.notes.message(key)
    ).run()
    ending = pipeline([jobs.add.message(1, 1), group([jobs.add.message(1), jobs.add.message(2)])]).run()

    assert [list(part) for part in outer.get_results(block=True)] == [[2, 4], [7]]
    assert ending.get_result(block=True) == [3, 4]
    batch = over(outer)
    assert (batch.total, batch.percent, [inside.total for inside in batch.batches]) == (1, 100.0, [2, 1])
    wait_until(lambda: (runs[key], runs[key + "i"]) == (1, 1), 10)


def test_a_dead_step_in_a_group_completes_the_group_though_later_steps_wait(flows, key):
    jobs = flows.jobs
    chain = pipeline([jobs.needs.message(key), jobs.collect.message()])
    outer = group(
        [chain, jobs.add.message(1, 1)], on_complete=jobs.notes.message(key), on_success=jobs.notes.message(key + "s")
    ).run()
    batch = over(outer, "failed")
    assert (batch.counts[State.DEAD], batch.counts[State.SCHEDULED]) == (1, 1)

    gate(key).set()
    assert switchyard.replay(chain.messages[0].message_id)

    over(outer)
    wait_until(lambda: (runs[key], runs[key + "s"]) == (1, 1), 10)


def test_limits_hold_for_steps_and_children(flows, key):
    jobs = flows.jobs
    children = group([jobs.one_at_a_time.message(n) for n in range(20)], on_success=jobs.notes.message(key))
    pipe = pipeline([jobs.one_at_a_time.message(100), jobs.one_at_a_time.message(), children, jobs.collect.message()])
    pipe.messages[1] = jobs.one_at_a_time.message_with_options(args=(101,), pipe_ignore=True)
    for child in children.children:
        child.options["pipe_ignore"] = True

    pipe.run()

    assert pipe.get_result(block=True, timeout=30_000) == [list(range(20))]
    assert flows.job(pipe.messages[1]).attempt == 1
    wait_until(lambda: runs[key] == 1, 10)


def test_jobs_of_a_batch_add_to_it_until_it_is_complete(flows, key):
    tree = group([flows.jobs.splits.message(4)], on_complete=flows.jobs.notes.message(key)).run()

    batch = over(tree)

    assert (batch.total, batch.counts[State.COMPLETED]) == (31, 31)
    with pytest.raises(BatchClosed):
        switchyard.add_to_batch(tree.id, [flows.jobs.splits.message(0)])
    with pytest.raises(BatchNotFound):
        switchyard.add_to_batch(str(uuid.uuid4()), [flows.jobs.splits.message(0)])
    wait_until(lambda: runs[key] == 1, 10)


def test_a_thousand_children_call_back_once(flows, key):
    children = group([flows.jobs.add.message(n, 1) for n in range(1_000)], on_complete=flows.jobs.notes.message(key)).run()

    assert over(children).counts[State.COMPLETED] == 1_000
    wait_until(lambda: runs[key] == 1, 10)
    assert flows.rows("SELECT count(*) FROM switchyard.job WHERE payload::text LIKE %s", f"%{key}%") == [(1,)]


def test_stock_groups_call_back_when_all_have_ended(flows, key):
    jobs = flows.jobs
    stock = dramatiq.group([jobs.add.message(1, 1), jobs.dies.message(), jobs.add.message(1, 2) | jobs.add.message(3)])
    stock.add_completion_callback(jobs.notes.message(key))

    stock.run()

    wait_until(lambda: runs[key] == 1, 20)
    assert flows.job(stock.children[0]).state in TERMINAL
    batch = switchyard.batch(flows.job(stock.children[0]).batch_id)
    assert (batch.total, batch.state) == (3, "failed")


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_a_worker_killed_in_a_step_and_one_killed_after_it_leave_each_step_done_once(make_settings, tmp_path, key):
    settings = make_settings()
    system = System(settings, flow_jobs.declare)
    (tmp_path / "separate_jobs.py").write_text(
        "import switchyard\nfrom tests.conformance.flow_jobs import declare\ndeclare(switchyard.configure())\n"
    )
    workers = Workers(settings, tmp_path)
    jobs = system.jobs
    last = group([jobs.collect.message(n) for n in range(3)], on_complete=jobs.parked.message(key))
    pipe = pipeline(
        [jobs.add.message(1, 2), jobs.kills.message(str(tmp_path / "killed")), last, jobs.collect.message("end")]
    ).run()
    try:
        first = workers("separate_jobs", threads=2, queues=("default",), path=tmp_path)
        wait_until((tmp_path / "killed").exists, 30)
        first.kill()
        workers("separate_jobs", threads=2, queues=("default",), path=tmp_path)

        assert pipe.get_result(block=True, timeout=40_000) == ["end", [[n, [3, 2]] for n in range(3)]]
        assert over(last).counts[State.COMPLETED] == 3
        # add, kills, three in the group, the end, and the callback once.
        assert system.count() == 7
        killed = [attempt.outcome for attempt in system.attempts(pipe.messages[1])]
        assert killed == ["lost", "completed"]
    finally:
        workers.close()
        system.close()


def test_a_steps_result_is_remembered_by_later_attempts(flows, key):
    message = flows.jobs.remembers.send(key)

    assert message.get_result(block=True, timeout=20_000) == [{"done": [1, 2]}, 7]
    assert (runs[key + " first"], flows.job(message).attempt) == (1, 2)


def test_a_steps_result_is_remembered_by_a_replay(flows, key):
    message = flows.jobs.remembers_and_dies.send(key)
    assert flows.ended(message).state is State.DEAD

    gate(key).set()
    assert switchyard.replay(message.message_id)

    assert message.get_result(block=True) == "kept"
    assert runs[key] == 1


def test_an_async_actor_remembers_too(flows, key):
    message = flows.jobs.remembers_async.send(key)

    assert message.get_result(block=True, timeout=20_000) == 5
    assert runs[key] == 1


def test_a_failed_group_raises_the_childs_failure(flows):
    children = group([flows.jobs.dies.message()]).run()

    with pytest.raises(ResultFailure):
        children.wait(timeout=10_000)
