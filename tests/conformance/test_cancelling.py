"""Cancelling: what waits ends at once, what runs is stopped from any process within a second, and nothing else is hit."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from time import monotonic
from uuid import uuid4

import pytest

import switchyard
from errors import JobNotFound
from ledger.states import State
from settings import Settings
from tests.conformance import control_jobs
from tests.conformance.jobs import gate, runs, seen
from tests.conformance.system import System
from tests.rig.waiting import wait_until

#: How long a running job may go on after it was cancelled, in seconds; a busy machine is given twice that.
WITHIN = 2.0


@pytest.fixture(scope="module")
def control_system(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system that all cases of this module share; its lease is long, so that no heartbeat comes to anybody's help."""
    system = System(make_settings(lease=30.0), declare=control_jobs.declare)
    system.start(threads=4)
    yield system
    system.close()


@pytest.fixture
def system(control_system: System) -> System:
    return control_system


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def began(key: str) -> None:
    wait_until(lambda: runs[key] > 0, 20, "the body runs")


@pytest.mark.parametrize("delay", [None, 3_600_000])
def test_a_waiting_job_is_cancelled_at_once_and_never_runs(system, key, delay):
    plugs = [system.jobs.plug.send(f"{key} plug") for _ in range(4)]
    wait_until(lambda: runs[f"{key} plug"] == 4, 20, "every thread is busy")
    message = system.jobs.echo.send_with_options(args=(key,), delay=delay)

    assert switchyard.cancel(message.message_id)

    gate(f"{key} plug").set()
    assert system.ended(message).state is State.CANCELLED
    assert all(system.ended(plug).state is State.COMPLETED for plug in plugs)
    assert (runs[key], system.attempts(message)) == (0, [])


@pytest.mark.parametrize("actor", ["spins", "sleeps", "asks"])
def test_a_running_job_is_stopped_within_a_second(system, key, actor):
    message = getattr(system.jobs, actor).send(key)
    began(key)
    asked = monotonic()

    assert switchyard.cancel(message)

    job = system.ended(message)
    assert monotonic() - asked < WITHIN
    assert job.cancel_requested_at is not None
    if actor == "asks":
        # It ends as it likes: it returned, so it is completed.
        assert (job.state, job.result) == (State.COMPLETED, "asked")
    else:
        assert (job.state, job.error_type) == (State.CANCELLED, "Cancelled")
        assert [(entry.outcome, entry.traceback) for entry in system.attempts(message)] == [("cancelled", None)]
    if actor == "sleeps":
        assert seen[key] == [None, "task cancelled"]


@pytest.mark.parametrize(("then", "state"), [("raise", "cancelled"), ("fail", "cancelled"), ("return", "completed")])
def test_an_actor_may_clean_up_and_its_end_is_cancelled_unless_it_succeeds(system, key, then, state):
    message = system.jobs.cleans_up.send(key, then)
    began(key)

    assert switchyard.cancel(message.message_id)

    job = system.ended(message)
    assert (job.state, seen[key]) == (state, [None, "cleaned up"])
    assert job.error_type == {"raise": "Cancelled", "fail": "ValueError", "return": None}[then]


def test_the_next_job_of_the_same_thread_is_not_hit(fresh_one, key):
    """Two jobs of one thread, one after the other: each request meets the job that it names or none."""
    system = fresh_one(threads=1)

    for round_ in range(20):
        first = system.jobs.echo.send(f"{key} {round_}")
        second = system.jobs.echo.send(f"{key} {round_}")
        switchyard.cancel(first.message_id)
        assert system.ended(second).state is State.COMPLETED
        assert system.ended(first).state in (State.COMPLETED, State.CANCELLED)


def test_an_actor_may_end_its_own_job_as_cancelled(system, key):
    message = system.jobs.stops_itself.send(key)

    job = system.ended(message)
    assert (job.state, job.error, runs[key]) == (State.CANCELLED, "no longer wanted", 1)


def test_what_is_claimed_and_has_not_started_never_starts(fresh_one, key):
    system = fresh_one(threads=1)
    plug = system.jobs.plug.send(f"{key} plug")
    began(f"{key} plug")
    behind = [system.jobs.echo.send(key) for _ in range(10)]

    assert all(switchyard.cancel(message.message_id) for message in behind)

    gate(f"{key} plug").set()
    assert {system.ended(message).state for message in behind} == {State.CANCELLED}
    assert (system.ended(plug).state, runs[key]) == (State.COMPLETED, 0)


def test_a_cancelled_job_can_be_replayed_and_knows_nothing_of_the_old_request(system, key):
    message = system.jobs.spins.send(key)
    began(key)
    assert switchyard.cancel(message.message_id)
    assert system.ended(message).state is State.CANCELLED

    assert switchyard.replay(message.message_id)
    wait_until(lambda: runs[key] == 2, 20, "it runs again")
    job = system.job(message)
    assert (job.state, job.cancel_requested_at, job.generation) == (State.RUNNING, None, 2)
    assert switchyard.cancel(message.message_id)
    assert system.ended(message).state is State.CANCELLED


def test_what_has_ended_stays_as_it_is_and_what_is_unknown_is_said(system, key):
    message = system.jobs.echo.send(key, 7)
    assert system.ended(message).state is State.COMPLETED

    assert not switchyard.cancel(message.message_id)

    assert system.job(message).state is State.COMPLETED
    with pytest.raises(JobNotFound):
        switchyard.cancel(str(uuid4()))


def test_many_are_cancelled_by_what_they_are(fresh_one, key):
    system = fresh_one(threads=2)
    running = [system.jobs.spins.send(f"{key} {number}") for number in range(2)]
    wait_until(lambda: all(runs[f"{key} {number}"] for number in range(2)), 20, "both threads are busy")
    waiting = switchyard.enqueue_many([system.jobs.echo.message(key) for _ in range(30)])
    tagged = system.jobs.echo.send_with_options(args=(key,), tags=["keep"], delay=3_600_000)
    other = system.jobs.elsewhere.send_with_options(args=(key,), delay=3_600_000)

    assert switchyard.cancel_many(actor="echo", dry_run=True).total == 31
    assert switchyard.cancel_many(actor="echo", state="pending") == switchyard.CancelCount(cancelled=30, asked=0)
    assert switchyard.cancel_many(queue="default", state="running") == switchyard.CancelCount(cancelled=0, asked=2)
    assert switchyard.cancel_many(tag="keep").cancelled == 1

    assert {system.ended(message).state for message in [*running, *waiting, tagged]} == {State.CANCELLED}
    assert (runs[key], system.job(other).state) == (0, State.SCHEDULED)
    assert switchyard.cancel_many(all=True).cancelled == 1


def test_without_a_filter_or_with_one_that_meets_only_what_has_ended_nothing_is_cancelled(system):
    with pytest.raises(ValueError, match="all=True"):
        switchyard.cancel_many()
    with pytest.raises(ValueError, match="have ended"):
        switchyard.cancel_many(state="dead")


@pytest.fixture
def fresh_one(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., System]]:
    """A system of the test's own, running."""
    made: list[System] = []

    def make(threads: int, **fields: object) -> System:
        made.append(System(make_settings(**({"lease": 30.0} | fields)), declare=control_jobs.declare))
        return made[-1].start(threads=threads)

    yield make
    for system in made:
        system.close()
