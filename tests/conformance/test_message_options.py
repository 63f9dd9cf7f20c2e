"""An option that nobody knows makes a send fail before anything is stored; what is stored already runs whatever options it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, Message, Middleware

import switchyard
from errors import OptionError
from ledger import write
from ledger.states import State
from middleware.current_job import current_job
from settings import Settings
from tests.conformance.system import System
from tests.rig.waiting import wait_until

#: What an older version, or a program with other middleware, may have sent.
OLD = {"old_word": 1}


class Traces(Middleware):
    """Declares nothing, and puts its own on every message."""

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        message.options["trace_ctx"] = {"id": 1}


def declare(broker: Broker) -> SimpleNamespace:
    """Actors that look at their messages."""

    @dramatiq.actor(broker=broker, max_retries=3, min_backoff=10, max_backoff=10)
    def work(value: Any = None, more: Any = None) -> Any:
        return [value, more]

    @dramatiq.actor(broker=broker, max_retries=3, min_backoff=10, max_backoff=10)
    def fails_once() -> int:
        if current_job().attempt == 1:
            raise ValueError("once")
        return current_job().attempt

    @dramatiq.actor(broker=broker, max_retries=0)
    def again() -> int:
        job = current_job()
        if job.attempt == 1:
            message: Message[Any] = again.message_with_options(**OLD).copy(message_id=job.id)
            broker.enqueue(message, delay=50)
        return job.attempt

    return SimpleNamespace(work=work, fails_once=fails_once, again=again)


@pytest.fixture(scope="module")
def running(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system."""
    system = System(make_settings(sweep=0.2), declare).start(threads=4)
    yield system
    system.close()


