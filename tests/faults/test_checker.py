"""The checker complains about each invariant that is broken, and about none that holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest

from ledger import write
from ledger.database import BoundedConnection, Database
from ledger.records import Finish, NewJob
from ledger.states import State
from tests.faults.checker import Case, check, recoveries
from tests.faults.jobs import TABLES
from tests.faults.recorder import Event

Complaints = Callable[[], list[str]]


class World:
    """A ledger with jobs that went well, and what was recorded about them."""

    def __init__(self, connection: BoundedConnection) -> None:
        self.connection = connection
        self.events: list[Event] = []
        self._clock = 0.0

    def note(self, kind: str, pid: int = 1, **fields: Any) -> None:
        """Record a line, a second after the last one."""
        self._clock += 1.0
        self.events.append(Event(kind, self._clock, pid, fields))

    def sent(self, actor: str = "plain", **fields: Any) -> NewJob:
        """A job that was sent."""
        job = NewJob(
            message_id=str(uuid4()),
            queue="default",
            actor=actor,
            payload='{"args": [], "kwargs": {}}',
            broker="postgres",
            max_attempts=3,
        )
        self.note("invoke", job=job.message_id, actor=actor, **fields)
        write.enqueue(self.connection, job)
        self.note("ok", job=job.message_id)
        return job

    def started(self, job: NewJob, pid: int = 1) -> tuple[int, str]:
        """A claim of it, and the start of its execution; returns the row's id and the token."""
        token = str(uuid4())
        ((id_,),) = self.connection.execute("SELECT id FROM switchyard.job WHERE message_id = %s", (job.message_id,)).fetchall()
        (claimed,) = write.claim_by_id(self.connection, [id_], actors=[job.actor], worker="w", token=token, lease=30.0)
        self.note("start", pid, job=job.message_id, attempt=claimed.attempt, token=token)
        return id_, token

    def ended(self, job: NewJob, id_: int, token: str) -> None:
        """The execution's good end, accepted."""
        self.note("end", job=job.message_id, attempt=1, token=token, outcome="ok")
        if job.actor == "fenced":
            self.effect(job, token)
        result = json.dumps({"attempt": 1, "token": token})
        done = write.finish(
            self.connection, [Finish(id=id_, token=token, state=State.COMPLETED, started=0, finished=0, result=result)]
        )
        assert done == {id_}

    def effect(self, job: NewJob, token: str) -> None:
        """A committed effect."""
        self.connection.execute("INSERT INTO rig_effect VALUES (%s, 1, %s)", (job.message_id, token))

    def completed(self, actor: str = "plain") -> NewJob:
        """A job that ran and completed."""
        job = self.sent(actor)
        self.ended(job, *self.started(job))
        return job

    def alter(self, statement: str, job: NewJob) -> None:
        """Do what no code of ours would: change the ledger by hand, past its own guards."""
        self.connection.execute("SET session_replication_role = replica")
        self.connection.execute(statement.encode(), (job.message_id,))
        self.connection.execute("SET session_replication_role = origin")

    def complaints(self) -> list[str]:
        """What the checker says."""
        return check(Case(self.connection, lambda: self.events, max_lost=3)).violations


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with closing(Database(database_url).dedicated("test")) as connection:
        connection.execute(TABLES, prepare=False)
        yield World(connection)


def test_jobs_that_went_well_are_no_reason_to_complain(world: World):
    world.completed()
    world.completed("fenced")

    assert world.complaints() == []


def test_a_job_that_was_accepted_and_is_gone_is_lost(world: World):
    job = world.completed()
    world.alter("DELETE FROM switchyard.job WHERE message_id = %s", job)
    world.connection.execute("DELETE FROM rig_step")

    assert any("were accepted and are gone" in complaint for complaint in world.complaints())


def test_a_job_that_has_not_ended_is_stuck(world: World):
    world.sent()
    world.started(world.sent())

    (complaint,) = world.complaints()
    assert complaint.startswith("I1: 2 jobs are still active")


def test_a_job_that_nobody_sent_is_unexpected(world: World):
    job = world.completed()
    world.events = [event for event in world.events if event.kind not in ("invoke", "ok") or event.job != job.message_id]

    assert world.complaints() == [f"I1: 1 jobs exist that nobody sent: {job.message_id}"]


