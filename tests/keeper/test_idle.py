"""What a keeper costs while there is nothing to do: few statements, whatever the number of duties."""

from __future__ import annotations

import threading
from collections import defaultdict
from time import monotonic

import pytest

from keeper.loop import Keeper
from ledger.database import BoundedConnection
from ledger.sql import SQL
from tests.keeper.conftest import Broker
from tests.rig.waiting import wait_until

#: How long it is watched, in seconds: three sweeps.
WATCHED = 15.5
#: Statements of the duties that are due once a minute, and at the start: some ten in all.
ONCE_A_MINUTE = {
    "until_next_sample", "take_duty", "sample", "forget_samples", "forget_activity", "leave_duty", "prune", "forget_workers",
    "forget_declarations",
}  # fmt: skip


@pytest.fixture
def statements(monkeypatch):
    """What each thread's connections execute, by the thread: other systems of this process may be running too."""
    names = {text: name for name, text in SQL.items()}
    seen = defaultdict(list)
    real = BoundedConnection.execute

    def execute(connection, query, *arguments, **options):
        seen[threading.current_thread()].append(names.get(query, str(query)))
        return real(connection, query, *arguments, **options)

    monkeypatch.setattr(BoundedConnection, "execute", execute)
    return seen


def test_a_system_at_rest_costs_a_keeper_less_than_two_statements_a_second(node, statements):
    keeper = Keeper(Broker())
    keeper.start(node)
    executed = statements[keeper._thread]
    wait_until(lambda: executed.count("next_due") >= 2, 60, lambda: str(executed))
    executed.clear()

    until = monotonic() + WATCHED
    wait_until(lambda: monotonic() > until, WATCHED + 30, "the time is over")
    seen = list(executed)
    keeper.stop()

    # What comes once a minute may fall into these seconds, or not.
    assert len([name for name in seen if name not in ONCE_A_MINUTE]) <= 1.7 * WATCHED, seen
    assert seen.count("look") >= 1
