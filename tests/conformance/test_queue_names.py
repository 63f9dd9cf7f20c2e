"""Names of queues: the longest one works, and what no broker could carry is refused before it keeps the others from being published."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq import Message

import switchyard
from errors import OptionError
from ledger.states import State
from settings import MAX_QUEUE, load
from tests.conformance.jobs import note, seen


def declared(system, queue):
    @dramatiq.actor(broker=system.broker, queue_name=queue, actor_name=f"in_{len(queue)}")
    def actor(key):
        note(key)

    return actor


def test_a_queue_may_have_the_longest_name_there_is(make_settings, fresh):
    system = fresh(broker_prefix=("x" * 40))
    actor = declared(system, "q" * MAX_QUEUE)
    system.start()

    key = f"longest {system.settings.broker}"
    assert system.ended(actor.send(key)).state is State.COMPLETED
    assert len(seen[key]) == 1


@pytest.mark.parametrize("queue", ["q" * (MAX_QUEUE + 1), "q" * 9_000, "a,b", "*", "", "a b", "null\0"])
def test_a_queue_that_no_broker_could_carry_is_refused_and_keeps_nothing_from_being_sent(system, queue):
    message = Message(queue_name=queue, actor_name="parked", args=(1,), kwargs={}, options={})
    before = system.count()

    for send in (lambda: system.broker.enqueue(message), lambda: switchyard.enqueue_many([message, message])):
        with pytest.raises(OptionError, match="actor 'parked', option 'queue_name'"):
            send()

    assert system.count() == before
    assert system.ended(system.jobs.typed.send(1, "after it")).state is State.COMPLETED


def test_an_actor_cannot_be_declared_in_a_queue_that_no_broker_could_carry(system):
    with pytest.raises(OptionError, match=f"{MAX_QUEUE} are the most"):
        declared(system, "q" * (MAX_QUEUE + 1))


def test_a_setting_that_names_such_a_queue_is_refused(settings):
    with pytest.raises(switchyard.SettingsError, match=f"QUEUE_CONCURRENCY.*{MAX_QUEUE} are the most"):
        load(database_url=settings.database_url, queue_concurrency={"q" * (MAX_QUEUE + 1): 1})
