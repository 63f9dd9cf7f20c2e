"""Whether another ledger uses a broker and prefix: when that is proven, how often it is said, and what must never be taken for one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from brokers.transport import TransportDown
from keeper import neighbours as module
from keeper.neighbours import Neighbours
from keeper.watch import Watch
from ledger import sent
from ledger.database import Database
from middleware.log_context import configure_structlog
from settings import load


class Place:
    """A broker in which keepers meet, as the test's clock has it."""

    name = "redis"
    epoch_per_queue = False
    place = "cache:6379/0"

    def __init__(self, clock):
        self.clock = clock
        self.present = {}
        self.asked = 0
        self.refuses = False

    def inspector(self):
        return SimpleNamespace(
            epoch=lambda queue, known: "first", meet=self.meet, wants_marks=False, close=lambda: None, lost=lambda *_: []
        )

    def meet(self, own):
        self.asked += 1
        if self.refuses:
            raise TransportDown("redis", "NOPERM")
        self.present[own.keeper] = (self.clock.now + own.seconds, own)
        return [other for until, other in self.present.values() if other.keeper != own.keeper and until > self.clock.now]


@pytest.fixture
def clock(monkeypatch):
    """Time as the test has it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def place(clock):
    return Place(clock)


@pytest.fixture
def make(place, clock):
    """The neighbours of a keeper: ``turn = make("one")``; each call is one sweep's turn, and the clock does not move by itself."""
    inspector = place.inspector()

    def make(keeper, database="postgresql://me:hunter2@db:5432/shop"):
        found = Neighbours(place, load(database_url=database, sweep=1.0), keeper, 4.0)

        def turn(at=None):
            found.turn(inspector, clock.now if at is None else at)
            return found.others

        return turn

    return make


@pytest.fixture
def lines(caplog):
    configure_structlog()
    caplog.set_level("INFO")
    return lambda what: [record for record in caplog.records if what in record.getMessage()]


def sweeps(clock, count, *turns):
    """So many sweeps of several keepers; what the first one knows after them."""
    for _ in range(count):
        clock.now += 1.0
        found = [turn() for turn in turns]
    return found[0]


def test_another_ledger_is_known_once_its_beat_has_gone_on_twice_and_forgotten_when_it_is_silent(make, clock, lines):
    one, two = make("one"), make("two", "postgresql://me:secret@other:5433/staging")

    assert sweeps(clock, 2, one, two) == ()
    assert lines("another ledger uses") == []
    (found,) = sweeps(clock, 2, one, two)
    assert found.startswith("other:5433/staging (watched from ")
    assert two()[0].startswith("db:5432/shop (watched from ")

    # Its last word counts for four seconds, and lingers for sixteen: another keeper may take over there.
    assert sweeps(clock, 12, one) == (found,)
    assert sweeps(clock, 5, one) == ()
    assert len(lines("no other ledger uses this BROKER_PREFIX any more")) == 1


def test_it_is_an_error_that_names_prefix_broker_both_ledgers_and_the_way_out_again_after_ten_minutes(make, clock, lines):
    one, two = make("one"), make("two", "postgresql://me:secret@other:5433/staging")

    sweeps(clock, 500, one, two)

    said = lines("another ledger uses the same broker and BROKER_PREFIX")
    # One from each side.
    assert [record.levelname for record in said] == ["ERROR", "ERROR"]
    text = said[0].getMessage()
    for word in ("'prefix': 'switchyard'", "cache:6379/0", "db:5432/shop", "other:5433/staging", module.ADVICE):
        assert word in text
    assert "hunter2" not in text
    assert "secret" not in text

    sweeps(clock, 200, one, two)
    assert len(lines("another ledger uses")) == 4


def test_neighbours_that_come_one_after_the_other_are_said_at_most_once_a_minute(make, clock, lines):
    one = make("one")
    for number in range(12):
        other = make(f"other-{number}", f"postgresql://db/copy{number}")
        sweeps(clock, 10, one, other)

    # 120 seconds, one line of the first and of each minute; the others, not run for long enough, know of nothing else to say.
    assert len([record for record in lines("another ledger uses") if "'ledger': 'db:5432/shop" in record.getMessage()]) == 2


def test_a_keeper_that_was_frozen_and_speaks_once_more_is_no_neighbour(make, clock):
    frozen, next_ = make("frozen"), make("next")
    sweeps(clock, 3, frozen)

    sweeps(clock, 3, next_)
    # It had asked the ledger before, and now goes on where it was.
    frozen()
    assert [sweeps(clock, 1, next_) for _ in range(30)] == [()] * 30


def test_what_was_seen_before_the_own_watch_lapsed_proves_nothing(make, clock):
    one, two = make("one"), make("two")
    sweeps(clock, 2, one, two)

    # The other took over meanwhile, and was frozen in its turn.
    for _ in range(20):
        sweeps(clock, 5, two)
        assert one() == ()


def test_a_broker_that_refuses_is_asked_a_minute_later_and_that_is_said_once(make, clock, place, lines):
    one, two = make("one"), make("two")
    place.refuses = True
    sweeps(clock, 59, one)
    assert place.asked == 1
    sweeps(clock, 120, one)
    assert place.asked == 3
    assert len(lines("cannot tell whether another ledger")) == 1

    place.refuses = False
    assert sweeps(clock, 70, one, two) != ()


def test_it_asks_no_more_than_twice_a_sweep(make, clock, place):
    one = make("one")
    for _ in range(10):
        clock.now += 0.1
        one()

    assert place.asked == 2


@pytest.fixture
def watches(place, ledger, database_url, databases):
    """Watches over one broker: two keepers of one ledger, and one of its copy."""
    copy_url = databases.create()
    copy = Database(copy_url)
    one, two, other = (
        Watch(place, load(database_url=url, lease=10.0, sweep=1.0)) for url in (database_url, database_url, copy_url)
    )
    with copy.dedicated("test") as connection:
        yield SimpleNamespace(one=one, two=two, other=other, ledger=ledger, copy=connection)
    copy.close()
    databases.drop(copy_url)


def others(watch):
    return watch._neighbours.others


def test_keepers_of_one_ledger_that_take_each_others_place_never_meet(watches, clock):
    for next_, last in [(watches.one, watches.two), (watches.two, watches.one)] * 3:
        watches.ledger.execute("UPDATE switchyard.watch SET until = clock_timestamp() - interval '1 s'")
        for _ in range(4):
            clock.now += 1.0
            next_.turn(watches.ledger, [])
            last.turn(watches.ledger, [])
            assert others(next_) == others(last) == ()


def test_keepers_of_two_ledgers_meet_and_the_one_that_rests_says_nothing(watches, clock, place):
    for _ in range(4):
        clock.now += 1.0
        for watch, ledger in ((watches.one, watches.ledger), (watches.two, watches.ledger), (watches.other, watches.copy)):
            watch.turn(ledger, [])

    assert len(others(watches.one)) == len(others(watches.other)) == 1
    assert others(watches.two) == ()
    assert set(place.present) == {sent.keepers(watches.ledger)["redis"], sent.keepers(watches.copy)["redis"]}
    # What status reads.
    assert place.present[sent.keepers(watches.ledger)["redis"]][1].others == ()
    clock.now += 1.0
    watches.one.turn(watches.ledger, [])
    assert place.present[sent.keepers(watches.ledger)["redis"]][1].others == others(watches.one)
