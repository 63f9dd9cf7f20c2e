"""What ``periodic=`` takes: when a schedule's ticks are, with what arguments, and what becomes of the ticks that were missed.

    skip    a missed tick is gone
    last    of the missed ticks the latest is made up for
    all     every missed tick is made up for, in order

A tick is *missed* when nobody was there to act on it within ``ON_TIME``. What was missed within the ``window`` is the policy's, what is
older is gone. Pure: whoever asks says what time it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from math import isfinite
from typing import Any, Final, Literal, NamedTuple, cast

from errors import CronError
from runtime.cron import Cron

CatchUp = Literal["skip", "last", "all"]
POLICIES: Final = ("skip", "last", "all")
#: How far back catching up goes unless told otherwise, in seconds: a night, a day's work on a server.
DEFAULT_WINDOW: Final = 86_400.0
#: A tick acted on within so many seconds was not missed: a worker's restart takes some.
ON_TIME: Final = 60.0
#: Longest window and jitter, in seconds.
LONGEST: Final = 366 * 86_400.0
#: Most ticks that one turn makes up for.
CHUNK: Final = 100

_MINUTE: Final = timedelta(minutes=1)
_INSTANT: Final = timedelta(microseconds=1)


class Caught(NamedTuple):
    """What to do about a schedule whose tick is due."""

    #: The ticks to make jobs of, oldest first.
    ticks: list[datetime]
    #: The first tick that is neither made nor given up; None: there is none any more.
    next: datetime | None
    #: The first of the ticks that are given up; None: none is.
    missed: datetime | None


@dataclass(frozen=True)
class Timing:
    """An expression with its zone and its policy. Nothing is checked before it is used: a mistake is found where the actor is known.

    Parameters:
        expression: see ``runtime.cron``.
        timezone: an IANA name.
        catch_up: ``skip``, ``last`` or ``all``.
        window: how far back catching up goes, in seconds or as a ``timedelta``.
        jitter: each tick's job is made up to so much later (seconds or ``timedelta``), always the same for the same tick.
        args: what the actor is called with.
        kwargs: the same, by name.
    """

    expression: str
    timezone: str = "UTC"
    catch_up: CatchUp = "skip"
    window: float | timedelta = DEFAULT_WINDOW
    jitter: float | timedelta = 0.0
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return self.expression

    @cached_property
    def cron(self) -> Cron:
        """The expression, read. Raises: CronError."""
        return Cron(self.expression, self.timezone)

    @cached_property
    def window_seconds(self) -> float:
        """The window in seconds. Raises: CronError."""
        return self._seconds("window", self.window)

    @cached_property
    def jitter_seconds(self) -> float:
        """The jitter in seconds. Raises: CronError."""
        return self._seconds("jitter", self.jitter)

    def check(self) -> None:
        """Raises: CronError: something of it cannot work."""
        _ = self.cron, self.window_seconds, self.jitter_seconds
        if self.catch_up not in POLICIES:
            raise CronError(self.expression, f"catch_up={self.catch_up!r:.50} is unknown; write 'skip', 'last' or 'all'")
        if not isinstance(self.args, list | tuple):
            raise CronError(self.expression, f"args={self.args!r:.50} is neither a list nor a tuple")
        if self.kwargs is not None and not (isinstance(self.kwargs, dict) and all(isinstance(name, str) for name in self.kwargs)):
            raise CronError(self.expression, f"kwargs={self.kwargs!r:.50} is no dict of arguments by name")

    def next(self, count: int = 1, after: datetime | None = None) -> list[datetime]:
        """The next ticks, in UTC.

        Parameters:
            after: aware; by default this machine's time.

        Raises:
            CronError: the expression cannot be read.
        """
        found: list[datetime] = []
        tick = self.cron.after(after or datetime.now(UTC))
        while tick is not None and len(found) < count:
            found.append(tick)
            tick = self.cron.after(tick)
        return found

    # What `periodiq` asks of a schedule.

    def validate(self, date: datetime) -> bool:
        """Whether the minute of ``date`` has a tick; without a zone, ``date`` is in the schedule's own."""
        return self.tick_in_minute(date) is not None

    def next_valid_date(self, last: datetime) -> datetime:
        """The first tick after the minute of ``last``, in the zone of ``last``. Raises: CronError: there is none any more."""
        minute = self._minute(last)
        tick = self.cron.after(minute + _MINUTE - _INSTANT)
        if tick is None:
            raise CronError(self.expression, "has no tick any more")
        return tick.astimezone(last.tzinfo) if last.tzinfo is not None else tick.astimezone(self.cron.zone).replace(tzinfo=None)

    def tick_in_minute(self, date: datetime) -> datetime | None:
        """The tick in the minute of ``date``: of several the latest that has come by then, or else the first."""
        minute = self._minute(date)
        end = minute + _MINUTE - _INSTANT
        first = self.cron.after(minute - _INSTANT)
        if first is None or first > end:
            return None
        return max((tick for tick in self.cron.ticks(first, min(end, self._aware(date)))), default=first)

    # What the keeper asks.

    def due(self, name: str, tick: datetime) -> datetime:
        """When the job of a tick is made: at the tick, or up to ``jitter`` later; the same whoever asks."""
        if not self.jitter_seconds:
            return tick
        digest = blake2b(f"{name}\0{tick.astimezone(UTC).isoformat()}".encode(), digest_size=8).digest()
        return tick + timedelta(seconds=self.jitter_seconds * int.from_bytes(digest) / 2**64)

    def catch(self, name: str, first: datetime, now: datetime) -> Caught:
        """What to do at ``now`` about the ticks from ``first`` on, which is one."""
        on_time = self._on_time_from(name, first, now)
        start = on_time
        if self.catch_up == "all":
            oldest = now - timedelta(seconds=self.window_seconds)
            made_up = first if first >= oldest else self.cron.after(oldest - _INSTANT)
            start = made_up if on_time is None or (made_up is not None and made_up < on_time) else on_time
        ticks, following = self._due_from(name, start, now)
        if self.catch_up == "last" and not ticks and start != first:
            latest = self._latest(first, start or now, now)
            ticks = [] if latest is None else [latest]
        begins = ticks[0] if ticks else start
        return Caught(ticks, following, None if begins == first else first)

    def _on_time_from(self, name: str, first: datetime, now: datetime) -> datetime | None:
        """The first tick that is not missed."""
        edge = now - timedelta(seconds=ON_TIME)
        tick: datetime | None = first
        if first < edge - timedelta(seconds=self.jitter_seconds):
            tick = self.cron.after(edge - timedelta(seconds=self.jitter_seconds) - _INSTANT)
        while tick is not None and self.due(name, tick) < edge:
            tick = self.cron.after(tick)
        return tick

    def _due_from(self, name: str, start: datetime | None, now: datetime) -> tuple[list[datetime], datetime | None]:
        """The ticks from ``start`` on that are due, up to CHUNK, and the one after them."""
        ticks: list[datetime] = []
        tick = start
        while tick is not None and len(ticks) < CHUNK and self.due(name, tick) <= now:
            ticks.append(tick)
            tick = self.cron.after(tick)
        return ticks, tick

    def _latest(self, first: datetime, before: datetime, now: datetime) -> datetime | None:
        """The latest tick from ``first`` on and before ``before``, within the window; looked for from the near end."""
        oldest = max(first, now - timedelta(seconds=self.window_seconds))
        back = timedelta(seconds=ON_TIME)
        while True:
            begin = max(oldest, before - back)
            found = list(self.cron.ticks(begin - _INSTANT, before - _INSTANT))
            if found:
                return found[-1]
            if begin <= oldest:
                return None
            back *= 2

    def _seconds(self, name: str, value: object) -> float:
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not isfinite(seconds)
            or not 0 <= seconds <= LONGEST
        ):
            raise CronError(self.expression, f"{name}={value!r:.50} is neither seconds nor a timedelta, from 0 to 366 days")
        return float(seconds)

    def _aware(self, date: datetime) -> datetime:
        return date if date.tzinfo is not None else date.replace(tzinfo=self.cron.zone)

    def _minute(self, date: datetime) -> datetime:
        return self._aware(date).astimezone(UTC).replace(second=0, microsecond=0)


