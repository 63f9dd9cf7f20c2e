"""Two fetchers share one room: what the other one took while this one waited for its broker is not claimed on top of it."""

from __future__ import annotations

from types import SimpleNamespace

import brokers
from brokers.fetcher import Intake, TriggerFetcher
from ledger.database import Database
from runtime.claims import HeldClaims
from runtime.counters import Counters
from runtime.triggers import Outgoing


def test_triggers_there_is_no_room_for_any_more_go_back_to_the_broker(settings, redis_url, monkeypatch):
    transport = brokers.make_transport("redis", settings)
    held = HeldClaims(threads=4, lease=30.0, commit_start=lambda _: True)
    database = Database(settings.database_url.get_secret_value())
    node = SimpleNamespace(held=held, counters=Counters(), database=database, settings=settings)
    fetcher = TriggerFetcher(transport, node, Intake(lambda: ["default"], lambda: ["work"], lambda: False))
    sender = transport.sender()
    sender.publish([Outgoing(number, "default", "work") for number in range(6)])
    fetch = fetcher._receiver.fetch

    def fetch_while_another_claims(queues, limit, timeout):
        held.accepted += 3
        return fetch(queues, limit, timeout)

    monkeypatch.setattr(fetcher._receiver, "fetch", fetch_while_another_claims)
    claimed = []
    monkeypatch.setattr(fetcher, "_claim_in_hand", lambda: claimed.extend(fetcher._in_hand))

    fetcher._round()

    assert [trigger.job_id for trigger in claimed] == [0]
    assert transport.depth(["default"]) == {"default": 5}
    for closing in (sender, fetcher._receiver, transport):
        closing.close()
    fetcher._disconnect()
