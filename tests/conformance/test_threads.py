"""What goes wrong in a worker's own threads in a way nobody thought of: it is logged, the thread lives on, jobs go on."""

from __future__ import annotations

import threading

import dramatiq
import pytest

import brokers
from ledger import schedules, write
from ledger.states import State
from tests.rig.waiting import wait_until

CARRYING = tuple(name for name in brokers.TRANSPORTS if brokers.transport_class(name).carries_triggers)


class Bug(Exception):
    """Nothing that any code of ours expects."""


@pytest.fixture
def system(fresh):
    """A running system of the test's own, whose lost triggers are looked for soon."""
    return fresh(lease=3.0).start()


def criticals(caplog, text):
    return [record for record in caplog.records if record.levelname == "CRITICAL" and text in record.getMessage()]


def alive(name):
    return any(thread.name.startswith(name) for thread in threading.enumerate())


@pytest.mark.parametrize("broker_name", CARRYING, indirect=True)
def test_a_job_that_breaks_the_fetcher_is_dropped_from_its_hands_and_others_go_on(system, monkeypatch, caplog):
    real, guilty = write.claim_by_id, []

    def claim_by_id(connection, ids, **options):
        if set(guilty) & set(ids):
            raise Bug("in the claim")
        return real(connection, ids, **options)

    monkeypatch.setattr(write, "claim_by_id", claim_by_id)
    bad = system.jobs.echo.send_with_options(args=("bad",), delay=300)
    guilty += system.rows("SELECT id FROM switchyard.job WHERE message_id = %s", bad.message_id)[0]
    wait_until(lambda: criticals(caplog, "the fetcher failed"), message="it was fetched")

    others = [system.jobs.add.send(number, 1) for number in range(10)]

    assert {system.ended(message, 60).state for message in others} == {State.COMPLETED}
    assert alive("switchyard-fetcher")
    assert system.job(bad).state is State.PENDING
    guilty.clear()
    assert system.ended(bad, 60).attempt == 1


@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
@pytest.mark.parametrize("statement", ["claim_next", "ready_queues"])
def test_the_fetcher_of_the_ledger_outlives_a_failure(system, monkeypatch, caplog, statement):
    real, failures = getattr(write, statement), iter(range(2))

    def failing(*arguments, **options):
        if next(failures, None) is not None:
            raise Bug("in the statement")
        return real(*arguments, **options)

    monkeypatch.setattr(write, statement, failing)
    message = system.jobs.add.send(1, 2)

    assert system.ended(message, 60).result == 3
    wait_until(lambda: len(criticals(caplog, "the fetcher failed")) == 2)
    assert alive("switchyard-fetcher")


def test_the_keeper_outlives_a_failure(system, monkeypatch, caplog):
    real, failures = schedules.next_due_and_tick, iter(range(2))

    def next_due_and_tick(connection, actors):
        if next(failures, None) is not None:
            raise Bug("in the look for due rows")
        return real(connection, actors)

    monkeypatch.setattr("keeper.loop.RETRY_MAX", 0.1)
    monkeypatch.setattr(schedules, "next_due_and_tick", next_due_and_tick)
    message = system.jobs.add.send_with_options(args=(1, 2), delay=300)

    assert system.ended(message, 60).result == 3
    wait_until(lambda: len(criticals(caplog, "keeper")) >= 2)
    assert alive("switchyard-keeper")


def test_the_heartbeat_outlives_a_failure(system, monkeypatch, caplog):
    real, failures = write.beat, iter(range(2))

    def beat(*arguments):
        if next(failures, None) is not None:
            raise Bug("in the beat")
        return real(*arguments)

    monkeypatch.setattr(write, "beat", beat)
    wait_until(lambda: len(criticals(caplog, "heartbeat failed")) == 2)
    (before,) = system.rows("SELECT beat_at FROM switchyard.worker")

    wait_until(lambda: system.rows("SELECT beat_at FROM switchyard.worker") != [before], message="it beats again")
    assert alive("switchyard-heartbeat")
    assert system.jobs.add.send(1, 2).get_result(block=True, timeout=30_000) == 3


def test_a_publish_that_fails_unforeseen_is_made_good_by_the_relay(system, monkeypatch, caplog):
    sender = type(system.broker.transport(system.settings.broker).sender())
    real, failures = sender.publish, iter(range(1))

    def publish(self, batch):
        if next(failures, None) is not None:
            raise Bug("in the publish")
        return real(self, batch)

    monkeypatch.setattr(sender, "publish", publish)
    message = system.jobs.add.send(1, 2)

    assert system.ended(message, 60).result == 3
    wait_until(lambda: len(criticals(caplog, "publishing failed")) == 1)
    assert alive("switchyard-publisher")


def test_a_worker_without_jobs_stops_without_waiting_for_its_threads_next_look(fresh):
    system = fresh()
    # Dramatiq's threads look whether they are stopped each time that a wait for work is over: every ten minutes here.
    system.worker = dramatiq.Worker(system.broker, worker_threads=2, worker_timeout=600_000)
    system.worker.start()
    system.ended(system.jobs.add.send(1, 1))
    stopping = threading.Thread(target=system.stop, daemon=True)

    stopping.start()

    wait_until(lambda: not stopping.is_alive(), 60, "the worker stops")
