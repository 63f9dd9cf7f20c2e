"""A job that is replayed with other arguments counts as what it is now, as one that is edited."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

import switchyard
from errors import KeyInUse, OptionError
from ledger import write
from ledger.states import State
from settings import Settings
from tests.conformance.counting_jobs import HOUR, declare, row, waits_for
from tests.conformance.jobs import gate, runs
from tests.conformance.system import System


@pytest.fixture(scope="module")
def system(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system; keys are of each test's own."""
    system = System(make_settings(lease=30.0, sweep=0.2), declare).start(threads=6)
    yield system
    system.close()


@pytest.fixture
def a() -> Iterator[str]:
    name = uuid.uuid4().hex[:8]
    yield name
    gate(name).set()


@pytest.fixture
def b() -> Iterator[str]:
    name = uuid.uuid4().hex[:8]
    yield name
    gate(name).set()


def cancelled(actor, *args, **options):
    """A job that was cancelled before it ran."""
    message = actor.send_with_options(args=args, delay=HOUR, **options)
    assert switchyard.cancel(message)
    return message


def test_it_waits_for_the_rate_of_its_new_arguments_and_for_no_other(system, a, b):
    system.ended(system.jobs.hourly.send(a))
    free, full = cancelled(system.jobs.hourly, a), cancelled(system.jobs.hourly, b)

    assert switchyard.replay(free, args=[b], kwargs={"weight": 1})
    assert switchyard.replay(full, kwargs={"weight": 1, "customer": a}, args=[])

    assert system.ended(free).state is State.COMPLETED
    waits_for(system, full, "rate_limit")
    assert (runs[a], runs[b]) == (1, 1)
    assert [row(system, message)[1:3] for message in (free, full)] == [(f"hourly:{b}", 1), (f"hourly:{a}", 1)]


def test_it_stands_in_the_line_of_its_new_arguments(system, a, b):
    running = system.jobs.serial.send(a)
    system.until(running, lambda job: job.state is State.RUNNING)
    joins, leaves = cancelled(system.jobs.serial, b), cancelled(system.jobs.serial, a)

    assert switchyard.replay(joins, args=[a, "tenant"])
    assert switchyard.replay(leaves, args=[b])

    waits_for(system, joins, "concurrency")
    system.until(leaves, lambda job: job.state is State.RUNNING)
    assert row(system, joins)[3:7] == (f"serial:{a}", "tenant", 2.0, True)
    gate(a).set()
    assert system.ended(joins).state is State.COMPLETED


def test_a_key_that_another_job_has_is_an_error_and_nothing_is_changed(system, a, b):
    dead = system.jobs.picky.send(b)
    system.ended(dead)
    holder = system.jobs.picky.send_with_options(args=(a,), delay=HOUR)
    before, job = row(system, dead), system.job(dead)

    with pytest.raises(KeyInUse) as caught:
        switchyard.replay(dead, args=[a], kwargs={"good": True}, to_queue="elsewhere")
    assert (caught.value.holder, caught.value.job_id) == (holder.message_id, dead.message_id)
    with pytest.raises(KeyInUse):
        switchyard.try_replay(dead, args=[a])
    assert (row(system, dead), system.job(dead)) == (before, job)

    # The key that it had before does not matter, and with a free one it goes.
    same = system.jobs.picky.send_with_options(args=(b,), delay=HOUR)
    with pytest.raises(KeyInUse) as caught:
        switchyard.replay(dead, kwargs={"good": True})
    assert caught.value.holder == same.message_id
    assert switchyard.cancel(holder)
    assert switchyard.replay(dead, args=[a], kwargs={"good": True})
    assert system.until(dead, lambda job: job.state is State.COMPLETED).result == a
    assert row(system, dead)[0] == f'["{a}"]'


def test_while_it_waits_again_a_send_with_its_new_arguments_is_that_job(system, a, b):
    first = cancelled(system.jobs.rebuild, a)

    assert switchyard.replay(first, args=[b], to_queue="nobody")

    assert system.jobs.rebuild.send(b).message_id == first.message_id
    assert system.ended(system.jobs.rebuild.send(a)).state is State.COMPLETED


