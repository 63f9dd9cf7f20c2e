"""A debounced job counts against limits as what the latest send made of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from dramatiq import Message

import switchyard
from errors import OptionError
from ledger.states import State
from settings import Settings
from tests.conformance.counting_jobs import HOUR, declare, row, waits_for
from tests.conformance.jobs import gate, seen
from tests.conformance.system import System


@pytest.fixture(scope="module")
def system(make_settings: Callable[..., Settings]) -> Iterator[System]:
    """A running system; keys are of each test's own."""
    system = System(make_settings(lease=30.0, sweep=0.2), declare).start(threads=6)
    yield system
    system.close()


def name() -> str:
    return uuid.uuid4().hex[:8]


@pytest.fixture
def a() -> Iterator[str]:
    found = name()
    yield found
    gate(found).set()


@pytest.fixture
def b() -> Iterator[str]:
    found = name()
    yield found
    gate(found).set()


def test_what_waits_for_a_rate_goes_when_its_latest_arguments_may(system, a, b):
    system.ended(system.jobs.reindex.send(name(), a))
    shop = name()
    waiting = system.jobs.reindex.send(shop, a)
    waits_for(system, waiting, "rate_limit")

    again = system.jobs.reindex.send(shop, b)

    assert again.message_id == waiting.message_id
    assert system.ended(waiting).state is State.COMPLETED
    assert (seen[shop], row(system, waiting)[1:3]) == ([b], (f"reindex:{b}", 1))


def test_it_counts_against_the_rate_of_its_latest_arguments_at_their_cost(system, a, b):
    shop = name()
    message = system.jobs.reindex.send_with_options(args=(shop, a), delay=HOUR)

    system.jobs.reindex.send(shop, b, 3)

    assert row(system, message)[1:3] == (f"reindex:{b}", 3)
    assert system.job(message).args == (shop, b, 3)


def test_a_delay_begins_anew_for_what_waited_for_another_customers_rate(system, a, b):
    system.ended(system.jobs.reindex.send(name(), a))
    shop = name()
    waiting = system.jobs.reindex.send(shop, a)
    waits_for(system, waiting, "rate_limit")

    system.jobs.reindex.send_with_options(args=(shop, b), delay=2 * HOUR)

    job = system.job(waiting)
    assert (job.state, job.wait_reason) == (State.SCHEDULED, None)
    assert job.run_at - job.created_at > timedelta(hours=1.5)


def test_what_waits_for_a_slot_goes_when_its_latest_arguments_may_and_joins_the_line_where_it_belongs(system, a, b):
    running = system.jobs.rebuild_shop.send(name(), a)
    system.until(running, lambda job: job.state is State.RUNNING)
    shop, later = name(), name()
    waiting = system.jobs.rebuild_shop.send(shop, a)
    waits_for(system, waiting, "concurrency")

    system.jobs.rebuild_shop.send(shop, b, "tenant")
    system.until(waiting, lambda job: job.state is State.RUNNING)
    assert row(system, waiting)[3:7] == (f"rebuild_shop:{b}", "tenant", 2.0, True)
    # And the other way round.
    parked = system.jobs.rebuild_shop.send_with_options(args=(later, name()), delay=HOUR)
    system.jobs.rebuild_shop.send(later, a)
    assert switchyard.edit(parked, delay=0)
    waits_for(system, parked, "concurrency")

    gate(b).set()
    gate(a).set()
    assert system.ended(parked).state is State.COMPLETED
    assert seen[shop] == [b]


def test_one_that_waits_for_the_same_as_before_goes_on_waiting_for_it(system, a):
    system.ended(system.jobs.reindex.send(name(), a))
    shop = name()
    waiting = system.jobs.reindex.send(shop, a)
    before = waits_for(system, waiting, "rate_limit")

    system.jobs.reindex.send(shop, customer=a)

    job = system.job(waiting)
    assert (job.wait_reason, job.run_at, job.kwargs) == ("rate_limit", before.run_at, {"customer": a})


def test_what_the_latest_send_says_of_limits_itself_counts_and_stays_said(system, a, b):
    shop = name()
    first = system.jobs.reindex.send_with_options(args=(shop, a), delay=HOUR, rate_limit_key="vip", rate_limit_cost=2, priority=4)
    assert row(system, first)[1:3] == ("reindex:vip", 2)

    system.jobs.reindex.send_with_options(args=(shop, a), rate_limit_key="other", priority=7)
    assert row(system, first)[1:3] == ("reindex:other", 1)
    assert switchyard.edit(first, args=[shop, b])
    assert row(system, first)[1:3] == ("reindex:other", 1)

    system.jobs.reindex.send(shop, a)
    assert row(system, first)[1:3] == (f"reindex:{a}", 1)
    assert switchyard.edit(first, args=[shop, b])
    assert row(system, first)[1:3] == (f"reindex:{b}", 1)
    # Everything else is as the first send said it.
    assert system.job(first).priority == 4
    assert system.rows("SELECT options->>'priority' FROM switchyard.job WHERE message_id = %s", first.message_id) == [("4",)]


def test_a_sender_that_does_not_know_the_actor_is_told_so_and_changes_nothing(system, stranger, a, b):
    system.activate()
    limited, own, plain = (name() for _ in range(3))
    shared = {"unique_mode": "debounce", "delay": HOUR}
    messages = {
        limited: system.jobs.reindex.send_with_options(args=(limited, a), unique_key=limited, **shared),
        own: system.jobs.reindex.send_with_options(
            args=(own, a), unique_key=own, rate_limit_key="vip", rate_limit_cost=1, **shared
        ),
        plain: system.jobs.plain.send_with_options(args=(a,), unique_key=plain, **shared),
    }
    rows = {key: row(system, message) for key, message in messages.items()}
    stranger.activate()

    def send(key: str) -> Any:
        message = messages[key]
        options = {"unique_key": key, "unique_mode": "debounce"}
        return stranger.broker.enqueue(Message(message.queue_name, message.actor_name, (key, b), {}, options))

    with pytest.raises(OptionError, match="does not know the actor; send it from a program that imports the actor") as caught:
        send(limited)
    assert caught.value.option == "rate_limit_key"
    assert row(system, messages[limited]) == rows[limited]
    for key in (own, plain):
        assert send(key).message_id == messages[key].message_id
        assert system.job(messages[key]).args == (key, b)
        assert row(system, messages[key])[:7] == rows[key][:7]
