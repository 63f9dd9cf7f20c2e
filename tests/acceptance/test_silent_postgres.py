"""A Postgres that stands still for longer than a lease and goes on, without a restart: the living keep what they run."""

from __future__ import annotations

from time import monotonic
from urllib.parse import urlsplit

import psycopg
import pytest

import migrations
from ledger.states import State
from tests.acceptance.jobs import TABLE, declare
from tests.conformance.system import System
from tests.rig.postgres import PrivatePostgres
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

WORKER = "tests.acceptance.worker"


@pytest.fixture
def frozen(settings, tmp_path):
    """A system on a Postgres of its own that may be frozen, and a way to start its workers."""
    server = PrivatePostgres()
    server.start()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE silent")
    url = urlsplit(server.url)._replace(path="/silent").geturl()
    migrations.upgrade(url)
    system = System(settings.model_copy(update={"database_url": type(settings.redis_url)(url), "lease": 3.0}), declare)
    system.database.run(lambda connection: connection.execute(TABLE))
    workers = Workers(system.settings, tmp_path)
    yield server, system, workers
    print(workers.logs())
    workers.close()
    system.close()
    server.stop()


def test_nothing_is_taken_from_living_workers_by_the_first_keeper_that_gets_an_answer(frozen, tmp_path):
    server, system, workers = frozen
    go = tmp_path / "go"
    fleet = [workers(WORKER, threads=2) for _ in range(3)]
    held = [system.jobs.wait_for_file.send(str(go)) for _ in range(6)]
    wait_until(lambda: system.rows("SELECT count(*) FROM effect") == [(6,)], 60, "all six run")
    # Up for a lease, so that its uptime says nothing.
    wait_until(lambda: system.rows("SELECT clock_timestamp() - pg_postmaster_start_time() > interval '4 s'") == [(True,)], 60)

    for _ in range(3):
        server.freeze()
        try:
            until = monotonic() + 2 * system.settings.lease
            wait_until(lambda until=until: monotonic() > until, 60)
        finally:
            server.thaw()
        wait_until(
            lambda: system.rows("SELECT bool_and(lease_until > clock_timestamp()) FROM switchyard.job") == [(True,)],
            30,
            "every lease runs again",
        )
    go.touch()

    wait_until(lambda: all(system.job(message).state is State.COMPLETED for message in held), 30, "all end")
    assert system.rows("SELECT count(*) FROM switchyard.attempt WHERE outcome = 'lost'") == [(0,)]
    assert system.rows("SELECT max(attempt) FROM switchyard.job") == [(1,)]
    assert all(worker.running for worker in fleet)
