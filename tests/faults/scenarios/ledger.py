"""F8: Postgres dies, restarts, throws everybody out, runs out of connections, or sits on a lock."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack, closing

import psycopg

from tests.faults.checker import Verdict, waited_for_leases
from tests.faults.rig import Rig, pause
from tests.faults.scenarios import Plan, scenario

#: Of the jobs, the share that an outage of Postgres may take from workers that live.
STORM = 0.01


@scenario(
    "F8",
    "Postgres: kill -9, immediate stop, backends terminated, hot rows locked, no connections left; pools of 1",
    unit="outages",
    full=100,
    weight=3,
    after=lambda rig, verdict: _no_storm(rig, verdict),
)
def hurt_postgres(rig: Rig, plan: Plan) -> None:
    """Two workers and a producer with a pool of one; sends fail only as LedgerUnavailable, and are repeated until they are told."""
    one = {"POOL_SIZE": "1"}
    rig.staff(2, env=one)
    rig.stream(env=one)
    rig.baseline = rig.needs()
    for trial in plan:
        hurt = OUTAGES[trial % len(OUTAGES)]
        with rig.faulty(hurt.__name__.strip("_")):
            hurt(rig)
        rig.flowing(10)


def _killed(rig: Rig) -> None:
    rig.servers.postgres.kill()
    pause(rig.random.uniform(0.3, 3.0))
    rig.servers.postgres.start()


def _terminated(rig: Rig) -> None:
    for _ in range(4):
        rig.rows("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'switchyard%%'")
        pause(0.3)


def _stopped_at_once(rig: Rig) -> None:
    server = rig.servers.postgres
    assert server.child is not None
    server.child.send(signal.SIGQUIT)
    server.child.wait(30)
    pause(rig.random.uniform(0.3, 3.0))
    server.start()


def _locked(rig: Rig) -> None:
    with psycopg.connect(rig.database_url) as connection:
        # In the product's own order: a deadlock would be this test's doing, and it its victim.
        connection.execute("SELECT 1 FROM switchyard.job WHERE state IN ('running', 'pending') ORDER BY id FOR UPDATE")
        pause(1.0)
        connection.rollback()


def _full(rig: Rig) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            try:
                stack.enter_context(closing(psycopg.connect(rig.database_url, connect_timeout=5)))
            except psycopg.OperationalError:
                break
        rig.rows("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'switchyard%%'")
        pause(1.5)


OUTAGES: tuple[Callable[[Rig], None], ...] = (_killed, _terminated, _full, _stopped_at_once, _locked)


def _no_storm(rig: Rig, verdict: Verdict) -> None:
    taken = waited_for_leases(rig.case())
    if len(taken) > max(3, STORM * verdict.jobs):
        verdict.complain("I2", "jobs were taken from living workers", taken)
