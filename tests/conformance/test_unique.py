"""``unique_key``: an actor's jobs that count as the same are one, while active or for a period; debounced, throttled."""

from __future__ import annotations

import uuid
from datetime import timedelta

import psycopg
import pytest

import switchyard
from errors import EnlistRefused, JobExists, OptionError
from ledger.states import State
from tests.conformance import jobs, key_jobs
from tests.conformance.system import System
from tests.rig.waiting import wait_until


@pytest.fixture(scope="module")
def running(make_settings):
    system = System(make_settings(), key_jobs.declare)
    system.start(threads=4, queues=set(system.broker.queues) - key_jobs.RESTING)
    yield system
    system.close()


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


_accounts = iter(range(1_000_000))


def test_while_it_waits_the_second_send_is_the_first(running):
    account = next(_accounts)
    first = running.jobs.rebuild.send(account, "first")

    second = running.jobs.rebuild.send(account, reason="second")
    other = running.jobs.rebuild.send(next(_accounts))

    assert (second.message_id, second.args, second.options["replayed"]) == (first.message_id, (account, "first"), True)
    assert "replayed" not in other.options
    assert switchyard.cancel(first.message_id)
    # One that was cancelled holds nothing.
    assert "replayed" not in running.jobs.rebuild.send(account).options


def test_while_it_runs_too_and_not_once_it_has_completed(running, key):
    first = running.jobs.gated.send(key, 1)
    running.until(first, lambda job: job.state is State.RUNNING)

    assert running.jobs.gated.send(key, 2).message_id == first.message_id
    jobs.gate(key).set()
    running.ended(first)
    third = running.jobs.gated.send(key, 3)

    assert third.message_id != first.message_id
    assert third.get_result(block=True) == 3


def test_a_delayed_job_holds_its_key(running):
    account = next(_accounts)
    first = running.jobs.rebuild.send_with_options(args=(account,), delay=3_600_000)

    assert running.jobs.rebuild.send(account).message_id == first.message_id


def test_for_a_period_it_stays_the_first_whatever_became_of_it(running, key):
    first = running.jobs.hourly.send(key)
    running.ended(first)

    second = running.jobs.hourly.send(key)

    assert (second.message_id, second.options["replayed"]) == (first.message_id, True)
    assert switchyard.find_by_key("hourly", f'["{key}"]', kind="unique").job_id == first.message_id
    assert jobs.runs[key] == 1


def test_throttled_there_is_one_per_period_and_the_first(running, key):
    first = running.jobs.throttled.send(key, 1)
    running.ended(first)

    dropped = [running.jobs.throttled.send(key, n) for n in (2, 3)]

    assert {message.message_id for message in dropped} == {first.message_id}
    assert jobs.seen[key] == [1]
    running.rows("UPDATE switchyard.idempotency SET expires_at = clock_timestamp() WHERE scope = 'throttled' RETURNING 1")
    assert running.ended(running.jobs.throttled.send(key, 4)).state is State.DEAD
    assert jobs.seen[key] == [1, 4]


def test_debounced_the_latest_arguments_run_once(running, key):
    sent = [running.jobs.index.send_with_options(args=(key, n), delay=800) for n in range(5)]
    due = running.job(sent[-1]).run_at

    assert len({message.message_id for message in sent}) == 1
    assert sent[-1].args == (key, 4)
    running.ended(sent[0])
    assert jobs.seen[key] == [4]
    assert running.job(sent[0]).run_at >= due


def test_debounced_while_it_runs_a_new_job_waits(running, key):
    first = running.jobs.index.send(key, -1)
    wait_until(lambda: jobs.runs[key] == 1)

    second = running.jobs.index.send_with_options(args=(key, 2), delay=3_600_000)
    third = running.jobs.index.send(key, 3)

    assert second.message_id != first.message_id
    assert (third.message_id, third.args) == (second.message_id, (key, 3))
    jobs.gate(key).set()
    assert running.ended(first).state is State.COMPLETED
    assert switchyard.cancel(second.message_id)


