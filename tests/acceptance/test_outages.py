"""Servers that go away and come back while jobs flow: sends go on, workers recover by themselves, nothing is lost or run in vain."""

from __future__ import annotations

import subprocess
import sys
import threading
from time import monotonic
from urllib.parse import urlsplit

import psycopg
import pytest

import migrations
import switchyard
from errors import LedgerUnavailable
from ledger.states import State
from settings import variables
from tests.acceptance.jobs import TABLE, declare
from tests.conformance.system import System
from tests.rig.postgres import PrivatePostgres
from tests.rig.processes import ROOT, base_environment
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.redis import PrivateRedis
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

WORKER = "tests.acceptance.worker"


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def carrier(request):
    """A private broker that the tests of this module may stop, and start again."""
    server = {"redis": PrivateRedis, "rabbitmq": PrivateRabbit}[request.param]()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def outage(carrier, settings, tmp_path):
    """A system on the private broker, and a way to start its workers."""
    # What a killed broker forgot is repaired after a lease; 30 seconds would be long for a test.
    changed = {"broker": carrier.name, f"{carrier.name}_url": type(settings.redis_url)(carrier.url), "lease": 3.0, "sweep": 0.5}
    system = System(settings.model_copy(update=changed), declare)
    system.database.run(lambda connection: connection.execute(TABLE))
    workers = Workers(system.settings, tmp_path)
    yield system, workers
    print(workers.logs())
    workers.close()
    carrier.start()
    system.close()


def count(system, state):
    return system.rows("SELECT count(*) FROM switchyard.job WHERE state = %s", state)[0][0]


def sends(system, n):
    """Send n jobs one by one; the longest send in seconds."""
    longest = 0.0
    for number in range(n):
        began = monotonic()
        system.jobs.quick.send(number)
        longest = max(longest, monotonic() - began)
    return longest


def test_sends_go_on_without_their_broker_and_are_published_when_it_is_back(carrier, outage):
    system, workers = outage
    system.jobs.quick.send(0)
    carrier.kill()

    longest = sends(system, 30)
    switchyard.enqueue_many([system.jobs.quick.message(n) for n in range(30)])

    # A connection's time-out would be several seconds.
    assert longest < 2
    assert count(system, "pending") == 61
    wait_until(lambda: system.broker.publisher.is_open(carrier.name), 30, "the sender knows that it is down")
    late = system.jobs.quick.send(30)
    due = "SELECT next_publish_at <= clock_timestamp() FROM switchyard.job WHERE message_id = %s"
    assert system.rows(due, late.message_id) == [(True,)]
    workers(WORKER)
    wait_until(lambda: "cannot fetch" in workers.logs() or "is down" in workers.logs(), 60, "the worker misses the broker")
    carrier.start()
    wait_until(lambda: count(system, "completed") == 62, 60, lambda: f"all are run: {count(system, 'completed')}")
    assert system.rows("SELECT DISTINCT attempt FROM switchyard.job") == [(1,)]


def test_a_broker_that_is_frozen_delays_no_send(carrier, outage):
    system, _ = outage
    system.jobs.quick.send(0)
    carrier.freeze()
    try:
        assert sends(system, 30) < 2
    finally:
        carrier.thaw()
    assert count(system, "pending") == 31


SCRIPT = """
import switchyard
from tests.acceptance.worker import actors
actors.quick.send(1)
"""


def test_a_script_whose_broker_is_frozen_ends_all_the_same_and_its_job_is_published_later(carrier, outage):
    system, workers = outage
    environment = base_environment() | variables(system.settings) | {"PYTHONPATH": str(ROOT)}
    carrier.freeze()
    try:
        began = monotonic()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        took = monotonic() - began
    finally:
        carrier.thaw()

    assert done.returncode == 0, done.stderr
    # Two seconds for the broker; the rest is the interpreter's.
    assert took < 12
    workers(WORKER)
    wait_until(lambda: count(system, "completed") == 1, 60, "it is published by the relay, and runs")


