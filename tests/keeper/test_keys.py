"""Keys past their time are removed, a bounded number a turn, and no other."""

from __future__ import annotations

from datetime import timedelta

from keeper import keys
from keeper.duty import Keeping
from ledger import write
from tests.keeper.conftest import Broker
from tests.ledger.test_keys import sent, unique


def in_a_minute(ledger):
    return ledger.execute("SELECT clock_timestamp()").fetchone()[0] + timedelta(minutes=1)


def left(ledger):
    return [row[0] for row in ledger.execute("SELECT key FROM switchyard.idempotency ORDER BY key").fetchall()]


def test_only_what_has_expired_goes(ledger):
    for job in (sent("short", ttl=30.0), sent("long", ttl=300.0), unique("period", period=30.0)):
        write.enqueue(ledger, job)

    assert keys.prune(ledger) == 0
    assert keys.prune(ledger, now=in_a_minute(ledger)) == 2

    assert left(ledger) == ["long"]
    assert ledger.execute("SELECT count(*) FROM switchyard.job").fetchone() == (3,)


def test_a_turn_is_bounded_and_asks_for_the_next(ledger, node, monkeypatch):
    monkeypatch.setattr(keys, "CHUNK", 3)
    write.enqueue_many(ledger, [sent(f"k{number}", ttl=0.001) for number in range(4)])
    keeping = Keeping(node, Broker())

    assert keys.sweep(ledger, keeping) == keys.SOON
    assert keys.sweep(ledger, keeping) is None
    assert left(ledger) == []


def test_a_key_that_somebody_is_at_is_passed_by(ledger, database):
    write.enqueue(ledger, sent("k", ttl=0.001))
    with database.dedicated("other") as other, other.transaction():
        other.execute("SELECT 1 FROM switchyard.idempotency FOR UPDATE")

        assert keys.prune(ledger) == 0
    assert keys.prune(ledger) == 1
