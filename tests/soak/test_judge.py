"""The judge finds a leak in noise and in a saw-tooth, and finds none where there is none."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.soak.judge import FEWEST, Limit, Point, slower, theil_sen, trend

#: What a worker's memory is held to.
MEMORY = Limit(per_hour=20, slack=4)
#: Ten minutes, a sample every five seconds.
TIMES = [5.0 * at for at in range(120)]


def series(value: Callable[[float, random.Random], float], seed: int = 1) -> list[Point]:
    """Ten minutes of something."""
    draw = random.Random(seed)
    return [(at, value(at, draw)) for at in TIMES]


def leak(at: float) -> float:
    """10 kB of each of 5 jobs a second, in MB."""
    return at * 5 * 0.01


def saw(at: float, height: float, period: float) -> float:
    """Rises to a height, and falls at once."""
    return height * (at % period) / period


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_of_10_kb_a_job_is_found_in_noise(seed: int):
    found = trend(series(lambda at, draw: 90 + leak(at) + draw.gauss(0, 3), seed), MEMORY, warm_up=100)

    assert found.grows
    assert found.per_hour == pytest.approx(180, rel=0.15)


@pytest.mark.parametrize("period", [30, 70, 110])
def test_a_leak_is_found_under_a_saw_tooth(period: float):
    assert trend(series(lambda at, draw: 90 + leak(at) + saw(at, 20, period) + draw.gauss(0, 1)), MEMORY, warm_up=100).grows


def test_a_leak_that_comes_in_steps_is_found():
    assert trend(series(lambda at, draw: 90 + 8 * (at // 120)), MEMORY).grows


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_growth(seed: int):
    assert not trend(series(lambda at, draw: 90 + draw.gauss(0, 10), seed), MEMORY, warm_up=100).grows


@pytest.mark.parametrize("period", [17, 60, 130, 170])
@pytest.mark.parametrize("phase", [0.0, 20.0, 50.0, 90.0])
def test_a_saw_tooth_is_no_growth_wherever_it_begins_and_ends(period: float, phase: float):
    assert not trend(series(lambda at, draw: 90 + saw(at + phase, 40, period) + draw.gauss(0, 1)), MEMORY).grows


def test_what_comes_back_to_its_floor_is_no_growth_though_its_peaks_rise():
    found = trend(series(lambda at, draw: 90 + saw(at, 10 + at / 10, 60)), MEMORY)

    assert found.last - found.first > MEMORY.slack
    assert found.per_hour > MEMORY.per_hour
    assert not found.grows


def test_a_few_wild_readings_are_no_growth():
    assert not trend(series(lambda at, draw: 900 if at > 500 and draw.random() < 0.2 else 90 + draw.gauss(0, 1)), MEMORY).grows


def test_what_settles_within_the_warm_up_is_no_growth():
    points = series(lambda at, draw: 90 + min(at, 90) / 2)

    assert not trend(points, MEMORY, warm_up=100).grows
    assert trend([point for point in points if point[0] <= 90], MEMORY).grows


def test_a_steep_rise_within_the_slack_is_no_growth():
    found = trend(series(lambda at, draw: 90 + at / 200), Limit(per_hour=10, slack=4))

    assert found.per_hour == pytest.approx(18)
    assert not found.grows


def test_a_few_low_readings_at_the_beginning_are_no_growth():
    points = [(5.0 * at, 60.0 if at in (2, 5) else 90 + at / 20) for at in range(40)]

    found = trend(points, MEMORY)

    assert found.floor_rise > MEMORY.slack
    assert found.per_hour > MEMORY.per_hour
    assert not found.grows


def test_a_slow_rise_of_much_over_a_long_time_is_no_growth_beyond_its_limit():
    hours = [(60.0 * at, 90 + at / 6) for at in range(1_200)]

    assert not trend(hours, Limit(per_hour=20, slack=4)).grows
    assert trend(hours, Limit(per_hour=5, slack=4)).grows


def test_too_few_points_are_not_judged():
    found = trend([(at, at * 100.0) for at in range(FEWEST - 1)], MEMORY)

    assert not found.judged
    assert not found.grows
    assert not trend([], MEMORY).judged


def test_the_slope_is_not_bent_by_outliers():
    points = [(float(at), 2.0 * at) for at in range(50)]
    points[3] = (3.0, 1e6)
    points[47] = (47.0, -1e6)

    assert theil_sen(points) == pytest.approx(2.0)


def test_times_that_double_in_the_end_are_slower_and_one_bad_window_is_none():
    assert slower([0.1] * 5 + [0.2] * 5 + [0.9] * 5, ratio=2, slack=0.5)
    assert not slower([0.1] * 14 + [9.0], ratio=2, slack=0.5)
    assert not slower([0.1, 9.0], ratio=2, slack=0.5)