def test_a_broker_killed_while_jobs_flow_loses_none(carrier, outage):
    system, workers = outage
    workers(WORKER)
    flowing = threading.Event()

    def flow():
        for number in range(400):
            system.jobs.brief.send(0.002)
            if number == 100:
                flowing.set()

    sender = threading.Thread(target=flow)
    sender.start()
    assert flowing.wait(60)
    carrier.kill()
    wait_until(lambda: not sender.is_alive(), 60, "the sender has sent all")
    sender.join()
    carrier.start()

    wait_until(lambda: count(system, "completed") == 400, 90, lambda: f"all are run: {count(system, 'completed')}")
    assert system.rows("SELECT max(attempt), count(*) FROM switchyard.job") == [(1, 400)]


@pytest.fixture(scope="module")
def ledger_server():
    """A private Postgres that the tests of this module may stop."""
    server = PrivatePostgres()
    server.start()
    yield server
    server.stop()


def ledger_of(server, name):
    """A migrated database of that server; its URL."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = urlsplit(server.url)._replace(path=f"/{name}").geturl()
    migrations.upgrade(url)
    return url


def test_a_send_to_a_frozen_postgres_gives_up_in_time_and_can_be_made_again(ledger_server, settings, broker_name):
    url = ledger_of(ledger_server, f"frozen_{broker_name}")
    fields = {"database_url": type(settings.redis_url)(url), "send_timeout": 1.0}
    system = System(settings.model_copy(update=fields), declare)
    try:
        first = system.jobs.quick.send(0)
        ledger_server.freeze()
        try:
            began = monotonic()
            with pytest.raises(LedgerUnavailable, match="send the same message again") as unknown:
                system.jobs.quick.send(1)
            assert monotonic() - began < 5
        finally:
            ledger_server.thaw()

        assert unknown.value.message.args == (1,)
        # Whether the first one arrived after all or not.
        for _ in range(2):
            again = system.broker.enqueue(unknown.value.message)

        assert again.message_id == unknown.value.message.message_id
        assert {id_ for (id_,) in system.rows("SELECT message_id::text FROM switchyard.job")} == {
            first.message_id,
            again.message_id,
        }
    finally:
        system.close()


def test_results_are_held_while_postgres_is_away_and_nothing_runs_twice(ledger_server, settings, broker_name, tmp_path):
    url = ledger_of(ledger_server, f"outage_{broker_name}")
    system = System(settings.model_copy(update={"database_url": type(settings.redis_url)(url)}), declare)
    workers = Workers(system.settings, tmp_path)
    try:
        system.database.run(lambda connection: connection.execute(TABLE))
        go = tmp_path / "go"
        worker = workers(WORKER)
        held = [system.jobs.wait_for_file.send(str(go)) for _ in range(2)]
        wait_until(lambda: system.rows("SELECT count(*) FROM effect") == [(2,)], 60, "two run")
        switchyard.enqueue_many([system.jobs.brief.message(0.01) for _ in range(300)])
        wait_until(lambda: count(system, "completed") > 50, 60, "the others flow")

        ledger_server.stop()
        # Away for longer than the lease: after it every lease looks expired at once.
        back_at = monotonic() + 1.5 * system.settings.lease
        wait_until(lambda: monotonic() > back_at, 30)
        ledger_server.start()
        go.touch()

        # Well below the 30 s after which a trigger that was dropped would be published again.
        wait_until(lambda: count(system, "completed") == 302, 20, lambda: f"all end: {count(system, 'completed')}")
        assert worker.running
        assert system.rows("SELECT count(*) FROM switchyard.attempt WHERE outcome = 'lost'") == [(0,)]
        assert system.rows("SELECT max(lost) FROM switchyard.job") == [(0,)]
        assert [system.job(m).state for m in held] == [State.COMPLETED] * 2
        assert worker.stop() == 0
    finally:
        print(workers.logs())
        workers.close()
        system.close()
