"""Back-off and the options of retries, at their bounds."""

from __future__ import annotations

import math

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from hypothesis import given
from hypothesis import strategies as st

from errors import OptionError
from middleware.max_age import MaxAge
from middleware.retries import Retries, backoff_ms
from middleware.tags import Tags
from middleware.time_limit import TimeLimit
from middleware.worker_lost import WorkerLost

BOUNDS = st.tuples(st.integers(0, 10**9), st.integers(0, 10**10)).map(sorted)


@given(failures=st.integers(0, 10**6), bounds=BOUNDS)
def test_a_pause_lies_between_its_bounds(failures, bounds):
    least, most = bounds

    assert least <= backoff_ms(failures, least, most) <= most


@given(failures=st.integers(1, 60), bounds=BOUNDS)
def test_a_pause_doubles_and_its_jitter_is_at_most_half_of_it(failures, bounds):
    least, most = bounds
    doubled = min(most, least * 2 ** min(failures - 1, 40))

    pause = backoff_ms(failures, least, most)

    assert doubled <= pause <= min(most, doubled * 1.5)


def test_pauses_are_spread():
    assert len({backoff_ms(3, 10_000, 10**9) for _ in range(50)}) > 25


@pytest.fixture
def broker():
    return StubBroker(middleware=[Retries(), TimeLimit(), MaxAge(), Tags(), WorkerLost()])


WRONG = [
    {"max_retries": -1}, {"max_retries": 1.5}, {"max_retries": True}, {"max_retries": "3"}, {"max_retries": 10**12},
    {"min_backoff": -1}, {"min_backoff": "1s"}, {"max_backoff": math.nan}, {"min_backoff": 10, "max_backoff": 5},
    {"throws": "ValueError"}, {"throws": (ValueError, int)}, {"time_limit": 0}, {"time_limit": "1m"}, {"time_limit": False},
    {"max_age": -1}, {"max_age": [1]}, {"tags": "one"}, {"tags": ["x" * 101]}, {"tags": ["a\nb"]}, {"tags": ["t"] * 21},
    {"on_worker_lost": "die"}, {"on_worker_lost": True}, {"on_worker_lost": ["dead"]},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_a_wrong_option_is_refused_when_the_actor_is_declared(broker, options):
    with pytest.raises(OptionError, match="actor 'work', option "):
        dramatiq.actor(broker=broker, actor_name="work", **options)(lambda: None)

    assert broker.actors == {}


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": 0}, {"max_retries": None}, {"min_backoff": 0, "max_backoff": 0}, {"throws": ValueError},
        {"throws": (ValueError, KeyError)}, {"time_limit": None}, {"time_limit": math.inf}, {"max_age": 0}, {"tags": []},
        {"on_worker_lost": "dead"}, {"on_worker_lost": "retry"}, {"on_worker_lost": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_right_option_is_taken(broker, options):
    actor = dramatiq.actor(broker=broker, **options)(lambda: None)

    assert options.items() <= actor.options.items()


def test_an_option_nobody_reads_is_refused(broker):
    with pytest.raises(ValueError, match="min_back_off"):
        dramatiq.actor(broker=broker, min_back_off=3)(lambda: None)
