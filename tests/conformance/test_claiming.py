"""The edges of a claim in a running worker: its reply is lost, it is committed too late, it is lost while its job runs."""

from __future__ import annotations

from contextlib import closing
from typing import Any
from uuid import uuid4

import dramatiq
import psycopg
import pytest

import switchyard
from errors import LeaseLost
from ledger import write
from ledger.states import State
from tests.conformance import jobs
from tests.rig.waiting import wait_until

#: How the two kinds of fetchers claim.
CLAIMS = ("claim_by_id", "claim_next")


@pytest.fixture
def key():
    return str(uuid4())


def on_each_claim(monkeypatch: pytest.MonkeyPatch, wrap: Any) -> None:
    """Let ``wrap`` stand around both kinds of claim of ordinary jobs: ``wrap(real claim, connection, arguments, keywords)``."""
    for name in CLAIMS:
        real = getattr(write, name)

        def claim(connection, *arguments, real=real, **keywords):
            return wrap(real, connection, arguments, keywords)

        monkeypatch.setattr(write, name, claim)


def cut(connection: psycopg.Connection[Any]) -> None:
    """The connection is lost, and whoever waits for a reply on it learns so."""
    connection.close()
    raise psycopg.OperationalError("the connection is lost")


def test_a_claim_whose_reply_was_lost_is_read_back_and_runs_as_the_same_attempt(fresh, key, monkeypatch):
    system, struck = fresh(), []

    def wrap(claim, connection, arguments, keywords):
        found = claim(connection, *arguments, **keywords)
        if found and not struck:
            struck.append(True)
            cut(connection)
        return found

    on_each_claim(monkeypatch, wrap)
    message = system.jobs.count.send(key)
    system.start(threads=2)

    job = system.ended(message)

    assert struck
    assert (job.state, job.attempt, job.lost) == (State.COMPLETED, 1, 0)
    assert jobs.runs[key] == 1
    assert [entry.outcome for entry in system.attempts(message)] == ["completed"]


def test_a_claim_committed_after_it_was_looked_for_in_vain_costs_the_job_no_loss(fresh, key, monkeypatch):
    """The server was slow: the connection was given up, the look by token found nothing, and then the claim was committed."""
    system, late = fresh(), []
    taken: list[Any] = []
    look = write.claimed_with_token

    def wrap(claim, connection, arguments, keywords):
        waits = system.rows("SELECT count(*) FROM switchyard.job WHERE state = 'pending'") == [(1,)]
        if waits and not late and not keywords.get("suspects"):
            late.append(lambda own: claim(own, *arguments, **keywords))
            cut(connection)
        return claim(connection, *arguments, **keywords)

    def looked_for_in_vain(connection, **keywords):
        found = look(connection, **keywords)
        if late and not taken:
            with closing(system.database.dedicated("test")) as own:
                taken.extend(late[0](own))
        return found

    on_each_claim(monkeypatch, wrap)
    monkeypatch.setattr(write, "claimed_with_token", looked_for_in_vain)
    message = system.jobs.count.send(key)
    system.start(threads=2)

    job = system.ended(message, timeout=30)

    assert [entry.message_id for entry in taken] == [message.message_id]
    assert (job.state, job.attempt, job.lost) == (State.COMPLETED, 2, 0)
    assert jobs.runs[key] == 1
    assert [entry.outcome for entry in system.attempts(message)] == ["lost", "completed"]


def test_a_running_job_that_was_given_to_another_is_told_so_and_its_end_is_refused(fresh, key):
    system = fresh()
    told: list[BaseException] = []

    @dramatiq.actor(broker=system.broker, queue_name="gated", max_retries=0)
    def is_told(key: str) -> None:
        jobs.note(key)
        jobs.gate(key).wait(30)
        try:
            switchyard.current_job().progress(50)
        except BaseException as error:
            told.append(error)
            raise

    message = is_told.send(key)
    system.start(threads=2)
    wait_until(lambda: jobs.runs[key] == 1)
    system.rows(
        "UPDATE switchyard.job SET token = gen_random_uuid(), worker = 'another', attempt = attempt + 1,"
        " lease_until = clock_timestamp() + interval '1 hour' WHERE message_id = %s RETURNING 1",
        message.message_id,
    )
    jobs.gate(key).set()

    wait_until(lambda: told)
    assert isinstance(told[0], LeaseLost)
    wait_until(lambda: system.counters().get("fenced") == 1)
    assert (system.job(message).state, system.job(message).attempt) == (State.RUNNING, 2)
    assert system.rows("SELECT worker FROM switchyard.job") == [("another",)]


# The heartbeat knows no broker.
@pytest.mark.parametrize("broker_name", ["postgres"], indirect=True)
def test_a_running_job_shows_since_when_it_runs_long_before_the_next_beat(fresh, key):
    system = fresh(lease=3_600.0).start(threads=2)
    message = system.jobs.wait_at_gate.send(key)
    wait_until(lambda: jobs.runs[key] == 1)

    running = system.until(message, lambda job: job.started_at is not None)
    jobs.gate(key).set()

    assert running.state is State.RUNNING
    assert running.created_at <= running.started_at <= system.ended(message).finished_at
