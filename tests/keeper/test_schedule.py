"""Ticks: what one makes, and that it makes it once, whoever is at it and whatever happens."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psycopg
import pytest

import switchyard
from errors import LedgerUnavailable, OptionError, ScheduleError
from keeper import schedule as duty
from ledger import schedules, write
from ledger.sql import SQL
from tests.keeper.scheduling import jobs, stored
from tests.ledger.blocking import Meanwhile, wait_for_lock
from tests.ledger.test_plans import generic_plan
from tests.rig.waiting import wait_until

HOUR = timedelta(hours=1)


@pytest.fixture
def hourly(system):
    """A schedule of every hour that makes up for everything, and its first tick."""
    return switchyard.create_schedule("hourly", "work", "0 * * * *", catch_up="all").next_tick_at


def test_a_schedule_that_no_tick_could_follow_or_that_would_show_a_secret_is_refused(system):
    with pytest.raises(ScheduleError, match="debounced"):
        switchyard.create_schedule("late", "debounced", "@daily")
    with pytest.raises(OptionError, match=r"actor 'charge', option 'secret': 'card'"):
        switchyard.create_schedule("bills", "charge", "@daily", [1], {"card": "4111"})
    switchyard.create_schedule("bills", "charge", "@daily", [1])

    with pytest.raises(OptionError, match=r"actor 'charge', option 'secret': 'card'"):
        switchyard.update_schedule("bills", args=[1, "4111"])

    assert switchyard.get_schedule("bills").args == (1,)


def test_a_tick_makes_its_job_with_the_actor_s_options_and_the_schedule_goes_on(system, keeper, hourly):
    switchyard.update_schedule("hourly", args=[1], queue="other", options={"priority": 5, "tags": ["x"], "max_retries": 1})

    assert duty.tick(keeper, system.broker, hourly - timedelta(seconds=1)) == (0, False)
    assert duty.tick(keeper, system.broker, hourly) == (1, False)
    assert duty.tick(keeper, system.broker, hourly) == (0, False)

    (job,) = switchyard.list_jobs(actor="work").jobs
    assert (job.args, job.queue, job.priority, job.tags, job.max_attempts) == ((1,), "other", 5, ("x",), 2)
    assert (job.schedule, job.tick_at, job.state) == ("hourly", hourly, "pending")
    after = stored("hourly")
    assert (after.last_tick_at, after.next_tick_at, after.due_at) == (hourly, hourly + HOUR, hourly + HOUR)
    (tick,) = switchyard.schedule_ticks("hourly")
    assert (tick.tick_at, tick.job_id, tick.error, tick.state) == (hourly, job.id, None, "pending")


def test_what_limits_the_actor_limits_its_ticks_too(system, keeper):
    at = switchyard.create_schedule("often", "limited", "0 * * * *").next_tick_at

    duty.tick(keeper, system.broker, at)

    (job,) = switchyard.list_jobs(tag="counted").jobs
    assert (job.schedule, job.tick_at, job.max_attempts) == ("often", at, 8)
    assert job.rate_key
    assert job.concurrency_key


def test_the_job_is_due_at_once_and_the_relay_is_told_at_the_commit(system, keeper, hourly, database_url):
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN switchyard_ready")
        listener.execute("LISTEN switchyard_due")
        duty.tick(keeper, system.broker, hourly)
        heard = list(listener.notifies(timeout=5, stop_after=1))

    assert heard


def test_a_keeper_leaves_schedules_of_actors_that_it_does_not_know(system, keeper, hourly):
    stranger = SimpleNamespace(actors={"other": None})

    assert duty.tick(keeper, stranger, hourly) == (0, False)
    assert schedules.until_next_tick(keeper, ["other"]) is None
    assert schedules.until_next_tick(keeper, ["work"]) > 0
    assert duty.tick(keeper, system.broker, hourly) == (1, False)


def test_a_tick_whose_job_is_gone_is_not_made_again(system, keeper, hourly):
    duty.tick(keeper, system.broker, hourly)
    with keeper.transaction():
        keeper.execute("SET LOCAL session_replication_role = replica")
        keeper.execute("DELETE FROM switchyard.job")
    # Somebody, or a clock that was set back, has the schedule come to the same tick once more.
    keeper.execute("UPDATE switchyard.schedule SET next_tick_at = %s, due_at = %s", [hourly, hourly])

    assert duty.tick(keeper, system.broker, hourly) == (0, False)
    assert jobs(system) == []
    assert stored("hourly").next_tick_at == hourly + HOUR


def test_what_dies_before_the_commit_has_made_nothing(system, hourly):
    class Died(BaseException):
        pass

    dying = system.database.dedicated("keeper")

    def die(connection, passed):
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "pass_on", die)
        with pytest.raises(Died):
            duty.tick(dying, system.broker, hourly)
    assert jobs(system) == []

    assert duty.tick(dying, system.broker, hourly) == (1, False)
    dying.close()
    assert jobs(system) == [hourly]


def test_a_job_that_cannot_be_made_is_on_record_and_holds_up_nobody(system, keeper, hourly, monkeypatch):
    switchyard.create_schedule("fine", "digest", "0 * * * *", ["x"])
    # Its code has changed since: it takes an argument now.
    keeper.execute("""UPDATE switchyard.schedule SET payload = '{"args": [1, 2, 3], "kwargs": {}}' WHERE name = 'hourly'""")

    assert duty.tick(keeper, system.broker, hourly) == (1, False)

    assert "PayloadError" in stored("hourly").error
    assert stored("hourly").next_tick_at == hourly + HOUR
    (tick,) = switchyard.schedule_ticks("hourly")
    assert (tick.job_id, "too many positional arguments" in tick.error) == (None, True)
    assert jobs(system, "fine") == [hourly]
    assert switchyard.update_schedule("hourly", args=[]).error is None


def test_an_actor_s_own_code_that_raises_holds_up_nobody(system, keeper, hourly, monkeypatch):
    def broken(message):
        raise ZeroDivisionError("user code")

    monkeypatch.setattr(system.broker, "enqueue", broken)

    assert duty.tick(keeper, system.broker, hourly) == (0, False)
    assert "ZeroDivisionError: user code" in stored("hourly").error
    assert stored("hourly").next_tick_at == hourly + HOUR


def test_without_postgres_the_whole_turn_is_another_keeper_s(system, keeper, hourly, monkeypatch):
    def away(message):
        raise LedgerUnavailable("gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.broker, "enqueue", away)
        with pytest.raises(LedgerUnavailable):
            duty.tick(keeper, system.broker, hourly)

    assert duty.tick(keeper, system.broker, hourly) == (1, False)


def test_a_schedule_that_cannot_be_read_here_is_put_off_and_the_others_go_on(system, keeper, hourly):
    switchyard.create_schedule("fine", "work", "0 * * * *")
    keeper.execute("UPDATE switchyard.schedule SET timezone = 'Mars/Olympus' WHERE name = 'hourly'")

    assert duty.tick(keeper, system.broker, hourly) == (1, False)

    assert "no time zone" in stored("hourly").error
    assert stored("hourly").due_at == hourly + timedelta(seconds=duty.PUT_OFF)
    assert jobs(system, "fine") == [hourly]


def test_a_long_list_is_made_up_for_in_turns(system, keeper, monkeypatch):
    minutely = switchyard.create_schedule("minutely", "work", "* * * * *", catch_up="all").next_tick_at
    now = minutely + timedelta(minutes=249, seconds=59)

    turns = []
    while not turns or turns[-1][1]:
        turns.append(duty.tick(keeper, system.broker, now))

    assert turns == [(100, True), (100, True), (50, False)]
    assert jobs(system, "minutely") == [minutely + timedelta(minutes=n) for n in range(250)]


def test_a_clock_that_is_set_back_and_forth_makes_each_tick_once(system, keeper, hourly):
    for hours in (0, 1, -5, 0.5, 2, 0, 3, -24, 3, 4):
        duty.tick(keeper, system.broker, hourly + hours * HOUR)

    assert jobs(system) == [hourly + n * HOUR for n in range(5)]


def test_many_schedules_at_once_are_shared_among_turns(system, keeper):
    for number in range(duty.CHUNK + 5):
        at = switchyard.create_schedule(f"s{number}", "work", "0 * * * *").next_tick_at

    assert duty.tick(keeper, system.broker, at) == (duty.CHUNK, True)
    assert duty.tick(keeper, system.broker, at) == (5, False)


# Two at a time.


def test_two_keepers_pass_each_other_by(system, keeper, hourly):
    with system.database.dedicated("other") as other:
        with other.transaction():
            assert len(schedules.due(other, ["work"], 5, hourly)) == 1
            assert duty.tick(keeper, system.broker, hourly) == (0, False)
        assert duty.tick(keeper, system.broker, hourly) == (1, False)


@pytest.mark.parametrize("first_commits", [True, False])
def test_a_tick_that_another_is_about_to_commit_is_waited_for_and_then_made_once(system, keeper, hourly, first_commits):
    with system.database.dedicated("other") as other:
        message = system.jobs.work.message_with_options(schedule="hourly", tick_at=hourly.isoformat())

        class Undone(Exception):
            pass

        try:
            with other.transaction():
                # What a periodiq beside us does.
                assert schedules.take_tick(other, "hourly", hourly, message.message_id)
                meanwhile = Meanwhile(lambda: duty.tick(keeper, system.broker, hourly))
                wait_for_lock(other, keeper.info.backend_pid)
                write.enqueue_many(other, [system.broker.new_job(message)])
                if not first_commits:
                    raise Undone
        except Undone:
            pass
        made, _ = meanwhile.result()

    assert made == (0 if first_commits else 1)
    assert jobs(system) == [hourly]
    (tick,) = switchyard.schedule_ticks("hourly")
    assert (tick.job_id == message.message_id) is first_commits


def test_many_keepers_at_once_make_each_tick_once(system):
    for number in range(8):
        switchyard.create_schedule(f"s{number}", "work", "* * * * *", catch_up="all")
    start = threading.Barrier(4)
    now = stored("s7").next_tick_at + timedelta(minutes=20)

    def keep():
        with system.database.dedicated("keeper") as connection:
            start.wait(30)
            for _ in range(30):
                duty.tick(connection, system.broker, now)

    keepers = [Meanwhile(keep) for _ in range(4)]
    for meanwhile in keepers:
        meanwhile.result(60)

    rows = system.rows("SELECT schedule, count(*), count(DISTINCT tick_at) FROM switchyard.job GROUP BY 1")
    assert len(rows) == 8
    assert all(count == distinct >= 20 for _, count, distinct in rows)


def test_a_pause_meets_a_tick_and_whoever_is_second_counts(system, keeper, hourly):
    with system.database.dedicated("other") as other, keeper.transaction():
        assert schedules.due(keeper, ["work"], 5, hourly)
        meanwhile = Meanwhile(lambda: schedules.pause(other, "hourly"))
        wait_for_lock(keeper, other.info.backend_pid)
        schedules.pass_on(keeper, [schedules.Passed("hourly", hourly, hourly + HOUR, hourly + HOUR, None)])
    assert meanwhile.result()

    assert stored("hourly").paused_at is not None
    assert stored("hourly").due_at is None
    assert duty.tick(keeper, system.broker, hourly + 2 * HOUR) == (0, False)


def test_a_running_keeper_makes_the_job_within_a_second_of_its_tick(system):
    system.start(threads=1)
    # It knows of a tick hours away, and learns of this one from its look.
    wait_until(lambda: stored("digest"), 30, "it has declared its own")
    switchyard.create_schedule("fast", "work", "* * * * * *")

    wait_until(lambda: len(jobs(system, "fast")) >= 3, 15, "some ticks have a job")
    late = system.rows(
        "SELECT extract(epoch FROM min(made_at - tick_at))::float8, min(made_at - tick_at) >= '0' FROM switchyard.tick"
    )

    assert late[0][0] < 1.0
    assert late[0][1]


@pytest.mark.parametrize("name", ["due_schedules", "until_next_tick", "next_due"])
def test_what_every_keeper_asks_is_answered_by_an_index(ledger, name):
    ledger.execute(
        "INSERT INTO switchyard.schedule (name, actor, payload, expression, timezone, catch_up, window_seconds, jitter_seconds, source,"
        " next_tick_at, due_at) SELECT 's' || i, 'a', '{}', '@daily', 'UTC', 'skip', 0, 0, 'created', now(), now()"
        " FROM generate_series(1, 2000) AS i"
    )
    ledger.execute("ANALYZE switchyard.schedule")
    parameters = {"actors": ["a"], "now": datetime.now(UTC), "limit": 20}

    plan = "\n".join(line for (line,) in generic_plan(ledger, SQL[name], parameters))

    assert "schedule_due" in plan
    assert "Seq Scan on schedule" not in plan
