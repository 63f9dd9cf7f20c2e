"""The tally: what a process ended, added up in the ledger with what others ended, and not lost when Postgres is away for a moment."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic

import psycopg
import pytest

from ledger import charts
from ledger.charts import BUCKETS, bucket
from ledger.records import Finish
from ledger.states import State
from runtime.heartbeat import Heartbeat
from runtime.routes import Routes
from runtime.tally import Tally
from tests.ledger.factory import worker_row

BEFORE, AFTER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def tally():
    return Tally()


@pytest.fixture
def heartbeat(desk, tally):
    heartbeat = Heartbeat(
        desk.database, desk.held, desk.counters, worker_row("me"), lambda: ["default"], Routes({"*": "postgres"}), tally=tally
    )
    yield heartbeat
    heartbeat._disconnect()


def ended(claim, state, *, outcome=None, took=0.1):
    now = monotonic()
    return Finish(id=claim.job.id, token=claim.token, state=state, started=now, finished=now + took, outcome=outcome)


def recorded(desk):
    return desk.database.run(lambda c: charts.activity(c, since=BEFORE, until=AFTER))


def total(rows, field):
    return sum(getattr(row, field) for row in rows)


def test_ends_are_counted_with_their_times_and_added_to_those_of_others(desk, tally, heartbeat):
    other = Tally()
    for claim, count in zip(desk.claim(5), (tally, tally, tally, other, other), strict=True):
        count.add(claim, ended(claim, State.COMPLETED))
    (claim,) = desk.claim(1)
    tally.add(claim, ended(claim, State.RETRYING, outcome="failed"))
    tally.add(claim, ended(claim, State.DEAD, outcome="failed"))
    tally.add(claim, ended(claim, State.PENDING, outcome="released"))
    tally.add(claim, ended(claim, State.SCHEDULED, outcome="snoozed"))

    heartbeat.beat()
    desk.database.run(lambda c: charts.record_activity(c, other.take()))
    heartbeat.beat()

    rows = recorded(desk)
    assert {(row.queue, row.actor) for row in rows} == {("default", "work")}
    assert (total(rows, "completed"), total(rows, "failed"), total(rows, "dead")) == (5, 2, 1)
    assert sum(row.runs[bucket(100)] for row in rows) == 7
    assert sum(sum(row.waits) for row in rows) == 7
    assert {len(row.waits) for row in rows} == {BUCKETS}


def test_what_could_not_be_handed_over_is_told_with_the_next_beat(desk, tally, heartbeat, monkeypatch):
    (claim,) = desk.claim(1)
    tally.add(claim, ended(claim, State.COMPLETED))

    def away(connection, entries):
        raise psycopg.OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr(charts, "record_activity", away)
        with pytest.raises(psycopg.OperationalError):
            heartbeat.beat()
    tally.add(claim, ended(claim, State.COMPLETED))
    heartbeat.beat()

    assert total(recorded(desk), "completed") == 2


def test_a_process_that_ends_in_order_tells_the_rest(desk, tally, heartbeat):
    heartbeat.start()
    (claim,) = desk.claim(1)
    tally.add(claim, ended(claim, State.COMPLETED))

    heartbeat.stop()

    assert total(recorded(desk), "completed") == 1