def test_a_pending_job_whose_trigger_is_out_can_be_put_off(fresh, key):
    system = fresh()
    system.close()
    system = System(system.settings, key_jobs.declare)
    try:
        first = system.jobs.index.send(key, 1)
        system.jobs.index.send_with_options(args=(key, 2), delay=800)
        due = system.job(first).run_at
        system.start(threads=2)
        job = system.ended(first)

        assert jobs.seen[key] == [2]
        assert (job.started_at or job.finished_at) >= due
    finally:
        system.close()


def test_a_message_may_have_a_key_of_its_own_or_none(running):
    account = next(_accounts)
    first = running.jobs.rebuild.send(account)
    own = running.jobs.rebuild.send_with_options(args=(account,), unique_key=f"own {account}")
    same = running.jobs.rebuild.send_with_options(args=(next(_accounts),), unique_key=f"own {account}")
    none = running.jobs.rebuild.send_with_options(args=(account,), unique_key=None)
    plain = running.jobs.charge.send_with_options(args=("x",), unique_key=f"own {account}", unique_for=timedelta(minutes=1))
    again = running.jobs.charge.send_with_options(args=("y",), unique_key=f"own {account}", unique_for=60)

    assert len({message.message_id for message in (first, own, none, plain)}) == 4
    assert same.message_id == own.message_id
    assert (again.message_id, again.args) == (plain.message_id, ("x",))


def test_many_at_once_are_sorted_out(running):
    account = next(_accounts)
    sent = switchyard.enqueue_many([running.jobs.rebuild.message(account, str(n)) for n in range(3)])

    assert len({message.message_id for message in sent}) == 1
    assert [message.options.get("replayed") for message in sent] == [None, True, True]
    assert sent[2].args == (account, "0")


def test_a_key_belongs_to_the_callers_transaction(running):
    account = next(_accounts)
    with psycopg.connect(running.settings.database_url.get_secret_value()) as connection:
        with switchyard.enlist(connection):
            gone = running.jobs.rebuild.send(account)
            assert running.jobs.rebuild.send(account).message_id == gone.message_id
        connection.rollback()

    assert "replayed" not in running.jobs.rebuild.send(account).options


def test_a_debounced_send_cannot_be_part_of_a_transaction(running, key):
    with psycopg.connect(running.settings.database_url.get_secret_value()) as connection:
        with switchyard.enlist(connection), pytest.raises(EnlistRefused, match=r"debounced.*unique_mode='skip'"):
            running.jobs.index.send(key, 1)
        with switchyard.enlist(connection):
            message = running.jobs.index.send_with_options(args=(key, 1), unique_mode="skip", unique_max_wait=None)
        connection.commit()

    assert running.ended(message).state is State.COMPLETED


def test_a_function_that_cannot_tell_refuses_the_send(running):
    with pytest.raises(OptionError, match=r"actor 'gated', option 'unique_key': .*returned no printable"):
        running.jobs.gated.send("a\nb", 1)


# What a workflow is written from is Postgres' business alone.
@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_a_workflow_has_jobs_of_its_own_or_is_not_sent(running):
    account = next(_accounts)
    held = running.jobs.rebuild.send(account)
    before = running.count()
    parts = [running.jobs.rebuild.message(account), running.jobs.rebuild.message(next(_accounts))]

    with pytest.raises(JobExists, match=f"{held.message_id}.*a workflow needs jobs of its own"):
        switchyard.group(parts).run()
    with pytest.raises(JobExists):
        switchyard.pipeline(parts).run()
    assert running.count() == before

    # The first of the pipeline's steps has a key; the second has none, since it is yet to get a result.
    assert switchyard.cancel(held.message_id)
    fine = switchyard.pipeline([parts[0], running.jobs.rebuild.message(account)]).run()
    assert running.job(fine.messages[0]).state is State.PENDING
    assert running.job(fine.messages[1]).state is State.SCHEDULED
    assert switchyard.cancel(fine.messages[0].message_id)
