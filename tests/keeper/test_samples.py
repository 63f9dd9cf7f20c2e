"""Samples: one per interval whoever writes it, of what is active, and a week of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from keeper import samples
from keeper.duty import Keeping
from ledger import charts, write
from ledger.states import State
from tests.keeper.conftest import Broker
from tests.ledger.factory import add, add_in, worker_row

BEFORE, AFTER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def keeping(node, ledger):
    node.settings = node.settings.model_copy(update={"sample_every": 3_600.0})
    keeping = Keeping(node, Broker())
    samples.sweep(ledger, keeping)  # the very first call makes the duty's row
    return keeping


@pytest.fixture
def sampled(ledger):
    return lambda: charts.samples(ledger, since=BEFORE, until=AFTER)


def due_again(ledger):
    ledger.execute("UPDATE switchyard.duty SET due_at = clock_timestamp()")


def test_a_sample_tells_what_is_active_and_how_long_the_oldest_has_waited(ledger, keeping, sampled):
    for state in State:
        add_in(ledger, state, queue="busy")
    add(ledger, queue="busy", broker="redis", grace=30.0)
    ledger.execute("UPDATE switchyard.job SET run_at = run_at - interval '1 minute' WHERE state = 'pending'")
    add(ledger, queue="later", delay=60.0)
    worker = worker_row()
    worker.queues = ["empty", "busy"]
    write.beat(ledger, worker)

    samples.sweep(ledger, keeping)

    busy, empty, later = sampled()
    assert (busy.queue, busy.scheduled, busy.pending, busy.running, busy.retrying) == ("busy", 1, 2, 1, 1)
    assert 59 < busy.oldest_pending < 3_600
    assert (empty.queue, empty.pending, empty.oldest_pending) == ("empty", 0, None)
    assert (later.queue, later.scheduled, later.oldest_pending) == ("later", 1, None)
    assert later.at.minute == later.at.second == 0


def test_an_interval_has_one_sample_however_many_keepers_there_are(ledger, keeping, sampled):
    add(ledger)
    assert 0 < samples.sweep(ledger, keeping) <= 3_601
    (first,) = sampled()
    add(ledger)

    samples.sweep(ledger, keeping)
    due_again(ledger)
    samples.sweep(ledger, keeping)

    # At the full hour the second turn falls into the next interval.
    assert all((sample.at.minute, sample.at.second, sample.at.microsecond) == (0, 0, 0) for sample in sampled())
    assert [sample.pending for sample in sampled() if sample.at == first.at] == [1]


def test_what_charts_do_not_show_any_more_is_forgotten(ledger, keeping, sampled):
    add(ledger)
    samples.sweep(ledger, keeping)
    charts.record_activity(ledger, [("default", "work", (1, 0, 0), [1] * charts.BUCKETS, [1] * charts.BUCKETS)])
    kept = len(sampled())
    for table in ("sample", "activity"):
        columns = "queue, 0, 0, 0, 0" if table == "sample" else "queue, actor, 0, 0, 0, '{}', '{}'"
        for days in (6, 8):
            ledger.execute(
                f"INSERT INTO switchyard.{table} SELECT date_trunc('day', at) - interval '{days} days', {columns}"  # noqa: S608
                f" FROM switchyard.{table} WHERE at > now() - interval '5 days' LIMIT 1"
            )
    due_again(ledger)

    samples.sweep(ledger, keeping)

    week_ago = datetime.now(UTC) - timedelta(days=7.5)
    assert len(sampled()) >= kept + 1
    assert min(sample.at for sample in sampled()) > week_ago
    recorded = charts.activity(ledger, since=BEFORE, until=AFTER)
    assert len(recorded) == 2
    assert recorded[0].at > week_ago
