"""Batches that ended long ago are removed by one keeper at a time, as many as there are and not so many a minute."""

from __future__ import annotations

import pytest

from keeper import batches
from keeper.duty import Keeping
from ledger import control
from tests.keeper.conftest import Broker, Node
from tests.ledger.factory import fetch
from tests.ledger.workflow_rows import add_batch, add_step


@pytest.fixture
def keeping(database, settings, ledger):
    keeping = Keeping(Node(settings, database), Broker())
    # The very first turn only makes the duty's row.
    assert batches.forget(ledger, keeping) is None
    return keeping


def left(ledger):
    return ledger.execute("SELECT count(*) FROM switchyard.batch").fetchone()[0]


def test_all_that_are_old_are_removed_one_turn_after_the_other(ledger, keeping, monkeypatch):
    monkeypatch.setattr(batches, "LIMIT", 10)
    for _ in range(25):
        add_batch(ledger)
    ledger.execute("UPDATE switchyard.batch SET completed_at = clock_timestamp() - interval '1 year'")
    young = add_batch(ledger)

    assert [batches.forget(ledger, keeping) for _ in range(3)] == [batches.SOON, batches.SOON, None]

    assert ledger.execute("SELECT id::text FROM switchyard.batch").fetchall() == [(young,)]


def test_what_one_keeper_has_looked_at_no_other_looks_at_within_a_minute(ledger, keeping):
    assert batches.forget(ledger, keeping) is None
    add_batch(ledger)
    ledger.execute("UPDATE switchyard.batch SET completed_at = clock_timestamp() - interval '1 year'")

    assert batches.forget(ledger, keeping) is None
    assert left(ledger) == 1

    ledger.execute("UPDATE switchyard.duty SET due_at = due_at - interval '1 minute' WHERE name = %s", [batches.OLD])
    assert batches.forget(ledger, keeping) is None
    assert left(ledger) == 0


def test_one_that_something_hangs_on_is_kept_until_that_is_gone(ledger, keeping):
    outer = add_batch(ledger)
    inner = add_batch(ledger, parent_id=outer)
    awaited = add_batch(ledger)
    step = add_step(ledger, awaited)
    end_of = "UPDATE switchyard.batch SET completed_at = clock_timestamp() - interval '1 year' WHERE id = ANY(%s)"
    ledger.execute(end_of, [[outer, awaited]])

    def turn():
        ledger.execute("UPDATE switchyard.duty SET due_at = due_at - interval '1 minute' WHERE name = %s", [batches.OLD])
        assert batches.forget(ledger, keeping) is None
        return {row[0] for row in ledger.execute("SELECT id::text FROM switchyard.batch").fetchall()}

    # The one within is not over, and the step may be replayed, which asks how the batch ended.
    assert turn() == {outer, inner, awaited}

    ledger.execute(end_of, [[inner]])
    assert control.cancel(ledger, str(fetch(ledger, step, "message_id"))) == "cancelled"
    ledger.execute("DELETE FROM switchyard.job WHERE id = %s", [step])
    assert turn() == {outer}
    assert turn() == set()
