"""The witness also knows of jobs that retention has removed, and complains about what is left or held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from keeper import retention
from ledger import write
from ledger.database import Database
from settings import Settings
from tests.faults.jobs import TABLES as FAULT_TABLES
from tests.faults.test_checker import World
from tests.ledger.factory import completed, released
from tests.soak import witness
from tests.soak.jobs import TABLES


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with closing(Database(database_url).dedicated("test")) as connection:
        connection.execute(FAULT_TABLES + TABLES, prepare=False)
        yield World(connection)


def retain_nothing(world: World, settings: Settings) -> int:
    """Have retention remove whatever has ended; how many it removed."""
    return retention.prune(world.connection, settings, now=datetime.now(UTC) + timedelta(days=1_000))[0]


def complaints(world: World, url: str) -> list[str]:
    """What the witness says of the jobs."""
    return witness.judge_jobs(url, lambda: world.events, 3).violations


def test_jobs_that_went_well_and_were_removed_are_no_reason_to_complain(world: World, settings: Settings, database_url: str):
    world.completed()
    world.completed("fenced")
    assert retain_nothing(world, settings) == 2
    world.completed()

    verdict = witness.judge_jobs(database_url, lambda: world.events, 3)

    assert verdict.violations == []
    assert verdict.jobs == 3


def test_the_attempts_of_a_removed_job_are_known(world: World, settings: Settings, database_url: str):
    job = world.sent()
    id_, token = world.started(job)
    world.note("end", job=job.message_id, attempt=1, token=token, outcome="Shutdown")
    write.finish(world.connection, [released(id_, token)])
    id_, token = world.started(job)
    world.note("end", job=job.message_id, attempt=2, token=token, outcome="ok")
    result = json.dumps({"attempt": 2, "token": token})
    write.finish(world.connection, [completed(id_, token, result)])
    assert retain_nothing(world, settings) == 1

    assert complaints(world, database_url) == []


def test_a_job_that_is_gone_otherwise_is_lost(world: World, database_url: str):
    job = world.completed()
    world.alter("DELETE FROM switchyard.job WHERE message_id = %s", job)

    assert "I1: 1 jobs were accepted and are gone" in complaints(world, database_url)[0]


def test_a_removed_job_that_ended_otherwise_than_it_had_to_is_found(world: World, settings: Settings, database_url: str):
    job = world.completed()
    world.alter("UPDATE switchyard.job SET actor = 'doomed' WHERE message_id = %s", job)
    retain_nothing(world, settings)

    assert any("ended otherwise than they had to" in text and job.message_id in text for text in complaints(world, database_url))


def test_a_job_that_ended_twice_is_found(world: World, database_url: str):
    job = world.completed()
    world.connection.execute(
        "INSERT INTO rig_step (job, before, after, generation, attempt)"
        " SELECT job, before, after, generation, attempt FROM rig_step WHERE after = 'completed'"
    )

    assert any("not ended exactly once" in text and job.message_id in text for text in complaints(world, database_url))


def test_a_job_run_twice_without_a_failure_is_found(world: World, database_url: str):
    job = world.sent()
    id_, token = world.started(job)
    world.note("start", job=job.message_id, attempt=1, token=token)
    world.ended(job, id_, token)

    assert any("run more than once" in text for text in complaints(world, database_url))


def test_a_send_that_was_told_to_be_another_job_must_not_be_there(world: World, database_url: str):
    job = world.completed()
    world.note("folded", job=job.message_id, into="another")

    assert any(text.startswith("P6") and job.message_id in text for text in complaints(world, database_url))


def test_what_is_left_in_a_table_is_named(world: World):
    world.sent()

    assert witness.left_in(world.connection, ("job", "attempt")) == ["1 rows in job"]


def test_a_lock_and_a_connection_that_nobody_let_go_of_are_named(world: World, database_url: str):
    assert witness.held_in(world.connection, clients=True) == []

    with closing(psycopg.connect(database_url)) as other:
        other.execute("SELECT pg_advisory_lock(1)")

        assert witness.held_in(world.connection, clients=True) == ["1 advisory or awaited locks", "1 connections"]
