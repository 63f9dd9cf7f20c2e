"""Suspects that a limit decides about: one at a time in a process, and the next one as soon as the one before has ended."""

from __future__ import annotations

from time import monotonic

import dramatiq
import pytest

import switchyard
from tests.rig.waiting import wait_until

SUSPECTS = 30


@pytest.mark.parametrize("limits", [{"concurrency": 50}, {"rate_limit": "1000000/second"}], ids=["slots", "a rate"])
def test_limited_suspects_follow_each_other_as_quickly_as_any_others(fresh, limits):
    system = fresh()

    @dramatiq.actor(broker=system.broker, queue_name="limited", **limits)
    def limited(number):
        return number

    switchyard.enqueue_many([limited.message(number) for number in range(SUSPECTS)])
    # As a rescue leaves the jobs of a worker that died.
    system.rows("UPDATE switchyard.job SET suspect = true RETURNING id")
    system.start()
    wait_until(
        lambda: system.rows("SELECT count(*) FROM switchyard.job WHERE state = 'completed'")[0][0], 30, "the first one runs"
    )
    began = monotonic()

    wait_until(
        lambda: system.rows("SELECT count(*) FROM switchyard.job WHERE state = 'completed'") == [(SUSPECTS,)], 60, "all run"
    )

    # A look a second would take as many seconds.
    assert monotonic() - began < SUSPECTS / 3
