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


@pytest.fixture
def scheduled(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A system whose actors have schedules, not started yet."""
    system = System(make_settings(), scheduled_jobs.declare)
    yield system
    system.close()


def made(system: System, name: str) -> list[tuple[datetime, datetime]]:
    """The ticks of a schedule that have a job, with the time at which it was made, in order."""
    rows = system.rows(
        "SELECT j.tick_at, j.created_at FROM switchyard.job j WHERE j.schedule = %s AND j.tick_at IS NOT NULL ORDER BY 1", name
    )
    return [(tick.astimezone(UTC), created) for tick, created in rows]


def test_a_schedule_of_every_second_runs_every_second_and_its_jobs_know_their_tick(scheduled):
    scheduled.start(threads=2)

    wait_until(lambda: len(made(scheduled, "every_second")) >= 5, 60, "five ticks have a job")
    ticks = made(scheduled, "every_second")
    (job,) = [job for job in switchyard.list_jobs(actor="every_second").jobs if job.tick_at == ticks[0][0]]
    ended = scheduled.ended(scheduled.jobs.every_second.message().copy(message_id=job.id))

    assert all(later - earlier == SECOND for (earlier, _), (later, _) in pairwise(ticks))
    assert sorted(created - tick for tick, created in ticks)[0] < 2 * SECOND
    assert all(created >= tick for tick, created in ticks)
    assert ended.result == f"every_second {ticks[0][0]}"
    assert (ended.state, ended.schedule) == (State.COMPLETED, "every_second")


def test_three_keepers_make_one_job_of_each_tick(make_settings):
    # What one keeper does in one turn, three at a time on connections of their own, over a day that is gone in a moment.
    settings = make_settings()
    system = System(settings, scheduled_jobs.declare)
    try:
        switchyard.create_schedule("hourly", "plain", "0 * * * *", ["tick"], catch_up="all")
        begin = switchyard.get_schedule("hourly").next_tick_at
        connections = [system.database.dedicated(f"keeper {number}") for number in range(3)]
        for hour in range(24):
            for connection in connections:
                duty.tick(connection, system.broker, begin + timedelta(hours=hour, seconds=hour))
        for connection in connections:
            connection.close()
        system.start(threads=4)
        wait_until(
            lambda: system.rows("SELECT count(*) FROM switchyard.job WHERE actor = 'plain' AND state = 'completed'") == [(24,)],
            60,
        )

        assert [tick for tick, _ in made(system, "hourly")] == [begin + timedelta(hours=hour) for hour in range(24)]
    finally:
        system.close()


def test_a_paused_schedule_makes_no_job_and_goes_on_with_the_next_tick(scheduled):
    scheduled.start(threads=2)
    wait_until(lambda: made(scheduled, "every_second"), 60, "the first tick has a job")

    assert switchyard.pause_schedule("every_second")
    paused = switchyard.get_schedule("every_second")
    assert not switchyard.pause_schedule("every_second")
    wait_until(lambda: datetime.now(UTC) > paused.read_at + 2.5 * SECOND, 30)
    assert all(created <= paused.read_at for _, created in made(scheduled, "every_second"))

    assert switchyard.resume_schedule("every_second")
    assert not switchyard.resume_schedule("every_second")
    resumed = switchyard.get_schedule("every_second").read_at
    wait_until(lambda: made(scheduled, "every_second")[-1][0] > resumed, 30, "it goes on")
    ticks = [tick for tick, _ in made(scheduled, "every_second")]
    assert not [tick for tick in ticks if paused.read_at < tick < resumed - SECOND]


def test_run_now_makes_a_job_beside_the_ticks(scheduled):
    scheduled.start(threads=2)
    wait_until(lambda: switchyard.get_schedule("leap"), 30, "it is declared")
    switchyard.pause_schedule("leap")
    before = switchyard.get_schedule("leap")

    job = scheduled.ended(switchyard.run_schedule("leap"))

    assert (job.result, job.queue, job.priority, job.max_attempts) == ("eu", "leap", 3, 2)
    assert (job.schedule, job.tick_at) == ("leap", None)
    assert switchyard.get_schedule("leap").next_tick_at == before.next_tick_at
    assert switchyard.schedule_ticks("leap") == []


def test_a_schedule_made_at_run_time_comes_changes_and_goes(scheduled):
    scheduled.start(threads=2)

    created = switchyard.create_schedule(
        "mine", scheduled.jobs.plain, "* * * * * *", ["one"], queue="default", options={"tags": ["t"]}
    )
    wait_until(lambda: made(scheduled, "mine"), 30, "its first tick has a job")
    changed = switchyard.update_schedule("mine", args=["two"], jitter=0)
    wait_until(
        lambda: [job for job in switchyard.list_jobs(tag="t").jobs if job.args == ("two",)],
        30,
        "it is called with what it is now",
    )
    switchyard.delete_schedule("mine")
    deleted = scheduled.count()
    switchyard.pause_schedule("every_second")

    assert (created.source, created.version, changed.version) == ("created", 1, 2)
    assert created.args == ("one",)
    assert switchyard.get_schedule("mine") is None
    assert deleted >= 2
    with pytest.raises(ScheduleNotFound):
        switchyard.run_schedule("mine")


def test_a_declared_schedule_is_changed_in_code_alone(scheduled):
    scheduled.start(threads=1)
    wait_until(lambda: switchyard.get_schedule("leap"), 30, "it is declared")

    with pytest.raises(ScheduleError, match="declared by the actor 'leap'"):
        switchyard.update_schedule("leap", cron="0 0 * * *")
    with pytest.raises(ScheduleError, match="declared by the actor 'leap'"):
        switchyard.delete_schedule("leap")
    found = switchyard.get_schedule("leap")
    assert (found.source, found.args, found.timezone) == ("declared", ("eu",), "Europe/Berlin")


@pytest.mark.parametrize(("catch_up", "hours"), [("skip", []), ("last", [5]), ("all", [2, 3, 4, 5])])
def test_what_an_outage_missed_is_the_policy_s(scheduled, catch_up, hours):
    switchyard.create_schedule("missed", "plain", "0 * * * *", catch_up=catch_up, window=timedelta(hours=4))
    begin = switchyard.get_schedule("missed").next_tick_at - timedelta(hours=1)
    back = begin + timedelta(hours=5, minutes=30)

    with scheduled.database.dedicated("keeper") as connection:
        more = True
        while more:
            _, more = duty.tick(connection, scheduled.broker, back)
        scheduled.start(threads=2)
        wait_until(
            lambda: not scheduled.rows("SELECT 1 FROM switchyard.job WHERE schedule = 'missed' AND state <> 'completed'"), 30
        )
        # The next one is on time again.
        duty.tick(connection, scheduled.broker, begin + timedelta(hours=6))

    assert [tick for tick, _ in made(scheduled, "missed")] == [begin + timedelta(hours=hour) for hour in [*hours, 6]]


def test_what_periodiq_sends_is_folded_into_the_tick_it_is_meant_for(scheduled):
    actor = scheduled.jobs.every_second
    later = (datetime.now(UTC) + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)

    first = actor.send_with_options(scheduled_at=str(later))
    again = [actor.send_with_options(scheduled_at=str(later)) for _ in range(3)]
    by_hand = actor.send()
    scheduled.start(threads=2)

    assert {message.message_id for message in again} == {first.message_id}
    job = scheduled.ended(first)
    assert (job.schedule, job.tick_at) == ("every_second", later)
    assert scheduled.ended(by_hand).tick_at is None
    assert [tick for tick, _ in made(scheduled, "every_second")].count(later) == 1
