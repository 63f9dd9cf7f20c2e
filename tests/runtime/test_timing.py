"""What becomes of ticks: on time, missed, made up for; the same delay for the same tick; and what periodiq hands over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pendulum
import periodiq
import pytest

from errors import CronError
from runtime import timing
from runtime.cron import Cron
from runtime.timing import CHUNK, ON_TIME, Timing, timing_of

BEGIN = datetime(2026, 3, 2, 10, tzinfo=UTC)  # a Monday
HOUR = timedelta(hours=1)


def hours(*numbers: float) -> list[datetime]:
    return [BEGIN + number * HOUR for number in numbers]


@pytest.mark.parametrize("catch_up", timing.POLICIES)
def test_a_tick_acted_on_within_a_minute_is_made_whatever_the_policy(catch_up):
    caught = Timing("0 * * * *", catch_up=catch_up, window=0).catch("s", BEGIN, BEGIN + timedelta(seconds=ON_TIME))

    assert (caught.ticks, caught.next, caught.missed) == (hours(0), hours(1)[0], None)


@pytest.mark.parametrize(
    ("catch_up", "made", "missed"),
    [("skip", [], 0), ("last", [5], 0), ("all", [0, 1, 2, 3, 4, 5], None)],
)
def test_what_was_missed_is_the_policy_s(catch_up, made, missed):
    caught = Timing("0 * * * *", catch_up=catch_up).catch("s", BEGIN, BEGIN + 5.5 * HOUR)

    assert caught.ticks == hours(*made)
    assert caught.next == BEGIN + 6 * HOUR
    assert caught.missed == (None if missed is None else BEGIN)


@pytest.mark.parametrize(("catch_up", "made"), [("skip", []), ("last", [5]), ("all", [4, 5])])
def test_nothing_is_made_up_for_beyond_the_window(catch_up, made):
    within = Timing("0 * * * *", catch_up=catch_up, window=1.6 * HOUR)
    without = Timing("0 * * * *", catch_up=catch_up, window=0.4 * HOUR)

    assert within.catch("s", BEGIN, BEGIN + 5.5 * HOUR).ticks == hours(*made)
    assert without.catch("s", BEGIN, BEGIN + 5.5 * HOUR).ticks == []
    assert without.catch("s", BEGIN, BEGIN + 5.5 * HOUR).next == BEGIN + 6 * HOUR


@pytest.mark.parametrize(("catch_up", "made"), [("skip", [5]), ("last", [5]), ("all", [0, 1, 2, 3, 4, 5])])
def test_a_tick_that_is_on_time_stands_for_those_before_it(catch_up, made):
    caught = Timing("0 * * * *", catch_up=catch_up).catch("s", BEGIN, BEGIN + 5 * HOUR + timedelta(seconds=3))

    assert caught.ticks == hours(*made)
    assert caught.next == BEGIN + 6 * HOUR


def test_months_of_seconds_are_given_up_without_counting_them(monkeypatch):
    calls = 0
    after = Cron.after

    def counting(cron, moment):
        nonlocal calls
        calls += 1
        return after(cron, moment)

    monkeypatch.setattr(Cron, "after", counting)
    months = timedelta(days=100)
    caught = {policy: Timing("* * * * * *", catch_up=policy).catch("s", BEGIN, BEGIN + months) for policy in ("skip", "last")}
    rare = Timing("0 0 1 * *", catch_up="last", window=months).catch("s", BEGIN, BEGIN + timedelta(days=50))

    # A minute of it counts as on time.
    assert len(caught["skip"].ticks) == len(caught["last"].ticks) == ON_TIME + 1
    assert rare.ticks == [datetime(2026, 4, 1, tzinfo=UTC)]
    assert calls < 1_000


def test_what_is_made_up_for_comes_in_turns_and_in_order():
    schedule = Timing("* * * * *", catch_up="all")
    first, ticks, turns = BEGIN, [], 0
    now = BEGIN + timedelta(minutes=3 * CHUNK - 1, seconds=90)
    while first <= now:
        caught = schedule.catch("s", first, now)
        assert len(caught.ticks) <= CHUNK
        ticks += caught.ticks
        first = caught.next or now
        turns += 1

    assert ticks == [BEGIN + timedelta(minutes=n) for n in range(3 * CHUNK + 1)]
    assert turns == 4


def test_the_jitter_of_a_tick_is_always_the_same_and_spreads():
    schedule = Timing("0 * * * *", jitter=600)
    again = Timing("0 * * * *", jitter=timedelta(minutes=10))
    local = BEGIN.astimezone(ZoneInfo("Asia/Tokyo"))

    delays = [(schedule.due("s", tick) - tick).total_seconds() for tick in hours(*range(200))]

    assert schedule.due("s", BEGIN) == again.due("s", BEGIN) == schedule.due("s", local)
    assert schedule.due("s", BEGIN) != schedule.due("t", BEGIN)
    assert all(0 <= delay < 600 for delay in delays)
    assert min(delays) < 60
    assert max(delays) > 540
    assert 240 < sum(delays) / 200 < 360
    assert Timing("0 * * * *").due("s", BEGIN) == BEGIN


def test_a_tick_waits_for_its_jitter_and_is_on_time_after_it():
    schedule = Timing("0 * * * *", jitter=3_000)
    due = schedule.due("s", BEGIN)
    assert due > BEGIN + timedelta(seconds=ON_TIME)

    assert schedule.catch("s", BEGIN, due - timedelta(seconds=1)) == ([], BEGIN, None)
    assert schedule.catch("s", BEGIN, due + timedelta(seconds=ON_TIME)).ticks == hours(0)


def test_a_clock_that_was_set_back_makes_nothing_again():
    schedule = Timing("0 * * * *", catch_up="all")

    assert schedule.catch("s", BEGIN, BEGIN - 5 * HOUR) == ([], BEGIN, None)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (Timing("61 * * * *"), "minute 61"),
        (Timing("0 0 31 2 *"), "would never run"),
        (Timing("@daily", "Nowhere/Here"), "no time zone"),
        (Timing("@daily", catch_up="some"), "write 'skip', 'last' or 'all'"),
        (Timing("@daily", catch_up=["all"]), "write 'skip', 'last' or 'all'"),
        (Timing("@daily", window=-1), "window=-1"),
        (Timing("@daily", window=float("nan")), "window=nan"),
        (Timing("@daily", window="1 day"), "window='1 day'"),
        (Timing("@daily", jitter=True), "jitter=True"),
        (Timing("@daily", jitter=timedelta(days=-1)), "jitter="),
        (Timing("@daily", jitter=timedelta(days=400)), "from 0 to 366 days"),
        (Timing("@daily", args="eu"), "args='eu'"),
        (Timing("@daily", kwargs=["eu"]), "kwargs=['eu']"),
        (Timing(5), "is no text"),
    ],
)
def test_nonsense_is_refused_when_it_is_checked(made, says):
    with pytest.raises(CronError) as caught:
        made.check()

    assert says in str(caught.value)


# periodiq.


def test_it_answers_what_periodiq_asks():
    schedule = Timing("30 2 * * sun", "Europe/Berlin")
    sunday = pendulum.datetime(2026, 10, 25, 2, 30, 15, tz="Europe/Berlin", fold=0)

    assert schedule.validate(sunday)
    assert not schedule.validate(sunday.add(minutes=1))
    # The clock shows it for the second time.
    assert not schedule.validate(sunday.add(hours=1))
    following = schedule.next_valid_date(sunday)
    assert following == datetime(2026, 11, 1, 1, 30, tzinfo=UTC)
    # What periodiq does with it.
    assert (following - sunday).total_seconds() > 0
    assert following.tzinfo == sunday.tzinfo
    assert str(schedule) == "30 2 * * sun"


def test_it_answers_periodiq_s_own_kind_of_time_also_where_it_goes_by_time_that_passes():
    schedule = Timing("* * * * *", "Europe/Berlin")
    now = pendulum.datetime(2026, 10, 25, 2, 30, 15, tz="Europe/Berlin")

    assert schedule.validate(now)
    assert schedule.next_valid_date(now) - now == timedelta(seconds=45)
    assert type(schedule.cron.after(now)) is datetime


def test_a_minute_with_several_ticks_is_answered_by_one_that_has_come():
    schedule = Timing("*/20 * * * * *")
    minute = BEGIN.replace(second=0)

    assert schedule.tick_in_minute(minute.replace(second=45)) == minute.replace(second=40)
    assert Timing("40 * * * * *").tick_in_minute(minute.replace(second=5)) == minute.replace(second=40)
    assert schedule.next_valid_date(minute.replace(second=5)) == minute + timedelta(minutes=1)
    assert Timing("0 9 * * *").tick_in_minute(minute) is None


def test_a_date_without_a_zone_is_taken_for_the_schedule_s_own():
    schedule = Timing("0 8 * * *", "America/New_York")

    assert schedule.validate(datetime(2026, 7, 1, 8, 0))
    assert schedule.next_valid_date(datetime(2026, 7, 1, 8, 0)) == datetime(2026, 7, 2, 8, 0)


@pytest.mark.parametrize(
    "text",
    [
        "0 8 * * *",
        "@weekly",
        "0 0 * * 0",
        "0 0 * * 7",
        "0 0 * * sun",
        "*/5 9-17 * * mon-fri",
        "0 0 29 2 *",
        "0 0 13 * 5",
        "* * * * *",
    ],
)
def test_periodiq_s_own_schedule_means_what_is_written_and_not_what_it_computes(text):
    ours, theirs = timing_of(text), timing_of(periodiq.cron(text))

    assert ours.cron.meaning == theirs.cron.meaning
    assert theirs.timezone == "UTC"
    assert theirs.expression == text


def test_periodiq_s_schedule_may_have_been_put_together_by_hand():
    spec = periodiq.cron("0 8 * * *").replace(h=[9], dow=[0, 7])

    made = timing_of(spec)

    assert made.cron.expression == "0 9 * * 0"
    assert made.cron.after(BEGIN) == datetime(2026, 3, 8, 9, tzinfo=UTC)


def test_periodiq_joins_days_by_or_also_where_one_begins_with_a_star():
    made = timing_of(periodiq.cron("0 0 */2 * 1"))

    assert made.cron.after(datetime(2026, 3, 1, tzinfo=UTC)) == datetime(2026, 3, 2, tzinfo=UTC)
    assert made.cron.after(datetime(2026, 3, 2, tzinfo=UTC)) == datetime(2026, 3, 3, tzinfo=UTC)


@pytest.mark.parametrize("value", [5, object(), ["0 8 * * *"], True])
def test_what_is_no_schedule_is_refused(value):
    with pytest.raises(CronError, match="is no schedule"):
        timing_of(value)
