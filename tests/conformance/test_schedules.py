"""Jobs that come by the clock, the same on every broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

import switchyard
from errors import ScheduleError, ScheduleNotFound
from keeper import schedule as duty
from ledger.states import State
from settings import Settings
from tests.conformance import scheduled_jobs
from tests.conformance.system import System
from tests.rig.waiting import wait_until

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def running(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system whose actors have schedules: each case looks at schedules of its own."""
    system = System(make_settings(), scheduled_jobs.declare).start(threads=4)
    yield system
    system.close()


@pytest.fixture
def scheduled(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A system of the test's own, not started yet."""
    system = System(make_settings(), scheduled_jobs.declare)
    yield system
    system.close()


def made(system: System, name: str) -> list[tuple[datetime, datetime]]:
    """The ticks of a schedule that have a job, with the time at which it was made, in order."""
    rows = system.rows(
        "SELECT j.tick_at, j.created_at FROM switchyard.job j WHERE j.schedule = %s AND j.tick_at IS NOT NULL ORDER BY 1", name
    )
    return [(tick.astimezone(UTC), created) for tick, created in rows]


def test_a_schedule_of_every_second_runs_every_second_and_its_jobs_know_their_tick(running):
    wait_until(lambda: len(made(running, "every_second")) >= 4, 60, "some ticks have a job")
    ticks = made(running, "every_second")
    (job,) = [job for job in switchyard.list_jobs(actor="every_second").jobs if job.tick_at == ticks[0][0]]
    ended = switchyard.wait(job.id, 30)

    assert all(later - earlier == SECOND for (earlier, _), (later, _) in pairwise(ticks))
    assert min(created - tick for tick, created in ticks) < SECOND
    assert all(created >= tick for tick, created in ticks)
    assert ended.result == f"every_second {ticks[0][0]}"
    assert (ended.state, ended.schedule) == (State.COMPLETED, "every_second")


def test_a_schedule_made_at_run_time_is_paused_goes_on_changes_and_goes(running):
    created = switchyard.create_schedule(
        "mine", running.jobs.plain, "* * * * * *", ["one"], queue="default", options={"tags": ["t"]}
    )
    wait_until(lambda: made(running, "mine"), 30, "its first tick has a job")

    assert switchyard.pause_schedule("mine")
    paused = switchyard.get_schedule("mine")
    assert not switchyard.pause_schedule("mine")
    wait_until(lambda: datetime.now(UTC) > paused.read_at + 1.5 * SECOND, 30)
    assert all(created <= paused.read_at for _, created in made(running, "mine"))

    assert switchyard.resume_schedule("mine")
    assert not switchyard.resume_schedule("mine")
    resumed = switchyard.get_schedule("mine").read_at
    changed = switchyard.update_schedule("mine", args=["two"], jitter=0)
    wait_until(
        lambda: [job for job in switchyard.list_jobs(tag="t").jobs if job.args == ("two",)],
        30,
        "it is called with what it is now",
    )
    assert not [tick for tick, _ in made(running, "mine") if paused.read_at < tick < resumed - SECOND]

    switchyard.delete_schedule("mine")
    assert (created.source, created.version, changed.version) == ("created", 1, 4)
    assert created.args == ("one",)
    assert switchyard.get_schedule("mine") is None
    with pytest.raises(ScheduleNotFound):
        switchyard.run_schedule("mine")


def test_run_now_makes_a_job_beside_the_ticks_also_while_it_is_paused(running):
    wait_until(lambda: switchyard.get_schedule("leap"), 30, "it is declared")
    switchyard.pause_schedule("leap")
    before = switchyard.get_schedule("leap")

    job = running.ended(switchyard.run_schedule("leap"))

    assert (job.result, job.queue, job.priority, job.max_attempts) == ("eu", "leap", 3, 2)
    assert (job.schedule, job.tick_at) == ("leap", None)
    assert switchyard.get_schedule("leap").next_tick_at == before.next_tick_at
    assert switchyard.schedule_ticks("leap") == []


def test_a_declared_schedule_is_changed_in_code_alone(running):
    wait_until(lambda: switchyard.get_schedule("leap"), 30, "it is declared")

    with pytest.raises(ScheduleError, match="declared by the actor 'leap'"):
        switchyard.update_schedule("leap", cron="0 0 * * *")
    with pytest.raises(ScheduleError, match="declared by the actor 'leap'"):
        switchyard.delete_schedule("leap")
    found = switchyard.get_schedule("leap")
    assert (found.source, found.args, found.timezone) == ("declared", ("eu",), "Europe/Berlin")


def test_what_periodiq_sends_is_folded_into_the_tick_it_is_meant_for(running):
    actor = running.jobs.every_hour
    later = (datetime.now(UTC) + 2 * HOUR).replace(minute=0, second=0, microsecond=0)

    first = actor.send_with_options(scheduled_at=str(later + 15 * SECOND))
    again = [actor.send_with_options(scheduled_at=str(later)) for _ in range(3)]
    by_hand = actor.send()
    switchyard.pause_schedule("every_hour")
    paused = actor.send_with_options(scheduled_at=str(later + HOUR))

    assert {message.message_id for message in again} == {first.message_id}
    assert running.ended(first).tick_at == later
    assert running.ended(by_hand).tick_at is None
    assert [tick for tick, _ in made(running, "every_hour") if tick >= later] == [later]
    assert switchyard.get_job(paused.message_id) is None


def test_three_keepers_make_one_job_of_each_tick_and_an_outage_is_the_policy_s(scheduled):
    # What one keeper does in one turn, three at a time on connections of their own, over days that are gone in a moment.
    for policy in ("skip", "last", "all"):
        switchyard.create_schedule(policy, "plain", "0 * * * *", [policy], catch_up=policy, window=4 * HOUR)
    begin = switchyard.get_schedule("all").next_tick_at
    keepers = [scheduled.database.dedicated(f"keeper {number}") for number in range(3)]
    # Ten hours on time; nobody is there for five and a half; two hours on time again.
    for hour in [*range(10), 15.5, 16, 17]:
        for keeper in keepers:
            duty.tick(keeper, scheduled.broker, begin + hour * HOUR + timedelta(seconds=hour))
    for keeper in keepers:
        keeper.close()
    scheduled.start(threads=4)
    unfinished = "SELECT 1 FROM switchyard.job WHERE schedule IN ('skip', 'last', 'all') AND state <> 'completed'"
    wait_until(lambda: not scheduled.rows(unfinished), 60, "all run")

    hours = {policy: [(tick - begin) / HOUR for tick, _ in made(scheduled, policy)] for policy in ("skip", "last", "all")}
    assert hours == {
        "skip": [*range(10), 16, 17],
        "last": [*range(10), 15, 16, 17],
        "all": [*range(10), 12, 13, 14, 15, 16, 17],
    }
