"""``job_context()``: a unit test's code runs as if inside a job, which remembers what it is told. No ledger, no worker, no broker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from middleware.current_job import Job, running_job
from runtime.encoding import encode_result


class RecordingJob(Job):
    """A job for unit tests: remembers what it was told."""

    #: What the test says.
    cancelled = False

    def __init__(
        self,
        *,
        connection: Connection[Any] | None = None,
        cancelled: bool = False,
        steps: dict[str, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(**fields)
        self.cancelled = cancelled
        self._connection = connection
        #: Whether ``transaction()`` has completed the job.
        self.completed = False
        #: Every ``progress`` call, as (percent, stage).
        self.progress_calls: list[tuple[float, str | None]] = []
        #: Every line given to ``log``.
        self.log_lines: list[str] = []
        #: What it remembers, as JSON texts by the steps' names.
        self.steps: dict[str, str] = {} if steps is None else steps

    def _known_step(self, name: str) -> str | None:
        return self.steps.get(name)

    def _store_step(self, name: str, result: Any) -> str:
        return self.steps.setdefault(name, encode_result(result, sys.maxsize) or "null")

    def _report(self, percent: float, stage: str | None) -> None:
        self.progress_calls.append((percent, stage))

    def _append(self, line: str) -> None:
        self.log_lines.append(line)

    @contextmanager
    def _completing(self) -> Iterator[Connection[Any]]:
        if self._connection is None:
            raise RuntimeError(
                "job.transaction() needs a database, and this job is a test's: use `with job_context(connection=...)` "
                "with a psycopg connection"
            )
        if self.completed:
            raise RuntimeError("this job is completed already; job.transaction() can complete it once")
        with self._connection.transaction():
            yield self._connection
        self.completed = True

    def _check_result(self, value: Any) -> None:
        encode_result(value, sys.maxsize)


@contextmanager
def job_context(
    *,
    id: str = "00000000-0000-7000-8000-000000000001",
    actor: str = "test",
    queue: str = "default",
    attempt: int = 1,
    connection: Connection[Any] | None = None,
    **fields: Any,
) -> Iterator[RecordingJob]:
    """Run a unit test's code as if inside a job; yields the job, which records progress and log lines.

    Parameters:
        connection: what ``job.transaction()`` works on, in a transaction (or, inside one of the test's own, a savepoint) as in a worker;
            without it, ``transaction()`` raises. Sends are no part of it: they go where the test's broker takes them.
        fields: ``cancelled`` (what ``job.cancelled`` says), ``steps`` (what earlier attempts remember), and whatever else a job has.
    """
    job = RecordingJob(id=id, actor=actor, queue=queue, attempt=attempt, connection=connection, **fields)
    token = running_job.set(job)
    try:
        yield job
    finally:
        running_job.reset(token)
