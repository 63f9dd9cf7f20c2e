"""Pauses that no calendar has: the end of an execution is written all the same, and the job waits for as long as dates go."""

from __future__ import annotations

import math

import pytest

from ledger import write
from ledger.states import State
from tests.ledger.factory import add, claim, failed, fetch


@pytest.mark.parametrize("state", [State.RETRYING, State.SCHEDULED])
@pytest.mark.parametrize("delay", [1e15, 1e300, math.inf])
def test_a_pause_that_no_calendar_has_is_a_hundred_years(ledger, state, delay):
    id_, sound = add(ledger), add(ledger)
    by = claim(ledger, id_, sound)

    ended = failed(id_, by, state=state, delay=delay, outcome="failed" if state is State.RETRYING else "snoozed")
    assert write.finish(ledger, [ended, failed(sound, by)]) == {id_, sound}

    assert fetch(ledger, id_, "state") == state
    years = ledger.execute("SELECT date_part('day', next_publish_at - now()) / 365 FROM switchyard.job WHERE id = %s", [id_])
    assert 99 < years.fetchone()[0] < 101
