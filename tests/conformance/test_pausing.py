"""Pausing: nothing of what is paused starts, nothing else is held up, and all of it goes on when it is resumed."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from dramatiq import Message

import switchyard
from errors import JobNotFound
from ledger import read
from ledger.states import State
from settings import Settings
from tests.conformance import control_jobs
from tests.conformance.jobs import gate, runs, seen
from tests.conformance.system import System
from tests.rig.waiting import wait_until


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def shared(make_settings: Callable[..., Settings]) -> Iterator[System]:
    system = System(make_settings(lease=30.0, sweep=0.2), declare=control_jobs.declare)
    system.start(threads=1)
    yield system
    system.close()


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    """A running system with one thread; what a failed case left paused goes on."""
    yield shared
    for pause in switchyard.paused():
        switchyard.resume(queue=pause.queue, actor=pause.actor)


def parked(system: System, *messages: Message[Any]) -> None:
    for message in messages:
        system.until(message, lambda job: (job.state, job.wait_reason) == (State.PENDING, "paused"))


def test_a_paused_queue_rests_while_others_work_and_goes_on_where_it_was(system, key):
    assert switchyard.pause(queue="default")
    assert not switchyard.pause(queue="default")
    resting = [system.jobs.echo.send(key, number) for number in range(3)]
    late = system.jobs.echo.send_with_options(args=(key, "late"), delay=100)
    other = system.jobs.elsewhere.send(f"{key} other")

    assert system.ended(other).state is State.COMPLETED
    parked(system, *resting, late)
    (pause,) = switchyard.paused()
    assert (pause.queue, pause.actor, pause.waiting, runs[key]) == ("default", None, 4, 0)
    (depth,) = [row for row in switchyard.database().run(read.queue_depths) if row.queue == "default"]
    assert depth.pending == 4
    assert {job.id for job in switchyard.list_jobs(state="pending", queue="default").jobs} >= {m.message_id for m in resting}

    assert switchyard.resume(queue="default")

    assert {system.ended(message).state for message in [*resting, late]} == {State.COMPLETED}
    assert sorted(map(str, seen[key])) == ["0", "1", "2", "late"]
    assert (switchyard.paused(), switchyard.resume(queue="default")) == ([], False)


def test_a_second_after_a_pause_nothing_starts_any_more_while_jobs_flow(system, key):
    enough, sent = threading.Event(), []

    def flow() -> None:
        while not enough.wait(0.005):
            sent.append(system.jobs.echo.send(key, len(sent)))

    flowing = threading.Thread(target=flow)
    flowing.start()
    try:
        wait_until(lambda: runs[key] > 50, 20, "they flow")
        switchyard.pause(queue="default")
        (paused,) = system.rows("SELECT clock_timestamp()")[0]
        before = len(sent)
        passed = "SELECT clock_timestamp() > %s + interval '2.5 s'"
        wait_until(lambda: system.rows(passed, paused) == [(True,)] and len(sent) > before + 50, 20, "they go on flowing")
    finally:
        enough.set()
        flowing.join()

    parked(system, sent[-1])
    latest = "SELECT max(started_at) - %s FROM switchyard.job WHERE state = 'completed'"
    assert system.rows(latest, paused)[0][0] < timedelta(seconds=1)
    assert runs[key] < len(sent)

    switchyard.resume(queue="default")
    assert system.ended(sent[-1]).state is State.COMPLETED
    wait_until(lambda: runs[key] == len(sent), 30, "each runs once")


def test_a_paused_actor_does_not_hold_up_the_others_of_its_queue(system, key):
    switchyard.pause(actor="echo")
    resting = switchyard.enqueue_many([system.jobs.echo.message(key) for _ in range(50)])
    others = [system.jobs.snoozes_once.send(f"{key} other") for _ in range(3)]

    assert {system.ended(message).state for message in others} == {State.COMPLETED}
    parked(system, *resting)
    assert runs[key] == 0

    switchyard.resume(actor="echo")

    assert {system.ended(message).state for message in resting} == {State.COMPLETED}


def test_an_actor_is_paused_in_one_queue_alone(system, key):
    switchyard.pause(queue="other", actor="echo")
    here = system.jobs.echo.send(key)
    there = system.jobs.echo.message(key).copy(queue_name="other")
    switchyard.enqueue_many([there])
    other = system.jobs.elsewhere.send(f"{key} other")

    assert system.ended(here).state is system.ended(other).state is State.COMPLETED
    parked(system, there)

    switchyard.resume(queue="other", actor="echo")
    assert system.ended(there).state is State.COMPLETED


def test_everything_rests_and_what_is_paused_by_itself_stays_paused(system, key):
    switchyard.pause()
    switchyard.pause(actor="echo")
    echo, other = system.jobs.echo.send(key), system.jobs.elsewhere.send(f"{key} other")
    parked(system, echo, other)

    assert switchyard.resume()

    assert system.ended(other).state is State.COMPLETED
    assert system.job(echo).wait_reason == "paused"
    switchyard.resume(actor="echo")
    assert system.ended(echo).state is State.COMPLETED


def test_what_is_claimed_goes_back_and_what_runs_goes_on(system, key):
    running = system.jobs.plug.send(f"{key} plug")
    wait_until(lambda: runs[f"{key} plug"], 20, "the thread is busy")
    behind = [system.jobs.echo.send(key) for _ in range(10)]

    switchyard.pause(queue="default")

    # None was started, whether it was in the worker's hand or not, and each waits as if it had never been claimed.
    parked(system, *behind)
    assert {system.job(message).attempt for message in behind} == {0}
    gate(f"{key} plug").set()
    assert (system.ended(running).state, runs[key]) == (State.COMPLETED, 0)
    switchyard.resume(queue="default")
    assert {system.ended(message).state for message in behind} == {State.COMPLETED}


def test_a_retry_that_comes_due_meanwhile_waits_too(system, key):
    message = system.jobs.fails_first.send_with_options(args=(key,), min_backoff=1_500, max_backoff=1_500)
    system.until(message, lambda job: job.state is State.RETRYING)
    switchyard.pause(queue="default")
    parked(system, message)
    assert runs[key] == 1
    assert switchyard.cancel(message.message_id)
    assert switchyard.replay(message.message_id)
    parked(system, message)

    switchyard.resume(queue="default")

    assert system.ended(message).state is State.COMPLETED
    # The attempts of a replay are counted anew.
    assert runs[key] == 3


@pytest.fixture
def without_sweeps(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system whose keeper sweeps once, at its start."""
    system = System(make_settings(lease=300.0, sweep=300.0), declare=control_jobs.declare)
    system.start(threads=1)
    yield system
    system.close()


