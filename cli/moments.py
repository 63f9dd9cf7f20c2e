"""Times and spans as the command line writes and reads them, one form everywhere.

    2026-11-28 11:47:14 UTC              a time: absolute, in UTC, with its zone
    2026-11-28 11:47:14 UTC (3.2m ago)   the same where there is room to say how far off it is
    3.2m                                 a span: in the units that options and settings take (s, m, h, d), so it can be typed back

Options read a span (``--since 2h``, that long ago) or an ISO 8601 time; one without a zone is in UTC, as it is shown.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
#: From which number of seconds on which unit is shown.
_SHOWN: Final = (("d", 86_400.0), ("h", 3_600.0), ("m", 60.0), ("s", 1.0))
#: Below this many of a unit one digit after the point is shown.
_FEW: Final = 10


def utc(moment: datetime | None) -> str | None:
    """A time in the form of all commands; None for none."""
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def off(moment: datetime | None, now: datetime) -> str | None:
    """The same, with how far it is from ``now``."""
    if moment is None:
        return None
    seconds = (now - moment).total_seconds()
    return f"{utc(moment)} ({f'{span(seconds)} ago' if seconds >= 0 else f'in {span(-seconds)}'})"


def span(length: float | timedelta) -> str:
    """A span in its largest unit, never rounded up: ``40ms``, ``4.7s``, ``59m``, ``2.5h``, ``120d``. What is negative counts as nothing,
    since two clocks differ."""
    seconds = max(0.0, length.total_seconds() if isinstance(length, timedelta) else length)
    for unit, size in _SHOWN:
        if seconds >= size:
            count = seconds / size
            return f"{int(count * 10) / 10:g}{unit}" if count < _FEW else f"{int(count)}{unit}"
    return f"{int(seconds * 1_000)}ms" if seconds else "0s"


def seconds_of(text: str) -> float | None:
    """Read a span; None: it is none."""
    found = _SPAN.fullmatch(text.strip())
    return None if found is None else float(found[1]) * _SECONDS[found[2].lower()]


class Span(click.ParamType[float]):
    """Seconds, or a number with s, m, h, d or w."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        if isinstance(value, int | float):
            return float(value)
        found = seconds_of(value)
        if found is None:
            self.fail(f"{value!r} is no duration: write seconds, or a number with s, m, h or d, such as 90 or 36h", param, ctx)
        return found


class Moment(click.ParamType[datetime]):
    """An age such as 2h, or an ISO 8601 time, in UTC where it has no zone."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        moment = _moment(value.strip())
        if moment is None:
            self.fail(
                f"{value!r} is no time: write an age such as 30m, 2h or 7d, or a time such as 2026-11-28T08:00 (UTC, or with a zone: "
                "2026-11-28T08:00+01:00)",
                param,
                ctx,
            )
        return moment


class Time(click.ParamType[datetime]):
    """An ISO 8601 time, in UTC where it has no zone. No age: those count back, and this is for what lies ahead."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        moment = _time(value.strip())
        if moment is None:
            self.fail(
                f"{value!r} is no time: write one such as 2026-11-28T08:00 (UTC, or with a zone: 2026-11-28T08:00+01:00)",
                param,
                ctx,
            )
        return moment


def _moment(text: str) -> datetime | None:
    # With its unit: a bare number would be taken for a time by others.
    if text[-1:].lower() in _SECONDS and text[-1:] and (age := seconds_of(text)) is not None:
        try:
            return datetime.now(UTC) - timedelta(seconds=age)
        except OverflowError:
            return None
    return _time(text)


def _time(text: str) -> datetime | None:
    try:
        # As it is shown.
        moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    except (ValueError, OverflowError):
        return None
    return moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
