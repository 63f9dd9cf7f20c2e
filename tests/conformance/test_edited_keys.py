"""After an edit a job counts as what it is now: keys that its actor makes of its arguments follow them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg.errors import DeadlockDetected

import switchyard
from errors import KeyInUse, OptionError
from ledger import write
from ledger.states import State
from settings import Settings
from tests.conformance.counting_jobs import HOUR, declare, row, waits_for
from tests.conformance.jobs import gate, runs, seen
from tests.conformance.system import System
from tests.ledger.blocking import Meanwhile
from tests.rig.waiting import wait_until


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


def test_what_waits_for_a_rate_goes_when_its_new_arguments_may(system, a, b):
    system.ended(system.jobs.hourly.send(a))
    waiting, behind = system.jobs.hourly.send(a), system.jobs.hourly.send(b)
    system.ended(behind)
    waits_for(system, waiting, "rate_limit")

    # The other one's hour is used up as well: it waits there.
    assert switchyard.edit(waiting, args=[b])
    system.until(waiting, lambda job: job.wait_reason == "rate_limit" and row(system, waiting)[1] == f"hourly:{b}")
    assert runs[b] == 1
    assert switchyard.edit(waiting, args=[f"{b} other"])

    assert system.ended(waiting).state is State.COMPLETED
    assert runs[f"{b} other"] == 1


def test_what_a_job_costs_follows_too(system, a):
    message = system.jobs.hourly.send_with_options(args=(a,), delay=HOUR)

    assert switchyard.edit(message, kwargs={"weight": 3})

    assert row(system, message)[1:3] == (f"hourly:{a}", 3)


def test_what_waits_for_a_slot_goes_when_its_new_arguments_may_and_joins_the_line_where_it_belongs(system, a, b):
    running = system.jobs.serial.send(a)
    system.until(running, lambda job: job.state is State.RUNNING)
    waiting, later = system.jobs.serial.send(a), system.jobs.serial.send_with_options(args=(b,), delay=HOUR)
    waits_for(system, waiting, "concurrency")

    assert switchyard.edit(waiting, args=[b, "tenant"])
    system.until(waiting, lambda job: job.state is State.RUNNING)
    assert row(system, waiting)[3:7] == (f"serial:{b}", "tenant", 2.0, True)
    # And the other way round.
    assert switchyard.edit(later, args=[a])
    assert switchyard.edit(later, delay=0)
    waits_for(system, later, "concurrency")

    gate(b).set()
    system.ended(waiting)
    assert system.job(later).state is State.SCHEDULED
    gate(a).set()
    assert system.ended(later).state is State.COMPLETED
    assert (len(seen[a]), seen[b]) == (2, ["tenant"])


def test_what_is_not_made_of_the_new_arguments_stays(system, a, b):
    running = system.jobs.serial.send(a)
    system.until(running, lambda job: job.state is State.RUNNING)
    own = system.jobs.serial.send_with_options(args=(b,), concurrency_key=a, fair_key="vip")
    waits_for(system, own, "concurrency")

    assert switchyard.edit(own, args=[b, "tenant"])

    assert row(system, own)[3:5] == (f"serial:{a}", "vip")
    assert system.job(own).wait_reason == "concurrency"


def test_a_key_that_another_job_has_is_an_error_and_nothing_is_changed(system, a, b):
    first = system.jobs.rebuild.send_with_options(args=(a,), delay=HOUR)
    second = system.jobs.rebuild.send_with_options(args=(b,), delay=HOUR, tags=["kept"])
    before = row(system, second)

    with pytest.raises(KeyInUse) as caught:
        switchyard.edit(second, args=[a, "why"], priority=-3, delay=0, tags=[])

    assert (caught.value.holder, caught.value.job_id) == (first.message_id, second.message_id)
    assert caught.value.key in str(caught.value)
    assert (row(system, second), system.job(second).tags) == (before, ("kept",))
    # With the same key it is no other job, and with a free one it goes.
    assert switchyard.edit(second, args=[b, "why"])
    assert switchyard.cancel(first)
    assert switchyard.edit(second, args=[a, "why"])
    assert system.jobs.rebuild.send(a).message_id == second.message_id
    assert system.ended(system.jobs.rebuild.send(b)).result == f"{b} "
    assert switchyard.edit(second, delay=0)
    assert system.ended(second).result == f"{a} why"


def test_a_function_may_find_a_key_where_there_was_none_and_the_other_way_round(system, a):
    first = system.jobs.some.send_with_options(args=("",), delay=HOUR)

    assert switchyard.edit(first, args=[a])
    assert system.jobs.some.send(a).message_id == first.message_id
    assert switchyard.edit(first, args=[""])
    assert system.ended(system.jobs.some.send(a)).state is State.COMPLETED


def test_a_key_that_was_let_go_is_not_taken_again_by_the_same_arguments(system, a, b):
    message = system.jobs.rebuild.send_with_options(args=(a,), delay=HOUR)
    assert switchyard.forget_key("rebuild", f'["{a}"]', kind="unique")
    other = system.jobs.rebuild.send_with_options(args=(a,), delay=HOUR)

    assert switchyard.edit(message, args=[a, "why"])
    assert row(system, message)[0] is None
    assert switchyard.edit(message, args=[b])

    assert row(system, message)[0] == f'["{b}"]'
    assert system.jobs.rebuild.send(a).message_id == other.message_id


def test_a_key_for_a_period_goes_over_with_what_is_left_of_the_period(system, a, b):
    first = system.jobs.once_an_hour.send_with_options(args=(a,), delay=HOUR)
    other = system.jobs.once_an_hour.send_with_options(args=(f"{a} x",), delay=HOUR)
    until = switchyard.find_by_key("once_an_hour", f'["{a}"]', kind="unique").expires_at

    with pytest.raises(KeyInUse) as caught:
        switchyard.edit(first, args=[f"{a} x"])
    assert (caught.value.holder, system.job(first).args) == (other.message_id, (a,))
    system.rows(
        "UPDATE switchyard.idempotency SET expires_at = now() - interval '1 second' WHERE message_id = %s RETURNING key",
        other.message_id,
    )
    assert switchyard.edit(first, args=[f"{a} x", "why"])

    bound = switchyard.find_by_key("once_an_hour", f'["{a} x"]', kind="unique")
    assert (bound.job_id, bound.expires_at) == (first.message_id, until)
    assert system.jobs.once_an_hour.send(f"{a} x").message_id == first.message_id
    assert system.ended(system.jobs.once_an_hour.send(a)).state is State.COMPLETED


def test_a_senders_key_stands_for_what_was_sent(system, a, b):
    message = system.jobs.plain.send_with_options(args=(a,), delay=HOUR, idempotency_key=a)

    assert switchyard.edit(message, args=[b])

    again = system.jobs.plain.send_with_options(args=(a,), delay=HOUR, idempotency_key=a)
    assert (again.message_id, again.args) == (message.message_id, (b,))
    with pytest.raises(switchyard.IdempotencyConflict):
        system.jobs.plain.send_with_options(args=(b,), idempotency_key=a)


def test_a_process_that_does_not_know_the_actor_is_told_so_and_changes_nothing(system, stranger, a, b):
    system.activate()
    jobs = system.jobs
    keyed = {
        "rate_limit_key": jobs.hourly.send_with_options(args=(a,), delay=HOUR),
        "concurrency_key": jobs.serial.send_with_options(args=(a,), delay=HOUR),
        "unique_key": jobs.rebuild.send_with_options(args=(a,), delay=HOUR),
    }
    period = jobs.once_an_hour.send_with_options(args=(a,), delay=HOUR)
    own = jobs.serial.send_with_options(args=(a,), delay=HOUR, concurrency_key=a, fair_key="x")
    plain = jobs.plain.send_with_options(args=(a,), delay=HOUR)
    stranger.activate()

    for option, message in [*keyed.items(), ("unique_key", period)]:
        before = row(system, message)
        with pytest.raises(OptionError, match=r"does not know the actor; .*`switchyard edit --actors MODULE`") as caught:
            switchyard.edit(message, args=[b], priority=5)
        assert caught.value.option == option
        assert row(system, message) == before
        # What keys are not made of may be changed anywhere.
        assert switchyard.edit(message, priority=5, tags=["x"])
    before = row(system, own)
    assert switchyard.edit(own, args=[b])
    assert switchyard.edit(plain, args=[b])

    assert (row(system, own)[:7], system.job(own).args, system.job(plain).args) == (before[:7], (b,), (b,))


def test_limits_that_nobody_has_told_the_ledger_of_are_told_before_they_count(make_settings, a, b):
    sender = System(make_settings(), declare)
    # Stored before the actor had a limit.
    message = sender.jobs.serial.message(a)
    job = sender.broker.new_job(message, 3_600.0)._replace(control=None)
    sender.database.run(lambda connection: write.enqueue(connection, job))
    assert sender.rows("SELECT name FROM switchyard.rule") == []

    assert switchyard.edit(message, args=[b])

    assert sender.rows("SELECT kind, name, amount FROM switchyard.rule") == [("concurrency", "serial", 1)]
    assert (row(sender, message)[3], row(sender, message)[6]) == (f"serial:{b}", True)
    sender.close()


def answer_in_a_circle(system: System, of: str) -> Any:
    """What an edit answers that waits for a rival while that waits for it; None: Postgres has ended the rival instead."""
    first, second = (system.jobs.rebuild.send_with_options(args=(f"{of} {n}",), delay=HOUR) for n in (1, 2))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    edit: Meanwhile
    try:
        with system.database.connection(60.0) as rival, rival.transaction():
            # Who has waited for so long looks whether it is in a circle, and ends that by its own end: the edit, after a second.
            rival.execute("SET LOCAL deadlock_timeout = '4s'")
            rival.execute("UPDATE switchyard.job SET unique_key = %s WHERE message_id = %s", [f"{of} free", second.message_id])
            edit = Meanwhile(lambda: switchyard.edit(first, args=[f"{of} 2"]))
            wait_until(lambda: rival.execute(waiting).fetchone() is not None, 20, "the edit waits for the key")
            rival.execute("UPDATE switchyard.job SET priority = 9 WHERE message_id = %s", [first.message_id])
    except DeadlockDetected:
        # It had looked before the circle was closed.
        edit.result()
        return None
    answer = edit.result()
    assert [row(system, message)[0] for message in (first, second)] == [f'["{of} 2"]', f"{of} free"]
    assert system.job(first).priority == 9
    return answer


def test_an_edit_that_postgres_ends_to_break_a_circle_is_made_again(system, a):
    answers = (answer_in_a_circle(system, f"{a} {attempt}") for attempt in range(10))

    assert next(answer for answer in answers if answer is not None) is True