@pytest.fixture
def sender(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A system of the test's own that is not started: whatever is sent stays."""
    system = System(make_settings(), declare)
    yield system
    system.close()


def stored(system: System) -> list[int]:
    """How many jobs, batches and keys there are."""
    (counts,) = system.rows(
        "SELECT (SELECT count(*) FROM switchyard.job), (SELECT count(*) FROM switchyard.batch),"
        " (SELECT count(*) FROM switchyard.idempotency)"
    )
    return list(counts)


def test_no_way_to_send_takes_an_option_that_nobody_knows(sender):
    work, broker = sender.jobs.work, sender.broker
    right = work.message_with_options(args=(1,), idempotency_key="right")
    wrong = work.message_with_options(args=(1,), idempotncy_key="wrong")

    def enlisted() -> None:
        with sender.database.connection() as connection, connection.transaction(), switchyard.enlist(connection):
            work.send(0)
            broker.enqueue(wrong)

    for send in (
        lambda: work.send_with_options(args=(1,), idempotncy_key="wrong"),
        lambda: work.send_with_options(args=(1,), delay=1_000, idempotncy_key="wrong"),
        lambda: broker.enqueue(wrong),
        lambda: broker.enqueue_many([right, wrong]),
        lambda: switchyard.enqueue_many([right, wrong], delay=1_000),
        enlisted,
        lambda: switchyard.group([right, wrong]).run(),
        lambda: switchyard.group([right], on_complete=wrong).run(),
        lambda: switchyard.group([right], on_success=wrong).run(),
        lambda: switchyard.group([right], on_death=[wrong]).run(),
        lambda: switchyard.pipeline([right, wrong]).run(),
        lambda: switchyard.pipeline([right, switchyard.group([wrong]), right]).run(),
        lambda: dramatiq.pipeline([right, right, wrong]).run(),
        lambda: switchyard.create_schedule("hourly", work, "@hourly", options={"idempotncy_key": "wrong"}),
    ):
        with pytest.raises(OptionError) as caught:
            send()
        assert (caught.value.actor, caught.value.option) == ("work", "idempotncy_key")
        assert str(caught.value) == (
            "actor 'work', option 'idempotncy_key': nobody knows it; did you mean 'idempotency_key'? Nothing was stored"
        )
        assert stored(sender) == [0, 0, 0]
    assert switchyard.schedules() == []


def test_a_schedule_is_not_changed_to_one(sender):
    before = switchyard.create_schedule("hourly", sender.jobs.work, "@hourly", options={"tags": ["x"]})

    with pytest.raises(OptionError, match="did you mean 'priority'"):
        switchyard.update_schedule("hourly", options={"priorty": 1})

    assert switchyard.get_schedule("hourly").options == before.options == {"tags": ["x"]}


def test_a_batch_takes_no_job_with_one(sender):
    group = switchyard.group([sender.jobs.work.message(1)]).run()

    with pytest.raises(OptionError):
        switchyard.add_to_batch(group.id, [sender.jobs.work.message_with_options(args=(1,), priorty=1)])

    assert (switchyard.batch(group.id).total, stored(sender)) == (1, [1, 1, 0])


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_what_a_middleware_adds_is_no_fault_of_the_senders_and_may_be_sent_again(sender, many):
    sender.broker.add_middleware(Traces())
    work = sender.jobs.work

    (first,) = switchyard.enqueue_many([work.message(1)]) if many else [work.send(1)]
    work.send_with_options(args=(4,), **first.options)
    switchyard.enqueue_many([first.copy(message_id=dramatiq.message.generate_unique_id())])

    assert {row[0]["trace_ctx"]["id"] for row in sender.rows("SELECT options FROM switchyard.job")} == {1}
    assert stored(sender)[0] == 3
    with pytest.raises(OptionError):
        work.send_with_options(args=(5,), trace_cxt=1)


def older(system: System, message: Message[Any]) -> Message[Any]:
    """Store a message as a sender without this check does."""
    job = system.broker.new_job(message)._replace(grace=None if system.settings.broker == "postgres" else 0.0)
    system.database.run(lambda connection: write.enqueue(connection, job))
    return message


def test_what_is_stored_with_one_runs_is_retried_and_snoozes(running):
    jobs = running.jobs
    plain = older(running, jobs.work.message_with_options(args=(1,), **OLD))
    retried = older(running, jobs.fails_once.message_with_options(**OLD))
    snoozed = older(running, jobs.again.message_with_options(**OLD))

    assert [running.ended(message).result for message in (plain, retried, snoozed)] == [[1, None], 2, 2]
    assert running.rows("SELECT options FROM switchyard.job WHERE message_id = %s", plain.message_id) == [(OLD,)]


def test_the_next_step_of_a_stored_pipeline_runs_with_one(running):
    step = running.jobs.work.message_with_options(args=(2,), **OLD)
    first = older(running, running.jobs.work.message_with_options(args=(1,), pipe_target=step.asdict()))

    assert running.ended(first).state is State.COMPLETED
    wait_until(lambda: switchyard.get_job(step.message_id) is not None, 20, "the next step is there")
    assert running.ended(step).result == [2, [1, None]]


def test_a_job_that_was_stored_with_one_is_edited_and_replayed(running):
    message = running.jobs.work.message_with_options(args=(1,), **OLD)
    job = running.broker.new_job(message, 3_600.0)
    running.database.run(lambda connection: write.enqueue(connection, job))

    assert switchyard.edit(message, args=[2], priority=-1)
    assert switchyard.cancel(message)
    assert switchyard.replay(message.message_id)

    assert running.ended(message).result == [2, None]


def test_a_schedule_that_was_stored_with_one_goes_on(running):
    switchyard.create_schedule("old", running.jobs.work, "* * * * * *", args=(1,))
    running.rows("UPDATE switchyard.schedule SET options = '{\"old_word\": 1}' WHERE name = 'old' RETURNING name")

    def made() -> list[tuple[Any, ...]]:
        query = "SELECT id FROM switchyard.job WHERE schedule = 'old' AND state = 'completed' AND options::jsonb ? 'old_word'"
        return list(running.rows(query))

    wait_until(lambda: len(made()) >= 2, 30, "ticks have jobs")
    # Run by hand it is the same.
    assert running.ended(switchyard.run_schedule("old")).result == [1, None]
    switchyard.delete_schedule("old")
    with pytest.raises(OptionError):
        running.jobs.work.send_with_options(args=(1,), **OLD)