def dead(world: World) -> NewJob:
    """A job that failed for good, as it had to."""
    job = world.sent("doomed")
    id_, token = world.started(job)
    world.note("end", job=job.message_id, attempt=1, token=token, outcome="failed")
    end = Finish(
        id=id_,
        token=token,
        state=State.DEAD,
        started=0,
        finished=0,
        outcome="failed",
        error_type="E",
        error="no",
        dead_reason="permanent",
    )
    assert write.finish(world.connection, [end]) == {id_}
    return job


def test_a_death_without_a_notice_or_with_two_is_a_complaint(world: World):
    silent, told, twice = dead(world), dead(world), dead(world)
    assert world.complaints() == []

    world.connection.execute("DELETE FROM rig_notice WHERE job = %s", (silent.message_id,))
    world.connection.execute("INSERT INTO rig_notice SELECT * FROM rig_notice WHERE job = %s", (twice.message_id,))

    (complaint,) = world.complaints()
    assert complaint.startswith("I5: 2 deaths")
    assert silent.message_id in complaint
    assert twice.message_id in complaint
    assert told.message_id not in complaint


def test_an_effect_that_was_committed_twice_is_a_duplicate(world: World):
    job = world.completed("fenced")
    world.effect(job, str(uuid4()))

    assert world.complaints() == [f"I3: 1 jobs have several committed effects: {job.message_id} (2)"]


def test_a_completed_job_without_its_effect_is_missed(world: World):
    job = world.completed("fenced")
    world.connection.execute("DELETE FROM rig_effect")

    assert world.complaints() == [f"I3: 1 completed jobs have no committed effects: {job.message_id}"]


def test_a_result_of_a_claim_that_was_lost_is_foreign(world: World):
    job = world.completed()
    world.alter(
        "UPDATE switchyard.job SET result = json_build_object('attempt', 1, 'token', 'foreign') WHERE message_id = %s", job
    )

    assert world.complaints() == [f"I6: 1 completed jobs: the row holds the result of another claim: {job.message_id}"]


def test_an_execution_without_a_claim_or_a_second_one_is_noticed(world: World):
    job = world.completed()
    start = next(event for event in world.events if event.kind == "start")
    world.note("start", job=job.message_id, attempt=1, token=start.fields["token"])
    world.note("start", job=job.message_id, attempt=2, token=str(uuid4()))

    assert world.complaints() == [
        f"I6: 1 executions had no claim: {job.message_id}",
        f"I6: 1 claims were executed more than once: {job.message_id}",
    ]


def test_a_claim_of_a_job_that_runs_is_noticed(world: World):
    job = world.sent()
    _, _ = world.started(job)
    again = str(uuid4())
    world.connection.execute("UPDATE switchyard.job SET token = %s WHERE message_id = %s", (again, job.message_id))

    assert f"I6: 1 jobs were claimed while it ran: {job.message_id}" in world.complaints()


def test_a_hole_in_the_history_is_noticed(world: World):
    job = world.completed()
    world.alter("UPDATE switchyard.job SET attempt = 2, result = NULL WHERE message_id = %s", job)

    (complaint,) = world.complaints()
    assert complaint.startswith(f"I4: 1 jobs have a history that does not match their attempts: {job.message_id}")


def test_a_child_without_its_parents_commit_is_noticed(world: World):
    parent = world.completed("fenced")
    world.sent(parent=parent.message_id, token=str(uuid4()))

    assert any("without their parent's commit" in complaint for complaint in world.complaints())


def test_recovery_is_the_time_from_a_kill_to_the_next_start_of_what_it_interrupted():
    def start(at: float, pid: int, job: str, token: str) -> Event:
        return Event("start", at, pid, {"job": job, "attempt": 1, "token": token})

    events = [
        start(1.0, 7, "a", "t1"),
        start(2.0, 7, "b", "t2"),
        Event("end", 2.5, 7, {"job": "b", "token": "t2", "outcome": "ok"}),
        Event("fault", 3.0, 1, {"name": "kill", "killed": [7]}),
        start(5.5, 8, "a", "t3"),
        Event("end", 6.0, 8, {"job": "a", "token": "t3", "outcome": "ok"}),
    ]

    assert recoveries(events) == [2.5]
