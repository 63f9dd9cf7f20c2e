"""Results of a batch that take more than a step may get: its steps are dead with the reason, and nobody reads the results for that."""

from __future__ import annotations

import pytest

from ledger import batches
from ledger.sql import SQL
from ledger.states import State
from tests.ledger.factory import fetch, row
from tests.ledger.workflow_rows import add_batch, add_members, add_step, end


@pytest.fixture
def ledger(ledger):
    ledger.execute("DELETE FROM switchyard.batch")
    return ledger


class Watched:
    """A connection that notes which statements are executed on it."""

    def __init__(self, connection):
        self._connection = connection
        self.executed = []

    def execute(self, statement, *arguments, **options):
        self.executed.append(statement)
        return self._connection.execute(statement, *arguments, **options)

    def transaction(self):
        return self._connection.transaction()


@pytest.mark.parametrize("nested", [False, True], ids=["its own", "of a batch within it"])
def test_results_that_no_step_may_get_are_not_even_read(ledger, monkeypatch, nested):
    monkeypatch.setattr(batches, "MAX_FED_BYTES", 500)
    outer = add_batch(ledger, total=1, followed=True)
    inner = add_batch(ledger, total=3, parent_id=outer, root_id=outer) if nested else outer
    end(ledger, *add_members(ledger, outer, 1), result="1")
    end(ledger, *add_members(ledger, inner, 3), result=f'"{"x" * 200}"')
    step, ignoring = add_step(ledger, outer), add_step(ledger, outer, piped=False)
    watched = Watched(ledger)

    assert batches.close(watched, [inner])

    assert SQL["batch_results"] not in watched.executed
    assert fetch(ledger, ignoring, "state") == "pending"
    dead = row(ledger, step)
    assert (dead["state"], dead["dead_reason"], dead["error_type"]) == ("dead", "permanent", "PayloadError")


def test_results_that_just_fit_are_handed_on(ledger, monkeypatch):
    monkeypatch.setattr(batches, "MAX_FED_BYTES", 700)
    batch = add_batch(ledger, total=3, followed=True)
    end(ledger, *add_members(ledger, batch, 3), result=f'"{"x" * 200}"')
    step = add_step(ledger, batch)

    assert batches.close(ledger, [batch])

    assert fetch(ledger, step, "state") == State.PENDING
    assert fetch(ledger, step, "payload")["args"] == [["x" * 200] * 3]