def test_a_key_that_was_let_go_is_not_taken_again_by_the_same_arguments(system, a, b):
    messages = [system.jobs.rebuild.send_with_options(args=(a,), delay=HOUR)]
    assert switchyard.forget_key("rebuild", f'["{a}"]', kind="unique")
    messages.append(system.jobs.rebuild.send_with_options(args=(a,), delay=HOUR))
    assert switchyard.cancel(messages[0])

    assert switchyard.replay(messages[0], args=[a, "why"], to_queue="nobody")

    assert row(system, messages[0])[0] is None
    assert system.jobs.rebuild.send(a).message_id == messages[1].message_id


def test_a_key_for_a_period_goes_over_with_what_is_left_of_the_period(system, a, b):
    first = cancelled(system.jobs.once_an_hour, a)
    other = system.jobs.once_an_hour.send_with_options(args=(f"{a} x",), delay=HOUR)
    until = switchyard.find_by_key("once_an_hour", f'["{a}"]', kind="unique").expires_at
    before = row(system, first)

    with pytest.raises(KeyInUse) as caught:
        switchyard.replay(first, args=[f"{a} x"])
    assert (caught.value.holder, row(system, first)) == (other.message_id, before)
    assert switchyard.replay(first, args=[b])

    bound = switchyard.find_by_key("once_an_hour", f'["{b}"]', kind="unique")
    assert (bound.job_id, bound.expires_at) == (first.message_id, until)
    assert system.ended(first).state is State.COMPLETED
    assert system.ended(system.jobs.once_an_hour.send(a)).state is State.COMPLETED


def test_a_process_that_does_not_know_the_actor_is_told_so_and_changes_nothing(system, stranger, a, b):
    system.activate()
    jobs = system.jobs
    keyed = {
        "rate_limit_key": cancelled(jobs.hourly, a),
        "concurrency_key": cancelled(jobs.serial, a),
        "unique_key": cancelled(jobs.rebuild, a),
    }
    period = cancelled(jobs.once_an_hour, a)
    own = cancelled(jobs.serial, a, concurrency_key=a, fair_key="x")
    text = cancelled(jobs.rebuild, a, unique_key=f"own {a}")
    plain = cancelled(jobs.plain, a)
    stranger.activate()

    for option, message in [*keyed.items(), ("unique_key", period)]:
        before, job = row(system, message), system.job(message)
        with pytest.raises(OptionError, match="does not know the actor; replay it in a program that imports it") as caught:
            switchyard.replay(message, args=[b])
        assert caught.value.option == option
        assert (row(system, message), system.job(message)) == (before, job)
    before = row(system, own)
    for message in (own, text, plain):
        assert switchyard.replay(message, args=[b], to_queue="nobody")

    assert row(system, own)[:7] == before[:7]
    assert [system.job(message).args for message in (own, text, plain)] == [(b,)] * 3
    # With the arguments it was sent with, any process replays any job.
    assert switchyard.replay(keyed["unique_key"])
    # A key of the message's own is another job's now.
    system.activate()
    assert switchyard.cancel(text)
    holder = jobs.rebuild.send_with_options(args=(a,), unique_key=f"own {a}", delay=HOUR)
    stranger.activate()
    with pytest.raises(KeyInUse) as taken:
        switchyard.replay(text, args=[b])
    assert taken.value.holder == holder.message_id


def test_limits_that_nobody_has_told_the_ledger_of_are_told_before_they_count(make_settings, a, b):
    sender = System(make_settings(), declare)
    # Stored before the actor had a limit.
    message = sender.jobs.serial.message(a)
    job = sender.broker.new_job(message, 3_600.0)._replace(control=None)
    sender.database.run(lambda connection: write.enqueue(connection, job))
    assert switchyard.cancel(message)
    assert sender.rows("SELECT name FROM switchyard.rule") == []

    assert switchyard.replay(message, args=[b])

    assert sender.rows("SELECT kind, name, amount FROM switchyard.rule") == [("concurrency", "serial", 1)]
    assert (row(sender, message)[3], row(sender, message)[6]) == (f"serial:{b}", True)
    sender.close()
