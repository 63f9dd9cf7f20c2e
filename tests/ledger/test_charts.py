"""Histograms by powers of two: where a time falls, and what a percentile is estimated as."""

from __future__ import annotations

import random

import pytest

from ledger.charts import BUCKETS, bucket, percentile


def histogram(milliseconds):
    counts = [0] * BUCKETS
    for value in milliseconds:
        counts[bucket(value)] += 1
    return counts


@pytest.mark.parametrize(
    ("milliseconds", "place"), [(-5, 0), (0, 0), (0.9, 0), (1, 1), (1.9, 1), (2, 2), (3.99, 2), (4, 3), (1000, 10), (1e12, 27)]
)
def test_a_time_falls_into_the_bucket_below_the_next_power_of_two(milliseconds, place):
    assert bucket(milliseconds) == place


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_a_percentile_of_many_processes_is_within_its_bucket(share):
    drawn = random.Random(1)
    values = [drawn.lognormvariate(5, 1.5) for _ in range(4_000)]
    exact = sorted(values)[int(share * len(values))] / 1000

    estimate = percentile([histogram(values[:1_000]), histogram(values[1_000:])], share)

    assert exact / 2 <= estimate <= exact * 2


def test_nothing_has_no_percentile():
    assert percentile([], 0.5) is None
    assert percentile([[0] * BUCKETS], 0.5) is None
