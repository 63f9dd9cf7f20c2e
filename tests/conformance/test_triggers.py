"""Whatever comes out of a broker, or does not: strangers' messages, stale and doubled triggers, actors that nobody knows."""

from __future__ import annotations

import hashlib

import dramatiq
import pytest

import brokers
import switchyard
from ledger.states import State
from runtime.triggers import Outgoing
from tests.brokers.conftest import put_raw
from tests.conformance import jobs
from tests.rig.waiting import wait_until

CARRYING = tuple(name for name in brokers.TRANSPORTS if brokers.transport_class(name).carries_triggers)
JUNK = [b"", b"\xff\xfe not text", b"not a trigger at all", b'{"json": true}', b"12x count"]


@pytest.fixture
def publish(system):
    """Publish triggers by hand, as a confused or malicious sender would."""
    sender = system.broker.transport(system.settings.broker).sender()
    yield lambda *triggers: (sender.publish(triggers), sender.flush(30.0))
    sender.close()


def row_id(system, message):
    return system.rows("SELECT id FROM switchyard.job WHERE message_id = %s", message.message_id)[0][0]


def counted(system, name, amount):
    return lambda: system.counters().get(name, 0) >= amount


# On Postgres a row is its own message: there is nothing to decode, and nobody can point at another row.
@pytest.mark.parametrize("broker_name", CARRYING, indirect=True)
def test_what_is_no_trigger_is_dropped_logged_once_and_harms_no_neighbour(system, caplog):
    before = system.counters().get("undecodable_triggers", 0)
    key = f"neighbours {system.settings.broker}"

    good = [system.jobs.count.send(key) for _ in range(5)]
    put_raw(system.settings, "counted", JUNK)
    good += [system.jobs.count.send(key) for _ in range(5)]
    wait_until(counted(system, "undecodable_triggers", before + len(JUNK)), message="the junk is counted")
    put_raw(system.settings, "counted", JUNK[1:2])
    wait_until(counted(system, "undecodable_triggers", before + len(JUNK) + 1), message="the second one too")

    assert {system.ended(message).state for message in good} == {State.COMPLETED}
    assert jobs.runs[key] == 10
    logged = [record.getMessage() for record in caplog.records if "no trigger" in record.getMessage()]
    assert len([line for line in logged if hashlib.sha256(JUNK[1]).hexdigest()[:12] in line]) == 1
    assert not [line for line in logged for raw in ("not text", "not a trigger at all", "json", "12x") if raw in line]


@pytest.mark.parametrize("broker_name", CARRYING, indirect=True)
def test_a_trigger_for_a_row_that_does_not_exist_is_counted_and_dropped(system, publish):
    before = system.counters().get("unknown_jobs", 0)

    publish(Outgoing(10**15, "counted", "count"), Outgoing(10**15 + 1, "counted", "count"))

    wait_until(counted(system, "unknown_jobs", before + 2), message="both are counted")
    assert system.jobs.add.send(1, 2).get_result(block=True) == 3


def test_fifty_triggers_of_one_job_run_it_once(system, publish):
    key = f"fifty {system.settings.broker}"
    message = system.jobs.count.send(key)
    trigger = Outgoing(row_id(system, message), "counted", "count")

    for _ in range(50):
        publish(trigger)

    system.ended(message)
    after = system.jobs.count.send(key + " after")
    assert system.ended(after).state is State.COMPLETED
    job = system.job(message)
    assert (jobs.runs[key], job.attempt, job.state) == (1, 1, State.COMPLETED)


def test_a_trigger_of_a_finished_job_is_counted_and_changes_nothing(system, publish):
    key = f"finished {system.settings.broker}"
    message = system.jobs.count.send(key)
    done = system.ended(message)
    before = system.counters().get("stale_triggers", 0)

    publish(Outgoing(row_id(system, message), "counted", "count"))

    if system.settings.broker in CARRYING:
        wait_until(counted(system, "stale_triggers", before + 1), message="it is counted")
    assert system.ended(system.jobs.count.send(key + " after")).state is State.COMPLETED
    assert system.job(message) == done
    assert jobs.runs[key] == 1


def stranger(queue="default"):
    return dramatiq.Message(queue_name=queue, actor_name="nobody_knows", args=(), kwargs={}, options={})


def test_a_job_of_an_unknown_actor_waits_and_is_dead_in_the_end_while_others_go_on(fresh):
    system = fresh(unknown_actor_after=6.0).start()

    message = system.broker.enqueue(stranger())
    waiting = system.until(message, lambda job: job.wait_reason == "unknown_actor")
    others = [system.jobs.add.send(n, 1) for n in range(10)]

    assert waiting.state is State.PENDING
    assert [other.get_result(block=True) for other in others] == list(range(1, 11))
    assert system.job(message).state is State.PENDING
    job = system.ended(message, 30)
    assert (job.state, job.dead_reason, job.attempt, job.failures) == (State.DEAD, "unknown_actor", 0, 0)
    assert "nobody_knows" in job.error
    assert switchyard.attempts(job.id) == []


def test_a_worker_that_knows_the_actor_takes_what_another_could_not(fresh):
    system = fresh().start()
    message = system.broker.enqueue(stranger())
    system.until(message, lambda job: job.wait_reason == "unknown_actor")

    dramatiq.actor(actor_name="nobody_knows", broker=system.broker)(lambda: "known now")

    job = system.ended(message, 30)
    assert (job.state, job.result, job.wait_reason) == (State.COMPLETED, "known now", None)
