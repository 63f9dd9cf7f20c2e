"""Actors that use ``job.transaction()``, for this process or a worker's. Their effects are rows of the table ``effects``."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker
from psycopg.rows import dict_row

import switchyard
from middleware.current_job import current_job
from tests.conformance import jobs

FAST = {"min_backoff": 50, "max_backoff": 100}

#: Called inside the block of ``charges``, and after it, by key.
inside: dict[str, Any] = {}
afterwards: dict[str, Any] = {}


def effect(connection: Any, key: str) -> None:
    """One effect."""
    connection.execute("INSERT INTO effects (key, pid) VALUES (%s, %s)", (key, os.getpid()))


def declare(broker: Broker) -> SimpleNamespace:
    """Declare all of them, and those of ``jobs``."""
    actors = jobs.declare(broker)

    def actor(**options: Any) -> Any:
        def register(fn: Any) -> Any:
            made: Any = dramatiq.actor(broker=broker, **options)(fn)
            setattr(actors, fn.__name__, made)
            return made

        return register

    _declare_in_process(actor, actors)
    _declare_misuse(actor)
    _declare_for_workers(actor, actors)
    return actors


def _declare_in_process(actor: Any, actors: SimpleNamespace) -> None:
    @actor(max_retries=2, **FAST)
    def charges(key: str, fail_first: str = "") -> str | None:
        job = current_job()
        fails = job.attempt == 1
        with job.transaction() as connection:
            effect(connection, key)
            actors.count.send(key, job.attempt)
            job.result = {"key": key, "attempt": job.attempt}
            if key in inside:
                inside[key](connection)
            if fails and fail_first == "inside":
                raise ValueError("inside")
        jobs.note("after " + key)
        if key in afterwards:
            afterwards[key]()
        if fail_first == "after":
            job.progress(50, "too late")
            job.log("too late")
            raise ValueError("after")
        return "ignored" if fail_first == "returns" else None

    @actor(on_success="on_success")
    def charges_with_callback(key: str, kill: bool = False) -> None:
        with current_job().transaction() as connection:
            effect(connection, key)
            current_job().result = key
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)

    @actor(store_results=False, on_success="on_success")
    def charges_quietly(key: str) -> None:
        with current_job().transaction():
            current_job().result = key

    @actor(max_retries=1, time_limit=400, **FAST)
    def charges_in_time(key: str, rest: float = 0.0) -> None:
        with current_job().transaction() as connection:
            effect(connection, key)
        deadline = time.monotonic() + rest
        while time.monotonic() < deadline:
            time.sleep(0.01)
        jobs.note("rested " + key)

    @actor(max_retries=0)
    async def charges_asynchronously(key: str) -> None:
        with current_job().transaction() as connection:
            effect(connection, key)
            actors.count.send(key)
            current_job().result = key


def _declare_misuse(actor: Any) -> None:
    @actor(max_retries=0)
    def twice(key: str, how: str) -> None:
        job = current_job()
        if how == "nested":
            with job.transaction() as connection:
                effect(connection, key)
                with job.transaction():
                    pass
        elif how == "after":
            with job.transaction() as connection:
                effect(connection, key)
            try:
                with job.transaction() as connection:
                    effect(connection, key)
            except RuntimeError as error:
                jobs.note("refused " + key, str(error))
        elif how == "after a rollback":
            try:
                with job.transaction() as connection:
                    effect(connection, key)
                    raise KeyError(key)
            except KeyError:
                with job.transaction() as connection:
                    effect(connection, key)

    @actor(max_retries=0)
    def misuses(key: str, how: str) -> None:
        job = current_job()
        if how == "outside":
            job.result = 1
        with job.transaction() as connection:
            effect(connection, key)
            if how == "commits":
                connection.commit()
            if how == "raw commit":
                connection.execute("ROLLBACK")
            if how == "unstorable":
                job.result = object()
            if how == "snoozes":
                broker = dramatiq.get_broker()
                broker.enqueue(dramatiq.Message("default", "misuses", (), {}, {}, message_id=job.id), delay=10)
            if how == "database error":
                try:
                    connection.execute("SELECT 1/0")
                except Exception as error:
                    jobs.note("swallowed " + key, error)

    @actor(max_retries=0)
    def leaves_traces(key: str) -> None:
        with current_job().transaction() as connection:
            connection.row_factory = dict_row
            connection.execute("SET search_path = pg_catalog")
            connection.execute("SELECT pg_advisory_lock(4711)")
            connection.execute("CREATE TEMP TABLE traces ()")
            current_job().result = connection.execute("SELECT pg_backend_pid() AS pid").fetchone()

    @actor(max_retries=0)
    def finds_traces() -> Any:
        with current_job().transaction() as connection:
            statement = "SELECT pg_backend_pid(), current_setting('search_path'), to_regclass('traces')::text"
            current_job().result = list(connection.execute(statement).fetchone())


def _declare_for_workers(actor: Any, actors: SimpleNamespace) -> None:
    @actor(queue_name="separate", max_retries=0)
    def charges_slowly(key: str) -> None:
        """The first process to run it stops inside the block until it is told to go on."""
        database = switchyard.database()
        first = database.run(lambda c: c.execute("INSERT INTO first VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING 1",
                                                 (key, os.getpid())).fetchone())  # fmt: skip
        with current_job().transaction() as connection:
            effect(connection, key)
            actors.parked.send(key)
            if first:
                told = threading.Event()
                while not database.run(lambda c: c.execute("SELECT 1 FROM first WHERE key = %s AND go", (key,)).fetchone()):
                    told.wait(0.05)

    @actor(queue_name="separate")
    def charges_and_dies(key: str, moment: str) -> None:
        first = switchyard.database().run(
            lambda c: c.execute("INSERT INTO first VALUES (%s, 0) ON CONFLICT DO NOTHING RETURNING 1", (key,)).fetchone()
        )
        with current_job().transaction() as connection:
            effect(connection, key)
            actors.parked.send(key)
            if moment == "before" and first:
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
