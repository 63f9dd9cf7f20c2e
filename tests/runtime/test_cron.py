"""Cron expressions against calendars: one that looks at every day and minute, and Debian's cron as another library knows it."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errors import CronError
from runtime.cron import Cron

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
ZONES = ("UTC", BERLIN, NEW_YORK, LORD_HOWE, "America/Sao_Paulo", "Asia/Kathmandu", "Africa/Casablanca", "Pacific/Apia")
BEGIN, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
MONTHS = ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun"]


# The calendar: slow, literal, and made of other parts than what it is held against.


def members(text: str, least: int, most: int, names: list[str] = []) -> set[int]:  # noqa: B006
    """The numbers that a field stands for, one by one."""

    def number(word: str) -> int:
        return names.index(word) if word in names else int(word)

    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        low, high = (least, most) if span == "*" else (number(first), number(last or first))
        # A week that ends on Sunday.
        high = 7 if (last, high) == ("sun", 0) else high
        found |= {value for value in range(low, high + 1) if (value - low) % int(step or 1) == 0}
    return found


class Calendar:
    """What an expression means, day by day and minute by minute."""

    def __init__(self, expression: str) -> None:
        fields = expression.split()
        seconds, minutes, hours, self.days, months, self.weekdays = fields if len(fields) == 6 else ["0", *fields]
        self.even = any(field[0] == "*" for field in (seconds, minutes, hours))
        self.months = members(months, 1, 12, MONTHS)
        self.numbers = members(",".join(part for part in self.days.split(",") if part != "L") or "99", 1, 31)
        self.names = {value % 7 for value in members(self.weekdays, 0, 6, WEEKDAYS)}
        self.times = [
            time(hour, minute, second)
            for hour in sorted(members(hours, 0, 23))
            for minute in sorted(members(minutes, 0, 59))
            for second in sorted(members(seconds, 0, 59))
        ]

    def is_day(self, day: date) -> bool:
        last = calendar.monthrange(day.year, day.month)[1]
        numbered = day.day in self.numbers or ("L" in self.days.split(",") and day.day == last)
        named = (day.weekday() + 1) % 7 in self.names
        stars = self.days.startswith("*") or self.weekdays.startswith("*")
        return day.month in self.months and ((numbered and named) if stars else (numbered or named))

    def ticks(self, begin: datetime, end: datetime, zone: str) -> list[datetime]:
        """Every tick after ``begin`` up to ``end``."""
        found, tz = set(), ZoneInfo(zone)
        day = begin.date() - timedelta(days=2)
        while day <= end.date() + timedelta(days=2):
            if self.is_day(day):
                found |= set(self.of_day(day, tz))
            day += timedelta(days=1)
        return sorted(moment for moment in found if begin < moment <= end)

    def first(self, begin: datetime, zone: str) -> datetime:
        """The first tick after ``begin``."""
        tz, day = ZoneInfo(zone), begin.date() - timedelta(days=2)
        while True:
            if self.is_day(day):
                # A day's last moment may come after the next one's first, where clocks change at midnight.
                both = [time for near in (day, day + timedelta(days=1)) if self.is_day(near) for time in self.of_day(near, tz)]
                later = [moment for moment in both if moment > begin]
                if later:
                    return min(later)
            day += timedelta(days=1)

    def of_day(self, day: date, zone: ZoneInfo) -> list[datetime]:
        return [moment for clock in self.times for moment in self.moments(datetime.combine(day, clock), zone)]

    def moments(self, wall: datetime, zone: ZoneInfo) -> list[datetime]:
        """When a clock on the wall shows this, or is past it for the first time."""
        shown = [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
        real = [moment for moment in shown if moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall]
        if self.even:
            return real
        if real:
            return real[:1]
        # Skipped: minute by minute until the clock has passed it.
        moment = min(shown).replace(second=0)
        while moment.astimezone(zone).replace(tzinfo=None, fold=0) < wall:
            moment += timedelta(minutes=1)
        return [moment]


def ours(expression: str, begin: datetime, end: datetime, zone: str) -> list[datetime]:
    return list(Cron(expression, zone).ticks(begin, end))


TEN_YEARS = [
    ("0 0 * * 0", "UTC"),
    ("0 0 * * 7", BERLIN),
    ("@weekly", NEW_YORK),
    ("0 0 * * sun", "UTC"),
    ("30 9 * * sat-sun", BERLIN),
    ("0 12 * * fri-sun", NEW_YORK),
    ("0 0 29 2 *", "UTC"),
    ("59 23 29 feb *", BERLIN),
    ("0 8 * * *", BERLIN),
    ("30 2 * * *", BERLIN),
    ("30 1 * * *", NEW_YORK),
    ("15 2 * * *", LORD_HOWE),
    ("0 0 * * *", "America/Sao_Paulo"),
    ("0 6 * * 1", "UTC"),
    ("0 0 13 * 5", BERLIN),
    ("0 0 */2 * 1", "UTC"),
    ("0 0 31 * *", "UTC"),
    ("0 0 L * *", BERLIN),
    ("0 0 1,L 2,12 *", "UTC"),
    ("0 9-17/4 1-7 jan-jun/2 mon", NEW_YORK),
    ("45 30 2 * * 0", BERLIN),
    ("*/30 2 * * *", BERLIN),
    ("0 */6 * * *", LORD_HOWE),
]
NAMED = {"@weekly": "0 0 * * 0"}


@pytest.mark.parametrize(("expression", "zone"), TEN_YEARS)
def test_ten_years_are_those_of_the_calendar(expression, zone):
    expected = Calendar(NAMED.get(expression, expression)).ticks(BEGIN, END, zone)

    assert ours(expression, BEGIN, END, zone) == expected
    assert len(expected) >= 2


NIGHTS = [
    (BERLIN, datetime(2026, 3, 28, 12, tzinfo=UTC)),
    (BERLIN, datetime(2026, 10, 24, 12, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 3, 7, 18, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 10, 31, 18, tzinfo=UTC)),
    # Half an hour only, and in the other half of the year.
    (LORD_HOWE, datetime(2026, 4, 4, 3, tzinfo=UTC)),
    (LORD_HOWE, datetime(2026, 10, 3, 3, tzinfo=UTC)),
    # Midnight is what is skipped.
    ("America/Sao_Paulo", datetime(2018, 11, 3, 15, tzinfo=UTC)),
    # Twice within a month.
    ("Africa/Casablanca", datetime(2026, 2, 14, 12, tzinfo=UTC)),
    # A whole day is skipped.
    ("Pacific/Apia", datetime(2011, 12, 29, 12, tzinfo=UTC)),
]
DENSE = [
    "* * * * *",
    "*/7 * * * *",
    "*/10 30 * * * *",
    "0-59/5 0-23 * * *",
    "5,35 1-3 * * *",
    "*/20 0 * * *",
    "0 * * * *",
    "0 */2 * * *",
    "*/15 1-3 * * *",
]


@pytest.mark.parametrize("expression", DENSE)
@pytest.mark.parametrize(("zone", "noon"), NIGHTS, ids=[f"{zone}-{noon:%Y-%m}" for zone, noon in NIGHTS])
def test_the_nights_on_which_clocks_change_are_those_of_the_calendar(expression, zone, noon):
    until = noon + timedelta(days=2)

    assert ours(expression, noon, until, zone) == Calendar(expression).ticks(noon, until, zone)


def test_a_time_that_is_skipped_comes_right_after_the_gap_and_one_that_is_shown_twice_once():
    spring = ours("0,30 2 * * *", datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 12, tzinfo=UTC), BERLIN)
    autumn = ours("30 2 * * *", datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 12, tzinfo=UTC), BERLIN)

    # 03:00 summer time is the first moment after the gap, for both times that were skipped.
    assert spring == [datetime(2026, 3, 29, 1, 0, tzinfo=UTC)]
    # The first of the two half past twos.
    assert autumn == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC)]


@pytest.mark.parametrize(("zone", "noon"), NIGHTS, ids=[f"{zone}-{noon:%Y-%m}" for zone, noon in NIGHTS])
def test_every_ten_minutes_stays_every_ten_minutes(zone, noon):
    ticks = ours("*/10 * * * *", noon, noon + timedelta(days=2), zone)

    assert {later - earlier for earlier, later in pairwise(ticks)} == {timedelta(minutes=10)}


def spans(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    # Of two different numbers: cronsim takes 5-5/1 for 5-59/1.
    ranges = st.tuples(number, number).filter(lambda ends: ends[0] != ends[1]).map(sorted)
    plain = number.map(str)
    ranged = ranges.map(lambda ends: f"{ends[0]}-{ends[1]}")
    stepped = ranges.flatmap(lambda ends: st.integers(1, ends[1] - ends[0] + 1).map(lambda step: f"{ends[0]}-{ends[1]}/{step}"))
    starred = st.integers(1, most - least + 1).map(lambda step: f"*/{step}")
    one = st.one_of(plain, ranged, stepped, starred, st.just("*"))
    return st.one_of(st.just("*"), one, st.lists(one, min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.tuples(
    st.integers(0, 59).map(str) | spans(0, 59),
    st.integers(0, 23).map(str) | spans(0, 23),
    spans(1, 31) | st.sampled_from(["L", "1,L", "29", "30"]),
    spans(1, 12) | st.sampled_from(["feb", "jan-mar", "2,dec"]),
    spans(0, 6) | st.sampled_from(["7", "0", "sun", "fri-sun", "mon-fri", "5-7"]),
).map(" ".join)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


@settings(max_examples=200)
@given(EXPRESSIONS, MOMENTS, st.sampled_from(ZONES))
@example("0 0 * * 0", datetime(2026, 11, 28, tzinfo=UTC), "UTC")
@example("30 2 29 2 *", datetime(2023, 1, 1, tzinfo=UTC), BERLIN)
def test_any_expression_agrees_with_the_calendar_on_what_comes_next(expression, moment, zone):
    try:
        cron = Cron(expression, zone)
    except CronError:
        # The only reason that there can be: no day of 28 years.
        assert not any(Calendar(expression).is_day(date(2000, 1, 1) + timedelta(days=n)) for n in range(366 * 28))
        return

    assert cron.after(moment) == Calendar(expression).first(moment, zone)


@settings(max_examples=250)
@given(EXPRESSIONS, MOMENTS, st.sampled_from(["UTC", BERLIN, NEW_YORK]))
def test_another_evaluation_of_cron_agrees(expression, moment, zone):
    try:
        cron = Cron(expression, zone)
    except CronError:
        return
    moment = moment.replace(microsecond=0)
    local = moment.astimezone(ZoneInfo(zone))
    other = CronSim(expression.replace("fri-sun", "5-7"), local)

    # It gives up after fifty years without any.
    assert [cron.after(moment)] == [next(other).astimezone(UTC)]


def test_a_tick_is_later_than_the_moment_it_is_asked_for():
    cron = Cron("0 8 * * *")
    eight = datetime(2026, 1, 1, 8, tzinfo=UTC)

    assert cron.after(eight - timedelta(microseconds=1)) == eight
    assert cron.after(eight) == eight + timedelta(days=1)
    assert list(cron.ticks(eight, eight)) == []


def test_a_schedule_ends_where_the_calendar_does():
    assert Cron("0 0 1 1 *").after(datetime(9999, 6, 1, tzinfo=UTC)) is None
    assert Cron("* * * * *").after(datetime.max.replace(tzinfo=UTC)) is None


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        Cron("* * * * *").after(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("@yearly", "0 0 1 1 *"), ("@annually", "0 0 1 JAN *"), ("@monthly", "0 0 1 * *"), ("@weekly", "0 0 * * Sun"),
        ("@daily", "0 0 * * *"), ("@midnight", "0  0\t* * *"), ("@hourly", "0 * * * *"), ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * * sat-sun", "0 0 * * 6,7"), ("0 0 8 * * *", "0 8 * * *"), ("1-10/3 * * * *", "1,4,7,10 * * * *"),
    ],
)  # fmt: skip
def test_there_are_several_ways_to_say_it(expression, same):
    assert Cron(expression).meaning == Cron(same).meaning


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("* * * * * * *", "has 7 fields"),
        ("60 * * * *", "minute 60 is out of range: 0 to 59"),
        ("* 24 * * *", "hour 24 is out of range"),
        ("* * 0 * *", "day of the month 0 is out of range: 1 to 31"),
        ("* * * 13 *", "month 13 is out of range"),
        ("* * * * 8", "day of the week 8 is out of range: 0 to 7"),
        ("60 * * * * *", "second 60 is out of range"),
        ("a * * * *", "minute 'a' is no number"),
        ("* * * foo *", "month 'foo' is no number or name"),
        ("mon * * * *", "minute 'mon' is no number"),
        ("* * * * fri-mon", "runs backwards"),
        ("* * * * 6-0", "runs backwards"),
        ("5/10 * * * *", "has a step but no range; write 5-59/"),
        ("*/0 * * * *", "a step is a number from 1"),
        ("*/x * * * *", "a step is a number from 1"),
        ("*/-5 * * * *", "a step is a number from 1"),
        ("*/90 * * * *", "longer than its range of 60"),
        (",5 * * * *", "minute '' is no number"),
        ("-5 * * * *", "minute '' is no number"),
        ("٣ * * * *", "is no number"),
        ("0 0 31 2 *", "there is no day 31 in month 2"),
        ("0 0 30,31 feb *", "would never run"),
        ("0 0 31 4,6,9,11 *", "would never run"),
        ("@reboot", "is no name that is known"),
        ("1," * 300 + "1 * * * *", "longer than 400 characters"),
    ],
)
def test_nonsense_is_refused_with_the_field_and_the_reason(expression, says):
    with pytest.raises(CronError, match="cron expression") as caught:
        Cron(expression)

    assert says in str(caught.value)
    assert isinstance(caught.value, ValueError)


@given(st.text(alphabet="0123456789*/,-L@ abcdefghijklmnoprstuvy\t\x00\ud800٣", max_size=40) | st.text(max_size=30))
def test_any_text_is_an_expression_or_refused_as_none(text):
    try:
        cron = Cron(text)
    except CronError:
        return

    assert cron.after(BEGIN) is not None


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "Europe", "../etc/passwd", "/etc/localtime", None, 5])
def test_what_is_no_time_zone_is_refused(zone):
    with pytest.raises(CronError, match="is no time zone"):
        Cron("0 8 * * *", zone)


def test_a_date_that_comes_only_on_some_weekday_is_not_taken_for_impossible():
    # Begins with a star, so both have to hold: the first of February, if that is a Monday.
    cron = Cron("0 0 */31 2 1")

    assert cron.after(datetime(2021, 2, 1, tzinfo=UTC)) == datetime(2027, 2, 1, tzinfo=UTC)