def timing_of(value: object) -> Timing:
    """What ``periodic=`` was given as a ``Timing``: one of ours, an expression, or what periodiq's ``cron()`` returns.

    Of periodiq's the minutes, hours and days are taken, and none of its arithmetic. It has no zone and goes by the clock of the server;
    here that is UTC.

    Raises:
        CronError: it is something else.
    """
    if isinstance(value, Timing):
        return value
    if isinstance(value, str):
        return Timing(value)
    fields = [getattr(value, name, None) for name in ("minute", "hour", "dom", "month", "dow")]
    if all(isinstance(field, list) and field for field in fields):
        written = _written(cast("list[list[int]]", fields))
        text = getattr(value, "parsed_from", None)
        return Timing(text if isinstance(text, str) and _same(text, written) else written)
    raise CronError(f"{value!r:.50}", "is no schedule; write cron('0 8 * * *') or '0 8 * * *'")


def _written(fields: list[list[int]]) -> str:
    """An expression for lists of numbers; what is complete is not restricted."""
    sizes = (60, 24, 31, 12, 7)
    texts = []
    for values, size in zip(fields, sizes, strict=True):
        distinct = {value % 7 for value in values} if size == 7 else set(values)
        texts.append("*" if len(distinct) == size else ",".join(map(str, sorted(distinct))))
    return " ".join(texts)


def _same(text: str, written: str) -> bool:
    try:
        return Cron(text).meaning == Cron(written).meaning
    except CronError:
        return False
