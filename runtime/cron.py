"""Cron expressions: which moments they name. Pure: no clock is read here, nothing is stored, nothing waits.

    minute hour day-of-month month day-of-week            0 8 * * mon-fri
    second minute hour day-of-month month day-of-week     */10 * * * * *

Each field is ``*``, a number, a name (``jan``, ``sun``), a range ``a-b``, a step ``*/n`` or ``a-b/n``, or a list of these with commas.
Sunday is 0 and 7. ``L`` among the days of the month is its last one. With six fields the seconds come first, from the smallest unit to
the largest, as in Quartz, Spring, cron-parser (BullMQ) and cronsim; croniter's default is last. ``@yearly`` (``@annually``),
``@monthly``, ``@weekly``, ``@daily`` (``@midnight``) and ``@hourly`` stand for themselves.

Days are Vixie cron's: if day-of-month and day-of-week are both restricted, either suffices; if one of them begins with ``*``, both have to
hold. So are the nights on which clocks change:

    even          an expression whose second, minute or hour begins with ``*`` goes by time that passes: ten minutes are ten minutes
    wall clock    any other goes by the wall: a time that the clock skips comes at the first moment after the gap, one that it shows
                  twice comes the first time; so each comes once
"""

from __future__ import annotations

from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from errors import CronError

NAMED: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: A date that does not come within so many years never does: 29 February on a given weekday is up to 40 years away.
LONGEST_YEARS: Final = 100

#: Longest expression, in characters: all 60 seconds, one by one, take 170.
MAX_LENGTH: Final = 400

_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What may stand in a field."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()


_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SECONDS: Final = _Kind("second", 0, 59)
_MINUTES: Final = _Kind("minute", 0, 59)
_HOURS: Final = _Kind("hour", 0, 23)
_DAYS: Final = _Kind("day of the month", 1, 31)
_MONTH: Final = _Kind("month", 1, 12, _MONTHS)
_WEEKDAY: Final = _Kind("day of the week", 0, 7, _WEEKDAYS)


