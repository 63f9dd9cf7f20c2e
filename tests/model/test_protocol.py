"""The protocol holds in every state it can get into; and without any one of its guards it does not, which the search proves by a story.

Seven models, one concern each, written from the statements in ``ledger/sql`` and from who sends them when. They say nothing about the code:
that it is what the models say is for the ledger's own machine (``tests/ledger/test_machine.py``) and the tests with real servers.
Run with ``-s`` to read the stories.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.model import batches, claims, epochs, marks, routes, stops, suspects, workflows
from tests.model.search import ENDS, Found, Protocol, Step, brief, search

MODELS: dict[str, Any] = {
    "claims": claims,
    "suspects": suspects,
    "batches": batches,
    "routes": routes,
    "epochs": epochs,
    "marks": marks,
    "stops": stops,
    "workflows": workflows,
}

#: Every guard that can be taken out of a model: the model, the switch, the property that the search then finds violated.
GUARDS: list[tuple[Any, dict[str, Any], str]] = [
    (claims, {"fenced": False}, "no write with a token that is not the row's"),
    (claims, {"last_token_guards": True}, "no write with a token that is not the row's"),
    (claims, {"claim_guarded": False}, "at most one valid claim"),
    (claims, {"relay": False, "faults": 1}, ENDS),
    (claims, {"rescue": False, "faults": 1}, ENDS),
    (claims, {"read_back": False}, "a claim is known to its holder"),
    (claims, {"commit_first": False}, "a trigger never comes before its row"),
    (claims, {"margin": False}, "no body begins on a lease that has ended"),
    (claims, {"release_returns_number": False}, "a release spends no attempt"),
    (claims, {"running_release_keeps_number": False}, "an attempt's number is used once"),
    (suspects, {"one_at_a_time": False}, "one suspect on trial per process"),
    (suspects, {"start_committed": False}, ENDS),
    (suspects, {"suspicion": False}, ENDS),
    (suspects, {"companions": False}, "an innocent job pays for faults only"),
    (suspects, {"heard": False}, "nobody is guilty without having started"),
    (suspects, {"heard": False, "read_back": False}, "nobody is guilty without having started"),
    (suspects, {"one_beat": False}, "what a living process runs is not held guilty"),
    (batches, {"isolated": False}, ENDS),
    (batches, {"whole_batch_read_back": False}, "a claim is known to its holder"),
    (batches, {"fenced_each": False}, "no write with a token that is not the row's"),
    (routes, {"compare_and_set": False}, "the route changes only when a declaration came or went"),
    (routes, {"last_entry_wins": False}, "the route changes only when a declaration came or went"),
    (routes, {"relay_to_route": False}, "a row moves once per version"),
    (routes, {"lapses": False}, ENDS),
    (routes, {"moved": False}, ENDS),
    (epochs, {"broker_first": False}, "equal epochs mean that nothing was wiped since"),
    (epochs, {"one_transaction": False}, "equal epochs mean that nothing was wiped since"),
    (epochs, {"verified_again": False}, ENDS),
    (epochs, {"looked_for": False}, ENDS),
    (marks, {"aged": False}, "what waits in the queue is not published again"),
    (marks, {"anew": False}, "what waits in the queue is not published again"),
    (marks, {"again": False}, ENDS),
    (stops, {"claim_looks": False}, "nothing paused is claimed"),
    (stops, {"relay_looks": False}, "nothing paused is published"),
    (stops, {"finish_looks": False}, "what was asked to stop does not wait again"),
    (stops, {"release_looks": False}, "what was asked to stop does not wait again"),
    (stops, {"rescue_looks": False}, "what was asked to stop does not wait again"),
    (stops, {"beat_looks": False}, ENDS),
    (stops, {"start_looks": False}, "what is known to stop does not begin"),
    (stops, {"keeper_unparks": False}, ENDS),
    (stops, {"refused_is_parked": False}, ENDS),
    (workflows, {"one_transaction": False}, ENDS),
    (workflows, {"looks_again": False}, "a batch is complete when all its jobs have ended"),
    (workflows, {"adder_locks": False}, "a complete batch takes no job"),
    (workflows, {"waiting_apart": False}, ENDS),
    (workflows, {"keeper": False}, ENDS),
]


def found_in(model, **rules) -> Found:
    return search(model.protocol(model.Rules(**rules)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MODELS)
def test_the_protocol_holds_in_every_state(name):
    found = found_in(MODELS[name], **({"faults": 2} if name == "claims" else {}))
    print(f"{name}: {found}")

    assert found.violated is None, str(found)
    assert found.states > 1_000, "the model says next to nothing"


@pytest.mark.parametrize(
    ("model", "removed", "violated"),
    [pytest.param(*guard, id=f"{guard[0].__name__.rpartition('.')[2]}-{'-'.join(guard[1])}") for guard in GUARDS],
)
def test_without_one_of_its_guards_it_does_not(model, removed, violated):
    found = found_in(model, **removed)
    print(f"without {', '.join(removed)}: {found}")

    assert found.violated == violated, str(found)


def test_every_switch_of_every_model_is_a_guard_that_is_tried():
    tried = {(model.__name__, switch) for model, removed, _ in GUARDS for switch in removed}
    switches = {
        (model.__name__, switch)
        for model in MODELS.values()
        for switch, value in vars(model.Rules()).items()
        if isinstance(value, bool)
    }

    assert switches <= tried


def counter(*, limit: int, stops_at: int | None = None, lost: bool = False) -> Protocol[int]:
    """Counts up to a limit and stops there; or is stuck on the way; or falls back by a fault."""

    def steps(state: int):
        if state < limit and state != stops_at:
            yield Step("up", state + 1)
        if lost and state:
            yield Step("lost", state - 1, True)

    return Protocol(0, steps, {"below four": lambda state: state < 4}, lambda state: state == limit)


def test_the_search_finds_the_shortest_way_to_a_wrong_state():
    found = search(counter(limit=9))

    assert (found.violated, [line.strip() for line in found.story]) == ("below four", ["up", "up", "up", "up", "= 4"])


def test_the_search_finds_where_no_end_can_be_reached_and_trusts_no_fault():
    assert search(counter(limit=3)).violated is None
    assert search(counter(limit=3, lost=True)).violated is None
    assert search(counter(limit=3, stops_at=2)).violated == ENDS

    only_by_fault = Protocol(0, lambda state: iter([Step("by luck", 1, True)][state:]), {}, lambda state: state == 1)
    assert search(only_by_fault).violated == ENDS


def test_a_story_tells_what_differs_and_nothing_else():
    assert brief(claims.State()) == "State()"
    assert brief(claims.State(row=claims.Row("running", 1))) == "State(row=Row(state=running attempt=1))"
