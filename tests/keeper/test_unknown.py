"""Jobs whose actor nobody knows, in a fleet where not everybody knows the same: what lives anywhere is never buried."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

import pytest

from keeper import look, unknown
from keeper.duty import Keeping
from ledger import write
from ledger.records import JobControl
from middleware.log_context import configure_structlog
from runtime.counters import Counters
from tests.keeper.conftest import Broker
from tests.ledger.factory import add, fetch, row, worker_row

HOUR = 3_600.0


@pytest.fixture
def beat(ledger):
    """Have a worker process say what it knows."""

    def beat(name, actors):
        worker = worker_row(name)
        worker.actors = actors
        write.beat(ledger, worker)

    return beat


@pytest.fixture
def strangers(ledger):
    """A job in the Postgres broker and one whose trigger is carried, of an actor that few know; the second was fetched in vain."""
    waiting, carried = add(ledger, actor="stranger"), add(ledger, actor="stranger", broker="redis", grace=9.0)

    def strangers():
        unknown.mark(ledger, Counters())
        write.postpone_unknown(ledger, [carried], ["work"], 5.0)
        return waiting, carried

    return strangers


def later(ledger, seconds=2 * HOUR):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0] + timedelta(seconds=seconds)


def reasons(ledger, ids):
    return [fetch(ledger, id_, "wait_reason") for id_ in ids]


def test_jobs_that_nobody_knows_are_dead_after_a_time(ledger, beat, strangers):
    beat("one", ["work"])
    fresh = add(ledger)
    ids = strangers()
    since = [fetch(ledger, id_, "wait_since") for id_ in ids]

    assert reasons(ledger, strangers()) == ["unknown_actor"] * 2
    unknown.settle(ledger, HOUR)
    assert [fetch(ledger, id_, "wait_since") for id_ in ids] == since
    unknown.settle(ledger, HOUR, now=later(ledger))

    for id_ in ids:
        stored = row(ledger, id_)
        assert (stored["state"], stored["dead_reason"], stored["error_type"]) == ("dead", "unknown_actor", "ActorNotFound")
        assert "'stranger'" in stored["error"]
        assert stored["wait_reason"] is None
    assert fetch(ledger, fresh, "state") == "pending"


@pytest.mark.parametrize("reason", [None, "rate_limit", "concurrency"])
def test_limited_jobs_that_nobody_knows_are_dead_after_a_time_too(ledger, beat, reason):
    beat("one", ["work"])
    id_ = add(ledger, actor="stranger", control=JobControl(rate_key="stranger", rate_cost=1, concurrency_key="stranger"))
    ledger.execute("UPDATE switchyard.job SET wait_reason = %s, wait_since = clock_timestamp() WHERE id = %s", [reason, id_])

    unknown.mark(ledger, Counters())
    unknown.settle(ledger, HOUR, now=later(ledger))

    assert (fetch(ledger, id_, "state"), fetch(ledger, id_, "dead_reason")) == ("dead", "unknown_actor")


@pytest.mark.parametrize("actors", [["stranger"], None], ids=["knows it", "of an older version"])
def test_what_another_living_fleet_may_know_is_neither_marked_nor_buried(ledger, beat, strangers, actors):
    beat("one", ["work"])
    beat("two", actors)

    assert reasons(ledger, strangers()) == [None, None]
    unknown.settle(ledger, HOUR, now=later(ledger))

    assert [fetch(ledger, id_, "state") for id_ in strangers()] == ["pending", "pending"]


def test_a_deploy_that_brings_the_actor_ends_the_wait(ledger, beat, strangers):
    beat("one", ["work"])
    waiting, carried = strangers()
    beat("new", ["stranger"])

    unknown.settle(ledger, HOUR, now=later(ledger))

    assert reasons(ledger, (waiting, carried)) == [None, None]
    assert [fetch(ledger, id_, "state") for id_ in (waiting, carried)] == ["pending", "pending"]
    assert fetch(ledger, waiting, "next_publish_at") is None
    assert write.next_due(ledger) <= 0


def test_while_nobody_lives_nothing_is_buried(ledger, beat, strangers):
    beat("one", ["work"])
    ids = strangers()
    ledger.execute("UPDATE switchyard.worker SET beat_at = beat_at - interval '1 day'")

    unknown.settle(ledger, HOUR, now=later(ledger))

    assert reasons(ledger, ids) == ["unknown_actor"] * 2


def test_nothing_is_buried_within_a_lease_of_this_keepers_own_return(ledger, node, beat, strangers):
    beat("one", ["work"])
    ids = strangers()
    ledger.execute("UPDATE switchyard.job SET wait_since = wait_since - interval '2 hours'")
    keeping = Keeping(node, Broker(), connected_again_at=monotonic())
    look.sweep(ledger, keeping)

    unknown.sweep(ledger, keeping)
    assert reasons(ledger, ids) == ["unknown_actor"] * 2

    keeping.connected_again_at = None
    node.settings = node.settings.model_copy(update={"lease": 1.0})
    ledger.execute("UPDATE switchyard.duty SET due_at = clock_timestamp(), position = position - 60000 WHERE name = 'in touch'")
    unknown.sweep(ledger, keeping)
    assert [fetch(ledger, id_, "state") for id_ in ids] == ["dead", "dead"]


def test_an_actor_that_nobody_knows_is_said_once_however_many_sweeps_find_jobs_of_it(ledger, node, beat, caplog):
    configure_structlog()
    beat("one", ["work"])
    keeping = Keeping(node, Broker())

    for _ in range(3):
        add(ledger, actor="stranger")
        add(ledger, actor="stranger")
        look.sweep(ledger, keeping)
        unknown.sweep(ledger, keeping)
    add(ledger, actor="another")
    look.sweep(ledger, keeping)
    unknown.sweep(ledger, keeping)

    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["stranger" in line for line in told] == [True, False]
    assert "another" in told[1]
    assert node.counters.snapshot()["unknown_actors"] == 7


def test_the_look_finds_what_there_is_to_do(ledger, node, beat, strangers):
    keeping = Keeping(node, Broker())
    look.sweep(ledger, keeping)
    assert keeping.seen[:4] == (False, False, False, True)

    beat("one", ["work"])
    strangers()
    look.sweep(ledger, keeping)
    assert keeping.seen[:4] == (False, False, True, True)

    add(ledger, max_age=0.0)
    look.sweep(ledger, keeping)
    assert keeping.seen[:4] == (False, True, True, True)
