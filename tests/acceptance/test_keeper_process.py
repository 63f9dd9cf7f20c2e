"""``switchyard keeper``: every duty without a worker and without actors, an end at once, and one line where it cannot start."""

from __future__ import annotations

import sys
import time

import psycopg
import pytest

from ledger.database import Database
from settings import variables
from tests.ledger.factory import add, age_lease, claim, fetch
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import wait_until

#: Nobody listens there.
NOWHERE = "postgresql://postgres@127.0.0.1:9/nothing"


@pytest.fixture
def keeper(settings, tmp_path):
    """Starts ``switchyard keeper`` with this test's settings."""
    started = []

    def keeper(**overrides):
        environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT)} | overrides
        log = tmp_path / f"keeper-{len(started)}.log"
        started.append(
            Child([sys.executable, "-c", "from cli import main; main()", "keeper"], log=log, env=environment, cwd=tmp_path)
        )
        return started[-1]

    yield keeper
    for child in started:
        if child.running:
            child.kill()


@pytest.fixture
def ledger(settings):
    with Database(settings.database_url.get_secret_value()).dedicated("test") as connection:
        yield connection


def test_alone_it_relays_rescues_and_buries_and_sigterm_ends_it_at_once(keeper, ledger):
    scheduled, expiring, lost = add(ledger, delay=0.1), add(ledger, max_age=0.0), add(ledger)
    claim(ledger, lost, holder="dead")
    age_lease(ledger, lost)

    child = keeper()

    wait_until(lambda: fetch(ledger, scheduled, "state") == "pending", 30, child.output)
    wait_until(lambda: fetch(ledger, expiring, "dead_reason") == "expired", 30, child.output)
    wait_until(lambda: fetch(ledger, lost, "state") == "pending", 30, child.output)
    began = time.monotonic()
    child.terminate()
    assert child.wait(30) == 0, child.output()
    assert time.monotonic() - began < 20
    assert "stopped by SIGTERM" in child.output()


def test_it_is_no_worker_in_the_eyes_of_others(keeper, ledger):
    scheduled = add(ledger, delay=0.1)

    child = keeper()

    wait_until(lambda: fetch(ledger, scheduled, "state") == "pending", 30, child.output)
    assert ledger.execute("SELECT count(*) FROM switchyard.worker").fetchone() == (0,)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"DATABASE_URL": NOWHERE}, "switchyard: DATABASE_URL: nobody answers at 127.0.0.1:9 (Connection refused)"),
        ({"BROKER": "stub"}, "switchyard: BROKER: is stub, which has no ledger to keep; write postgres, redis or rabbitmq"),
    ],
    ids=["no Postgres", "stub"],
)
def test_where_it_cannot_start_it_says_one_line(keeper, variables, line):
    child = keeper(**variables)

    assert child.wait(60) == 1
    assert child.output().splitlines() == [line]


def test_an_unmigrated_database_is_one_line(keeper, settings):
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        connection.execute("DROP SCHEMA switchyard CASCADE")

    child = keeper()

    assert child.wait(60) == 1
    (line,) = child.output().splitlines()
    assert line.startswith("switchyard: ")
    assert "switchyard migrate" in line
