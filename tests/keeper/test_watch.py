"""One keeper's watch over a broker that the test plays: what is lost becomes due, what is there is left alone, and one keeper watches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from brokers import refusals
from brokers.transport import QueueRefused, TransportDown, band
from keeper import watch as module
from keeper.watch import Watch
from ledger import sent, write
from ledger.sql import SQL
from settings import load
from tests.ledger.factory import add, claim, fetch, row
from tests.rig.waiting import wait_until


class Inspector:
    """A broker that holds what the test says."""

    def __init__(self):
        self.wants_marks = False
        self.names = {}
        self.held = set()
        self.asked = []
        self.marked = []
        self.down = False
        self.refused = set()
        self.asked_of = []
        self.present = {}

    def epoch(self, queue, known):
        self.asked_of.append(queue)
        if self.down:
            raise TransportDown("fake", "down")
        if queue in self.refused:
            raise QueueRefused(queue, "declared otherwise", "delete it")
        return self.names.setdefault(queue, "first")

    def mark(self, marks):
        self.marked += marks
        return marks

    def lost(self, triggers, passed):
        self.asked += [trigger.job_id for trigger in triggers]
        return [trigger.job_id for trigger in triggers if trigger.job_id not in self.held]

    def meet(self, own):
        self.present[own.keeper] = own
        return [other for keeper, other in self.present.items() if keeper != own.keeper]

    def close(self):
        self.down = False


@pytest.fixture
def inspector():
    return Inspector()


@pytest.fixture
def settings(database_url):
    return load(database_url=database_url, lease=10.0, sweep=1.0)


@pytest.fixture
def make_watch(settings, inspector):
    """Watches of several keepers over the same broker, ``redis`` by name."""
    transport = SimpleNamespace(name="redis", epoch_per_queue=False, inspector=lambda: inspector)
    return lambda: Watch(transport, settings)


@pytest.fixture
def watch(make_watch):
    return make_watch()


def overdue(ledger, count=1, **fields):
    """Rows that were sent, and whose grace has run out."""
    ids = [add(ledger, broker="redis", grace=10.0, **fields) for _ in range(count)]
    ledger.execute(
        "UPDATE switchyard.job SET next_publish_at = clock_timestamp() - interval '1 s' + id * interval '1 us' WHERE id = ANY(%s)",
        [ids],
    )
    return ids


def due(ledger):
    return [job.id for job in write.relay_due(ledger, own="redis", carrying=["redis"], reachable=["redis"])]


def test_a_row_whose_trigger_is_gone_is_due_and_one_whose_trigger_waits_is_not_written(ledger, watch, inspector):
    lost, waiting = overdue(ledger, 3), overdue(ledger, 3)
    fresh = add(ledger, broker="redis", grace=10.0)
    inspector.held = set(waiting)
    before = {id_: ledger.execute("SELECT xmin::text FROM switchyard.job WHERE id = %s", [id_]).fetchone() for id_ in waiting}

    assert watch.turn(ledger, []) == (3, False)

    assert sorted(due(ledger)) == lost
    assert fresh not in inspector.asked
    for id_ in waiting:
        assert ledger.execute("SELECT xmin::text FROM switchyard.job WHERE id = %s", [id_]).fetchone() == before[id_]


def test_what_became_overdue_since_is_looked_for_in_the_next_sweep_and_the_rest_in_the_next_round(ledger, watch, inspector):
    old = overdue(ledger)
    inspector.held = set(old)
    watch.turn(ledger, [])
    inspector.asked.clear()
    new = add(ledger, broker="redis", grace=10.0)
    ledger.execute("UPDATE switchyard.job SET next_publish_at = clock_timestamp() WHERE id = %s", [new])

    assert watch.turn(ledger, []) == (1, False)
    assert inspector.asked == [new]

    inspector.held.clear()
    watch.hurry()
    assert watch.turn(ledger, []) == (1, False)
    assert inspector.asked == [new, *old]


def test_the_next_round_waits_longer_the_more_there_was_in_the_last_one(ledger, watch, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    watch.turn(ledger, [])
    assert watch._round_at == now + 5.0

    watch._round = module.Walk(rows=600_000)
    watch.turn(ledger, [])
    assert watch._round_at == now + 60.0


def test_a_round_goes_on_where_its_turn_ended(ledger, watch, inspector, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "TURN_SHARE", 0.0)
    ids = overdue(ledger, 5)
    inspector.held = set(ids)

    while not watch.resting:
        watch.turn(ledger, [])

    assert sorted(set(inspector.asked)) == ids
    assert inspector.asked[0] == ids[0]


def test_one_keeper_watches_and_another_takes_over_when_it_is_gone(ledger, make_watch, inspector):
    first, second = make_watch(), make_watch()
    overdue(ledger)
    assert first.turn(ledger, []) == (1, False)
    asked = list(inspector.asked)

    overdue(ledger)
    assert second.turn(ledger, []) == (0, False)
    assert inspector.asked == asked

    ledger.execute("UPDATE switchyard.watch SET until = clock_timestamp() - interval '1 s'")
    assert second.turn(ledger, []) == (1, False)
    assert first.turn(ledger, []) == (0, False)


def test_another_epoch_makes_due_what_was_sent_before_it_and_nothing_else(ledger, watch, inspector, monkeypatch):
    monkeypatch.setattr(module, "EPOCH_CHUNK", 2)
    watch.turn(ledger, [])
    before = [add(ledger, broker="redis", grace=10.0) for _ in range(3)]
    running, elsewhere = add(ledger, broker="redis", grace=10.0), add(ledger, broker="rabbitmq", grace=10.0)
    claim(ledger, running)
    inspector.held = set(before)
    inspector.names[""] = "second"

    assert watch.turn(ledger, []) == (2, True)
    after = add(ledger, broker="redis", grace=10.0)
    assert watch.turn(ledger, []) == (1, True)
    assert watch.turn(ledger, []) == (0, False)

    assert sorted(due(ledger)) == before
    assert sent.epochs(ledger, "redis") == {"": sent.Epoch("second", None)}
    assert [row(ledger, id_)["publish_count"] for id_ in (after, elsewhere, running)] == [1, 1, 0]


def test_of_two_keepers_that_see_a_new_epoch_one_stores_it(ledger):
    assert sent.change_epoch(ledger, "redis", "", None, "first")

    assert not sent.change_epoch(ledger, "redis", "", None, "another")
    assert sent.change_epoch(ledger, "redis", "", "first", "second")
    assert not sent.change_epoch(ledger, "redis", "", "first", "third")
    assert sent.epochs(ledger, "redis")[""].value == "second"


def test_the_next_keeper_goes_on_when_one_died_in_the_middle_of_an_epoch(ledger, make_watch, inspector, monkeypatch):
    monkeypatch.setattr(module, "EPOCH_CHUNK", 2)
    first = make_watch()
    first.turn(ledger, [])
    ids = [add(ledger, broker="redis", grace=10.0) for _ in range(5)]
    inspector.held = set(ids)
    inspector.names[""] = "second"
    first.turn(ledger, [])
    ledger.execute("UPDATE switchyard.watch SET until = clock_timestamp() - interval '1 s'")

    second = make_watch()
    turns = [second.turn(ledger, []) for _ in range(3)]

    assert turns == [(2, True), (1, True), (0, False)]
    assert sorted(due(ledger)) == ids
    assert ledger.execute("SELECT count(*) FROM switchyard.job WHERE publish_count <> 2").fetchone() == (0,)


def test_while_the_broker_is_away_its_rows_stay_untouched_and_it_is_asked_less_often(ledger, watch, inspector, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    (id_,) = overdue(ledger)
    inspector.down = True

    assert watch.turn(ledger, []) == (0, False)
    assert fetch(ledger, id_, "publish_count") == 1

    pauses = []
    for _ in range(6):
        asked, began = len(inspector.asked_of), now
        while len(inspector.asked_of) == asked:
            now += 0.5
            assert watch.turn(ledger, []) == (0, False)
        pauses.append(now - began)
    assert pauses == [1, 2, 4, 8, 15, 15]
    assert (inspector.asked, fetch(ledger, id_, "publish_count")) == ([], 1)

    inspector.down = False
    now += module.RETRY_MAX
    assert watch.turn(ledger, []) == (1, False)


def test_a_queue_that_the_broker_refuses_is_passed_over_and_asked_about_less_often(ledger, settings, inspector, monkeypatch):
    monkeypatch.setattr(refusals, "RETRY_MIN", 0.2)
    transport = SimpleNamespace(name="redis", epoch_per_queue=True, inspector=lambda: inspector)
    watch = Watch(transport, settings)
    inspector.refused = {"bad"}
    gone = overdue(ledger, 1)

    turns = [watch.turn(ledger, ["bad", "default"]) for _ in range(4)]

    assert sum(turn[0] for turn in turns) == 1
    assert due(ledger) == gone
    assert set(sent.epochs(ledger, "redis")) == {"default"}
    assert inspector.asked_of.count("default") == 4
    assert inspector.asked_of.count("bad") == 1

    inspector.refused.clear()
    wait_until(
        lambda: watch.turn(ledger, ["bad", "default"]) and "bad" in sent.epochs(ledger, "redis"), 30, "it is asked about again"
    )


def test_a_row_that_was_claimed_since_it_was_looked_at_is_left_alone(ledger):
    claimed, put_off, lost = overdue(ledger, 3)
    claim(ledger, claimed)
    ledger.execute("UPDATE switchyard.job SET next_publish_at = clock_timestamp() + interval '9 s' WHERE id = %s", [put_off])
    now = ledger.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0]

    assert sent.lost_due(ledger, [claimed, put_off, lost], now) == 1
    assert due(ledger) == [lost]


def test_marks_are_sent_behind_what_is_half_a_lease_old_and_not_again_while_they_are_under_way(
    ledger, watch, inspector, monkeypatch
):
    inspector.wants_marks = True
    inspector.held = set(overdue(ledger, queue="slow", priority=20))
    add(ledger, broker="redis", grace=10.0, queue="young")

    watch.turn(ledger, [])
    assert [(mark.queue, mark.band) for mark in inspector.marked] == [("slow", band(20))]

    watch.hurry()
    watch.turn(ledger, [])
    assert len(inspector.marked) == 1
    monkeypatch.setattr(module, "MARK_SHARE", 0.0)
    watch.turn(ledger, [])
    assert len(inspector.marked) == 2


def test_no_statement_goes_over_a_backlog_to_find_out_who_wants_a_mark(ledger, watch, inspector, monkeypatch):
    real, asked = sent.sent_groups, []
    monkeypatch.setattr(
        sent, "sent_groups", lambda c, broker, after, upto: asked.append((after, upto)) or real(c, broker, after, upto)
    )
    monkeypatch.setattr(module, "MARK_SHARE", 0.0)
    inspector.wants_marks = True
    inspector.held = set(overdue(ledger, 3, queue="old"))
    add(ledger, broker="redis", grace=4.0, queue="half a lease old")

    for _ in range(3):
        watch.turn(ledger, [])
        watch.hurry()

    # Half a lease at first, then on from there; yet each round has the old ones marked anew.
    assert asked[0][1] - asked[0][0] <= 5.0 + 1e-3
    assert [after for after, _ in asked[1:]] == [upto for _, upto in asked[:-1]]
    assert [mark.queue for mark in inspector.marked].count("old") == 3
    assert [mark.queue for mark in inspector.marked].count("half a lease old") == 1


class Counting:
    """A connection that notes what it executes."""

    def __init__(self, connection):
        self.connection = connection
        self.executed = []

    def execute(self, statement, *arguments):
        self.executed.append(statement)
        return self.connection.execute(statement, *arguments)


@pytest.mark.parametrize("wants_marks", [False, True])
def test_a_sweep_with_nothing_to_do_costs_a_watch_one_statement(ledger, watch, inspector, wants_marks):
    inspector.wants_marks = wants_marks
    connection = Counting(ledger)
    watch.turn(connection, [])
    connection.executed.clear()

    assert watch.turn(connection, []) == (0, False)

    assert connection.executed == [SQL["watch"]]
    assert watch.resting


def test_what_is_sent_after_a_rest_is_looked_for_before_the_next_round(ledger, watch, inspector):
    assert watch.turn(ledger, []) == (0, False)
    id_ = add(ledger, broker="redis", grace=0.1)
    over = "SELECT next_publish_at < clock_timestamp() FROM switchyard.job WHERE id = %s"
    wait_until(lambda: ledger.execute(over, [id_]).fetchone() == (True,))

    assert watch.turn(ledger, []) == (1, False)

    assert inspector.asked == [id_]
    assert watch.resting


def test_the_last_mark_of_a_queue_and_band_is_known_and_one_from_the_future_is_taken_for_now(ledger):
    sent.record_marks(ledger, "rabbitmq", [("a", 4, 100.0), ("a", 4, 200.0), ("b", 4, 150.0)])
    sent.record_marks(ledger, "rabbitmq", [("a", 4, 50.0), ("b", 5, 10.0**11)])

    known = sent.marks(ledger, "rabbitmq")
    (now,) = ledger.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert {place: at for place, at in known.items() if at < 1000} == {("a", 4): 200.0, ("b", 4): 150.0}
    assert known["b", 5] <= now