def test_what_a_trigger_leads_to_is_parked_without_a_keeper(without_sweeps, key):
    system = without_sweeps
    system.ended(system.jobs.echo.send(f"{key} first"))
    switchyard.pause(queue="default")

    message = system.jobs.echo.send(key)

    if system.broker.carriers[system.settings.broker]:
        parked(system, message)
    switchyard.resume(queue="default")
    assert system.ended(message).state is State.COMPLETED


def test_what_is_parked_can_be_cancelled(system, key):
    switchyard.pause(queue="default")
    message = system.jobs.echo.send(key)
    parked(system, message)

    assert switchyard.cancel(message.message_id)
    switchyard.resume(queue="default")

    assert (system.ended(message).state, runs[key]) == (State.CANCELLED, 0)


def test_jobs_go_on_in_the_order_of_their_priorities(system, key):
    plug = system.jobs.plug.send(f"{key} plug")
    wait_until(lambda: runs[f"{key} plug"], 20, "the thread is busy")
    switchyard.pause(actor="echo")
    messages = [
        system.jobs.echo.send_with_options(args=(key, number), priority=priority)
        for number, priority in enumerate([20, 0, 10, 0])
    ]
    parked(system, *messages)

    switchyard.resume(actor="echo")
    system.until(messages[0], lambda job: job.wait_reason is None)
    wait_until(lambda: not switchyard.database().run(lambda c: c.execute(
        "SELECT 1 FROM switchyard.job WHERE state = 'pending' AND publish_count <= 0 AND next_publish_at IS NOT NULL"
    ).fetchall()), 20, "all are published")  # fmt: skip

    gate(f"{key} plug").set()
    for message in [plug, *messages]:
        system.ended(message)
    assert set(seen[key][:2]) == {1, 3}
    assert seen[key][2:] == [2, 0]


@pytest.mark.parametrize("names", [{"queue": "my queue"}, {"actor": ""}, {"actor": "*"}, {"queue": "*"}])
def test_a_name_that_nothing_can_have_is_refused(system, names):
    with pytest.raises(ValueError, match="name"):
        switchyard.pause(**names)
    assert switchyard.paused() == []
    with pytest.raises(JobNotFound):
        switchyard.cancel("nothing")