class Cron:
    """One expression in one time zone.

    Parameters:
        expression: as above; in any case, with any white space between its fields.
        timezone: an IANA name such as ``Europe/Berlin``.

    Raises:
        CronError: the expression, or the zone, cannot be read, or names a date that never comes, such as 31 February.
    """

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        if not isinstance(expression, str):
            raise CronError(repr(expression)[:50], "is no text; write for example '0 8 * * *'")
        self.expression = " ".join(expression.split())
        if len(self.expression) > MAX_LENGTH:
            raise CronError(self.expression[:50] + "…", f"is longer than {MAX_LENGTH} characters")
        self.timezone = timezone
        #: The time zone that it is read in.
        self.zone = _zone(self.expression, timezone)
        fields = self._fields()
        seconds, minutes, hours, days, months, weekdays = fields
        self._last_day = any(part == "l" for part in days.split(","))
        plain_days = ",".join(part for part in days.split(",") if part != "l")
        self._seconds = self._parsed(_SECONDS, seconds)
        self._minutes = self._parsed(_MINUTES, minutes)
        self._hours = self._parsed(_HOURS, hours)
        self._days = frozenset(self._parsed(_DAYS, plain_days) if plain_days or not self._last_day else ())
        self._months = frozenset(self._parsed(_MONTH, months))
        self._weekdays = frozenset(day % 7 for day in self._parsed(_WEEKDAY, weekdays))
        self._both_days = days.startswith("*") or weekdays.startswith("*")
        #: Whether it goes by time that passes, and not by the wall clock.
        self.even = any(field.startswith("*") for field in (seconds, minutes, hours))
        self._first_time = time(self._hours[0], self._minutes[0], self._seconds[0])
        if self._day_after(date(1999, 12, 31)) is None:
            raise CronError(self.expression, f"there is no day {days} in month {months}: it would never run")

    def __repr__(self) -> str:
        return f"Cron({self.expression!r}, {self.timezone!r})"

    @property
    def meaning(self) -> tuple[object, ...]:
        """Equal of two expressions that match the same times on a clock that never changes."""
        days = self._days, self._last_day, self._months, self._weekdays, self._both_days
        return self._seconds, self._minutes, self._hours, *days

    def after(self, moment: datetime) -> datetime | None:
        """The first tick later than ``moment`` (aware), in UTC; None: there is none before the calendar ends.

        Raises:
            ValueError: ``moment`` has no time zone.
        """
        if moment.utcoffset() is None:
            raise ValueError(f"{moment.isoformat()} has no time zone")
        try:
            utc = moment.astimezone(UTC)
            # Not a subclass with an arithmetic of its own, such as pendulum's.
            start = datetime.combine(date(utc.year, utc.month, utc.day), utc.time(), UTC)
            return self._evenly_after(start) if self.even else self._on_the_wall_after(start)
        except OverflowError:
            # Beyond the year 9999.
            return None

    def ticks(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Every tick later than ``after``, up to and with ``until``, in order."""
        tick = self.after(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.after(tick)

    # By the wall clock: to each time on it belongs one moment.

    def _on_the_wall_after(self, start: datetime) -> datetime | None:
        wall: datetime | None = start.astimezone(self.zone).replace(tzinfo=None, fold=0)
        while wall is not None and (wall := self._wall_after(wall)) is not None:
            tick = self._moment_of(wall)
            # Not later: the clock shows for the second time what it has shown.
            if tick > start:
                return tick
        return None

    def _moment_of(self, wall: datetime) -> datetime:
        """When the wall clock shows this for the first time; if it skips it, the first moment after the gap."""
        first = wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        if first.astimezone(self.zone).replace(tzinfo=None, fold=0) == wall:
            return first
        # In a gap the two folds lie on either side of the change.
        return self._change(wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC), first)

    # By time that passes: a moment is a tick if the wall clock shows a matching time at it.

    def _evenly_after(self, start: datetime) -> datetime | None:
        moment, offset = start, self._offset(start)
        while (wall := self._wall_after((moment + offset).replace(tzinfo=None))) is not None:
            tick = wall.replace(tzinfo=UTC) - offset
            horizon = min(tick, moment + _DAY)
            if self._offset(horizon) != offset:
                # The clocks change in between: go on from there, by the new time.
                change = self._change(moment, horizon)
                moment, offset = change - _SECOND, self._offset(change)
            elif tick <= horizon:
                return tick
            else:
                # Far away: look again from two days before it, by the time that is in force then.
                moment = max(horizon, tick - 2 * _DAY)
                offset = self._offset(moment)
        return None

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset

    def _change(self, before: datetime, after: datetime) -> datetime:
        """The moment at which the clocks change, of two moments around one change."""
        before, after = before.replace(microsecond=0), after.replace(microsecond=0)
        offset = self._offset(before)
        while after - before > _SECOND:
            middle = before + timedelta(seconds=(after - before) // _SECOND // 2)
            if self._offset(middle) == offset:
                before = middle
            else:
                after = middle
        return after

    # The calendar, without zones.

    def _wall_after(self, wall: datetime) -> datetime | None:
        """The first matching time on a clock that never changes."""
        wall = wall.replace(microsecond=0) + _SECOND
        day: date | None = wall.date()
        if day is not None and self._is_day(day) and (found := self._time_from(wall.time())) is not None:
            return datetime.combine(day, found)
        day = self._day_after(wall.date())
        return None if day is None else datetime.combine(day, self._first_time)

    def _time_from(self, least: time) -> time | None:
        for hour in self._hours[bisect_left(self._hours, least.hour) :]:
            from_minute = least.minute if hour == least.hour else 0
            for minute in self._minutes[bisect_left(self._minutes, from_minute) :]:
                from_second = least.second if (hour, minute) == (least.hour, least.minute) else 0
                position = bisect_left(self._seconds, from_second)
                if position < len(self._seconds):
                    return time(hour, minute, self._seconds[position])
        return None

    def _day_after(self, day: date) -> date | None:
        last_year = min(day.year + LONGEST_YEARS, date.max.year - 1)
        day += _DAY
        while day.year <= last_year:
            if day.month not in self._months:
                # The first of the next month.
                day = (day.replace(day=28) + timedelta(days=4)).replace(day=1)
            elif self._is_day(day):
                return day
            else:
                day += _DAY
        return None

    def _is_day(self, day: date) -> bool:
        if day.month not in self._months:
            return False
        by_month = day.day in self._days or (self._last_day and day.day == monthrange(day.year, day.month)[1])
        by_week = day.isoweekday() % 7 in self._weekdays
        return (by_month and by_week) if self._both_days else (by_month or by_week)

    # Reading the expression.

    def _fields(self) -> list[str]:
        text = self.expression.lower()
        if text.startswith("@"):
            if text not in NAMED:
                raise CronError(self.expression, f"is no name that is known; there are {', '.join(NAMED)}")
            text = NAMED[text]
        fields = text.split()
        if len(fields) == 5:
            fields.insert(0, "0")
        if len(fields) != 6:
            raise CronError(
                self.expression,
                f"has {len(fields)} fields; write five (minute, hour, day of the month, month, day of the week), or the second and these",
            )
        return fields

    def _parsed(self, kind: _Kind, text: str) -> tuple[int, ...]:
        found: set[int] = set()
        for part in text.split(","):
            span, slash, step = part.partition("/")
            first, last = self._span(kind, span, stepped=bool(slash))
            width = self._step(kind, part, step, last - first + 1) if slash else 1
            found.update(range(first, last + 1, width))
        return tuple(sorted(found))

    def _span(self, kind: _Kind, text: str, *, stepped: bool) -> tuple[int, int]:
        if text == "*":
            # 7 is Sunday once more.
            return kind.least, min(kind.most, 6) if kind is _WEEKDAY else kind.most
        start, dash, end = text.partition("-")
        first = self._number(kind, start)
        if not dash:
            if stepped:
                raise CronError(
                    self.expression, f"{kind.name} {text}/… has a step but no range; write {text}-{kind.most}/… or */…"
                )
            return first, first
        last = self._number(kind, end)
        if kind is _WEEKDAY and last == 0 and first > 0 and end == "sun":
            last = 7
        if last < first:
            raise CronError(self.expression, f"{kind.name} {text} runs backwards; write two ranges with a comma")
        return first, last

    def _number(self, kind: _Kind, text: str) -> int:
        if text in kind.names:
            return kind.names.index(text) + kind.least
        if not (text.isascii() and text.isdigit()):
            raise CronError(self.expression, f"{kind.name} {text!r} is no number{' or name' if kind.names else ''}")
        value = int(text)
        if not kind.least <= value <= kind.most:
            raise CronError(self.expression, f"{kind.name} {value} is out of range: {kind.least} to {kind.most}")
        return value

    def _step(self, kind: _Kind, part: str, text: str, width: int) -> int:
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise CronError(self.expression, f"{kind.name} {part}: a step is a number from 1")
        if int(text) > width:
            raise CronError(self.expression, f"{kind.name} {part}: the step is longer than its range of {width}")
        return int(text)


def _zone(expression: str, name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        raise CronError(
            expression, f"{name!r:.60} is no time zone; write an IANA name such as 'UTC' or 'Europe/Berlin'"
        ) from None
