"""Times and spans: one form, and what is shown can be typed back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import click
import pytest

from cli.moments import Moment, Span, off, seconds_of, span, utc

NOON = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"), (0, "0s"), (0.04, "40ms"), (1, "1s"), (4.79, "4.7s"), (59.99, "59s"), (60, "1m"), (3_599, "59m"), (9_000, "2.5h"),
        (86_399, "23h"), (90_000, "1d"), (86_400 * 120, "120d"),
    ],
)  # fmt: skip
def test_a_span_is_short_and_never_rounded_up(seconds, shown):
    assert span(seconds) == shown
    assert span(timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize("seconds", [0, 5, 59, 120, 5_400, 172_800])
def test_a_span_that_is_shown_can_be_typed(seconds):
    assert seconds_of(span(seconds)) == seconds


def test_a_time_is_in_utc_with_its_zone_and_how_far_off_it_is():
    berlin = NOON.astimezone(timezone(timedelta(hours=1)))

    assert utc(berlin) == "2026-11-28 12:00:00 UTC"
    assert off(berlin, NOON + timedelta(minutes=3)) == "2026-11-28 12:00:00 UTC (3m ago)"
    assert off(berlin, NOON - timedelta(hours=2)) == "2026-11-28 12:00:00 UTC (in 2h)"
    assert utc(None) is None
    assert off(None, NOON) is None


@pytest.mark.parametrize(
    "text", ["2026-11-28 12:00:00 UTC", "2026-11-28T12:00", "2026-11-28T13:00+01:00", "2026-11-28 12:00:00", "2026-11-28T12:00Z"]
)
def test_a_time_is_read_as_it_is_shown_or_with_a_zone(text):
    assert Moment().convert(text, None, None) == NOON


@pytest.mark.parametrize(
    ("text", "age"), [("30m", 1_800), ("2h", 7_200), ("7d", 604_800), ("1w", 604_800), ("1.5h", 5_400), ("5S", 5)]
)
def test_an_age_is_that_long_ago(text, age):
    before = datetime.now(UTC)

    moment = Moment().convert(text, None, None)

    assert before <= moment + timedelta(seconds=age) <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5y", "2026-13-01", "-2h", "99999999999d"])
def test_what_is_no_time_is_refused_with_the_way_to_write_one(text):
    with pytest.raises(click.BadParameter, match="write an age such as 30m"):
        Moment().convert(text, None, None)


def test_a_duration_without_a_unit_is_seconds():
    assert Span().convert("90", None, None) == 90
    assert Span().convert("36h", None, None) == 129_600
    with pytest.raises(click.BadParameter, match="no duration"):
        Span().convert("soon", None, None)
