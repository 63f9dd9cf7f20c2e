"""The words for states."""

from __future__ import annotations

import pytest

from ledger.states import ACTIVE, SYNONYMS, TERMINAL, WAITING, State, states_named


def test_every_state_is_active_or_terminal():
    assert set(State) == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL
    assert {State.RUNNING} == ACTIVE - WAITING


@pytest.mark.parametrize("state", State)
def test_a_states_own_word_means_it_alone(state):
    assert states_named(state.value) == states_named(state) == {state}


def test_the_words_of_other_queues_are_understood():
    assert states_named("waiting") == {State.PENDING}
    assert states_named("active") == states_named("processing") == {State.RUNNING}
    assert states_named("delayed") == {State.SCHEDULED}
    assert states_named("failed") == {State.RETRYING, State.DEAD}
    assert states_named("done") == states_named("succeeded") == {State.COMPLETED}


def test_an_unknown_word_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="'asleep' is unknown") as refused:
        states_named("asleep")

    assert all(word in str(refused.value) for word in [*State, *SYNONYMS])
