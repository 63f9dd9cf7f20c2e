"""What ended long ago goes, page by page, by whichever keeper has the turn; nothing else ever does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from keeper import retention
from keeper.duty import Keeping
from keeper.retention import prune
from ledger import write
from ledger.states import TERMINAL, State
from settings import Settings
from tests.keeper.conftest import Broker
from tests.ledger.factory import add_in, fetch
from tests.rig.waiting import wait_until

DAY = 86_400.0


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(retention, "PAGE", 10)
    monkeypatch.setattr(retention, "LIMIT", 4)


def days(ledger, count):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0] + timedelta(days=count)


def left(ledger):
    return [id_ for (id_,) in ledger.execute("SELECT id FROM switchyard.job ORDER BY id").fetchall()]


@pytest.mark.parametrize("state", State)
def test_a_job_goes_when_it_ended_longer_ago_than_its_state_is_kept(ledger, state):
    id_ = add_in(ledger, state)
    settings = Settings()
    kept = {State.COMPLETED: 7, State.DEAD: 90, State.CANCELLED: 7}.get(state, 10_000)

    assert prune(ledger, settings, now=days(ledger, kept - 0.1))[0] == 0
    assert left(ledger) == [id_]
    prune(ledger, settings, now=days(ledger, kept + 0.1))
    assert left(ledger) == ([] if state in TERMINAL else [id_])


def test_an_actor_goes_before_its_queue_and_that_before_its_state(ledger):
    common = add_in(ledger, State.CANCELLED)
    exports = add_in(ledger, State.CANCELLED, queue="exports")
    special = add_in(ledger, State.CANCELLED, queue="exports", actor="special")
    settings = Settings(
        retain_overrides={"cancelled:queue:exports": 2 * DAY, "cancelled:actor:special": 9 * DAY, "dead:queue:default": DAY}
    )

    gone = []
    for day in (1.5, 2.5, 7.5, 9.5):
        prune(ledger, settings, now=days(ledger, day))
        gone.append([id_ for id_ in (common, exports, special) if id_ not in left(ledger)])

    assert gone == [[], [exports], [common, exports], [common, exports, special]]


def test_a_walk_is_made_in_bounded_pages_and_passes_by_what_stays(ledger, small_pages):
    ids = [add_in(ledger, State.CANCELLED if n % 2 else State.PENDING) for n in range(30)]
    moment, after, turns = days(ledger, 8), 0, []

    over = False
    while not over:
        removed, after, over = prune(ledger, Settings(), after=after, now=moment)
        turns.append(removed)

    assert max(turns) <= 4
    assert sum(turns) == 15
    assert left(ledger) == ids[::2]


def test_a_walk_ends_at_the_first_job_younger_than_the_shortest_time(ledger, small_pages):
    for _ in range(30):
        add_in(ledger, State.CANCELLED)

    assert prune(ledger, Settings(), now=days(ledger, 6)) == (0, left(ledger)[9], True)


def test_a_job_that_is_replayed_meanwhile_stays(ledger, database):
    id_ = add_in(ledger, State.CANCELLED)
    moment = days(ledger, 8)
    with database.dedicated("replay") as other, database.dedicated("walk") as walk:
        with other.transaction():
            write.replay(other, str(fetch(ledger, id_, "message_id")))
            assert prune(walk, Settings(), now=moment)[0] == 0

        assert prune(walk, Settings(), now=moment)[0] == 0
    assert fetch(ledger, id_, "state") == "pending"


def test_one_keeper_at_a_time_walks_and_another_goes_on_where_it_stopped(ledger, database, node, small_pages):
    for _ in range(6):
        add_in(ledger, State.CANCELLED)
    node.settings = node.settings.model_copy(update={"retain_cancelled": 0.0})
    keeping = Keeping(node, Broker())
    assert retention.sweep(ledger, keeping) is None  # the very first call makes the duty's row

    with database.dedicated("other") as other:
        with other.transaction():
            assert retention.sweep(other, keeping) == retention.PAUSE
            assert retention.sweep(ledger, keeping) is None
        assert len(left(ledger)) == 2
        assert wait_until(lambda: retention.sweep(ledger, keeping) or not left(ledger))

    assert left(ledger) == []
    assert retention.sweep(ledger, keeping) is None
    assert node.counters.snapshot()["pruned"] == 6


def test_a_walk_begins_more_often_where_jobs_are_kept_for_less_than_a_day():
    assert retention.rest(Settings()) == retention.REST
    assert retention.rest(Settings(retain_overrides={"completed:queue:exports": 240.0})) == 10.0
    assert retention.period(Settings(retain_completed=240.0)) == 10.0
