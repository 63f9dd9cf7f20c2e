"""Sends that belong to the caller's transaction: committed with it or gone with it, on every broker and kind of connection."""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import switchyard
from errors import EnlistRefused, JobExists, PayloadError
from ledger.states import State
from settings import variables
from tests.conformance import jobs
from tests.conformance.system import System
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until


def url_for(settings: Any, driver: str | None = None) -> str:
    url: str = settings.database_url.get_secret_value()
    return url if driver is None else url.replace("postgresql://", f"postgresql+{driver}://", 1)


@contextmanager
def engine(settings: Any, driver: str, **options: Any):
    made = sqlalchemy.create_engine(url_for(settings, driver), **options)
    try:
        yield made
    finally:
        made.dispose()


class Caller:
    """An application's transaction, whatever it is made of."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def write(self, order: str) -> None:
        statement = "INSERT INTO orders VALUES (%(order)s)"
        if isinstance(self.target, psycopg.Connection):
            self.target.execute(statement, {"order": order})
        elif isinstance(self.target, sqlalchemy.Connection):
            self.target.exec_driver_sql(statement, {"order": order})
        else:
            self.target.connection().exec_driver_sql(statement, {"order": order})

    def savepoint(self) -> Any:
        return self.target.transaction() if isinstance(self.target, psycopg.Connection) else self.target.begin_nested()

    def commit(self) -> None:
        self.target.commit()

    def rollback(self) -> None:
        self.target.rollback()


@contextmanager
def open_caller(kind: str, settings: Any):
    what, _, driver = kind.partition("/")
    if what == "psycopg":
        with psycopg.connect(url_for(settings)) as connection:
            yield Caller(connection)
        return
    if driver == "psycopg2":
        pytest.importorskip("psycopg2")
    with engine(settings, driver) as made:
        if what == "Connection":
            with made.connect() as connection:
                yield Caller(connection)
        elif what == "Session":
            with Session(made) as session:
                yield Caller(session)
        else:
            registry = scoped_session(sessionmaker(made))
            yield Caller(registry)
            registry.remove()


@pytest.fixture(
    params=[
        "psycopg",
        "Connection/psycopg",
        "Session/psycopg",
        "scoped_session/psycopg",
        "Connection/psycopg2",
        "Session/psycopg2",
    ]
)
def caller(request, system):
    with psycopg.connect(url_for(system.settings), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (id text)")
    with open_caller(request.param, system.settings) as opened:
        yield opened


@pytest.fixture
def connection(system):
    with psycopg.connect(url_for(system.settings)) as opened:
        yield opened


def new_key() -> str:
    return uuid.uuid4().hex


def orders(system: System, order: str) -> int:
    return int(system.rows("SELECT count(*) FROM orders WHERE id = %s", order)[0][0])


def test_a_send_is_committed_with_its_transaction(system, caller):
    key = new_key()
    with switchyard.enlist(caller.target):
        caller.write(key)
        message = system.jobs.count.send(key, "x")
    assert switchyard.get_job(message.message_id) is None

    caller.commit()

    assert system.ended(message).state is State.COMPLETED
    assert (orders(system, key), jobs.seen[key]) == (1, ["x"])


# Isolation is Postgres's business alone: one broker is enough.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_a_transaction_above_read_committed_carries_sends_all_the_same(system, connection, level):
    key = new_key()
    connection.isolation_level = level
    connection.execute("SELECT count(*) FROM switchyard.job")
    system.ended(system.jobs.count.send(new_key()))

    with switchyard.enlist(connection):
        message = system.jobs.count.send(key, level.name)
    connection.commit()

    assert system.ended(message).state is State.COMPLETED
    assert jobs.seen[key] == [level.name]


def test_a_send_goes_with_a_transaction_that_is_rolled_back(system, caller):
    key = new_key()
    with switchyard.enlist(caller.target):
        caller.write(key)
        gone = system.jobs.count.send(key)
    caller.rollback()
    with switchyard.enlist(caller.target):
        kept = system.jobs.count.send(key, "second")
    caller.commit()

    assert system.ended(kept).state is State.COMPLETED
    assert switchyard.get_job(gone.message_id) is None
    assert (orders(system, key), jobs.seen[key]) == (0, ["second"])


def test_a_savepoint_that_is_rolled_back_takes_its_sends_along(system, caller):
    key = new_key()
    with switchyard.enlist(caller.target):
        first = system.jobs.count.send(key, 1)
        with suppress(ZeroDivisionError), caller.savepoint():
            gone = system.jobs.count.send(key, 2)
            raise ZeroDivisionError
        with caller.savepoint():
            third = system.jobs.count.send(key, 3)
    caller.commit()

    assert {system.ended(first).state, system.ended(third).state} == {State.COMPLETED}
    assert switchyard.get_job(gone.message_id) is None
    assert sorted(jobs.seen[key]) == [1, 3]


def test_one_block_may_hold_several_transactions(system, caller):
    key = new_key()
    with switchyard.enlist(caller.target):
        first = system.jobs.count.send(key, 1)
        caller.commit()
        assert system.ended(first).state is State.COMPLETED
        second = system.jobs.count.send(key, 2)
        caller.rollback()

    assert switchyard.get_job(second.message_id) is None


def test_many_are_written_all_or_none_and_the_transaction_goes_on(system, caller):
    key = new_key()
    taken = system.jobs.parked.send("taken")
    many = [system.jobs.parked.message(key) for _ in range(1_000)]
    many.append(system.jobs.parked.message("other arguments").copy(message_id=taken.message_id))

    with switchyard.enlist(caller.target):
        caller.write(key)
        with pytest.raises(JobExists):
            switchyard.enqueue_many(many)
        kept = switchyard.enqueue_many([system.jobs.parked.message(key), system.jobs.parked.message(key)])
    caller.commit()

    found = system.rows("SELECT message_id::text FROM switchyard.job WHERE payload #>> '{args,0}' = %s", key)
    assert {row[0] for row in found} == {message.message_id for message in kept}
    assert orders(system, key) == 1


def test_a_taken_id_leaves_the_transaction_as_it_was(system, caller):
    key = new_key()
    taken = system.jobs.parked.send("taken")
    with switchyard.enlist(caller.target):
        with pytest.raises(JobExists):
            system.broker.enqueue(system.jobs.parked.message(key).copy(message_id=taken.message_id))
        caller.write(key)
    caller.commit()

    assert orders(system, key) == 1


def start_delays(system: System, send: Callable[[psycopg.Connection[Any], str], None]) -> list[float]:
    """Seconds from the commit to the body, several times; every time the keeper has gone back to its longest sleep before."""
    delays = []
    with psycopg.connect(url_for(system.settings)) as connection:
        for _ in range(7):
            key = new_key()
            with switchyard.enlist(connection):
                send(connection, key)
            connection.execute("SELECT pg_sleep(0.1)")
            connection.commit()
            committed = time.monotonic()
            wait_until(lambda key=key: jobs.runs[key], interval=0.001)
            delays.append(time.monotonic() - committed)
    return delays


@pytest.fixture
def patient(fresh, shared_system, monkeypatch):
    """A running system that looks for due rows by itself every hour only: without a notification nothing starts."""
    monkeypatch.setattr("keeper.loop.POLL", 3_600.0)
    monkeypatch.setattr("brokers.fetcher.POLL", 3_600.0)
    yield fresh(lease=600.0, sweep=600.0).start()
    monkeypatch.undo()
    # Its keeper, in the same process, may have lain down for that hour.
    shared_system.broker.wake_services(0.0)


def test_jobs_start_right_after_the_commit(patient):
    delays = start_delays(patient, lambda _, key: patient.jobs.count.send(key))

    assert statistics.median(delays) < 5, delays


def test_a_notification_lost_with_a_savepoint_is_sent_again(patient):

    def send(connection, key):
        with connection.transaction(force_rollback=True):
            patient.jobs.count.send(key, "gone")
        patient.jobs.count.send(key, "kept")

    assert statistics.median(start_delays(patient, send)) < 5


def test_a_delayed_send_waits_for_its_time_and_for_the_commit(system, connection):
    with switchyard.enlist(connection):
        message = system.jobs.add.send_with_options(args=(1, 2), delay=300)
    assert switchyard.get_job(message.message_id) is None
    connection.commit()

    job = system.ended(message)
    assert (job.started_at - job.created_at).total_seconds() >= 0.3


def test_a_refused_payload_does_not_touch_the_transaction(system, connection):
    with switchyard.enlist(connection), pytest.raises(PayloadError):
        system.jobs.typed.send("not a number", 1)

    assert connection.info.transaction_status is TransactionStatus.IDLE


def test_of_nested_blocks_the_innermost_counts(system, connection):
    key = new_key()
    with psycopg.connect(url_for(system.settings)) as other:
        with switchyard.enlist(other):
            outer = system.jobs.parked.send(key)
            with switchyard.enlist(connection):
                inner = system.jobs.parked.send(key)
            outer_again = system.jobs.parked.send(key)
        connection.commit()
        other.rollback()

    assert switchyard.get_job(inner.message_id) is not None
    assert switchyard.get_job(outer.message_id) is None
    assert switchyard.get_job(outer_again.message_id) is None


def test_other_threads_send_plainly(system, connection):
    sent = []
    with switchyard.enlist(connection):
        thread = threading.Thread(target=lambda: sent.append(system.jobs.parked.send("thread")))
        thread.start()
        thread.join()
    connection.rollback()

    assert switchyard.get_job(sent[0].message_id) is not None


def test_a_task_sees_the_block_it_was_made_in_for_as_long_as_that_is_open(system, connection):
    async def scenario():
        block_is_over = asyncio.Event()

        async def child(wait: bool):
            if wait:
                await block_is_over.wait()
            return system.jobs.parked.send("task")

        with switchyard.enlist(connection):
            within = await asyncio.create_task(child(False))
            late = asyncio.create_task(child(True))
            await asyncio.sleep(0)
        block_is_over.set()
        return within, await late

    within, after = asyncio.run(scenario())
    connection.rollback()

    assert switchyard.get_job(within.message_id) is None
    assert switchyard.get_job(after.message_id) is not None


def test_an_asynchronous_session_is_enlisted_in_run_sync(system):
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def scenario():
        made = create_async_engine(url_for(system.settings, "psycopg"))
        try:
            async with AsyncSession(made) as session:
                with pytest.raises(TypeError, match="run_sync"), switchyard.enlist(session):
                    pass

                def send(inner):
                    with switchyard.enlist(inner):
                        return system.jobs.add.send(1, 1)

                message = await session.run_sync(send)
                assert switchyard.get_job(message.message_id) is None
                await session.commit()
                return message
        finally:
            await made.dispose()

    assert system.ended(asyncio.run(scenario())).result == 2


def test_the_callers_row_factory_and_transaction_block_do_not_matter(system):
    with psycopg.connect(url_for(system.settings), autocommit=True, row_factory=dict_row) as connection:
        with switchyard.enlist(connection), connection.transaction():
            message = system.jobs.add.send(2, 3)
            with pytest.raises(JobExists):
                system.broker.enqueue(system.jobs.add.message(5, 5).copy(message_id=message.message_id))
        with connection.pipeline(), connection.transaction(), switchyard.enlist(connection):
            second = system.jobs.add.send(3, 4)

    assert (system.ended(message).result, system.ended(second).result) == (5, 7)


def test_an_actors_plain_send_commits_at_once_with_its_parent(system):
    parent = system.jobs.parent.send()

    child = system.job(system.ended(parent).result)

    assert child.parent_id == parent.message_id


def test_an_actors_plain_send_runs_while_its_parent_does_and_stays_when_that_fails(system):
    key = new_key()
    parent = system.jobs.sends_and_fails.send(key)
    wait_until(lambda: jobs.seen.get(key))
    (child,) = jobs.seen[key]

    wait_until(lambda: system.job(child).state is State.COMPLETED)
    assert system.job(parent).state is State.RUNNING
    jobs.gate(key).set()

    assert system.ended(parent).state is State.DEAD
    assert (system.job(child).state, system.job(child).parent_id) == (State.COMPLETED, parent.message_id)


def test_autocommit_is_refused(system):
    with (
        psycopg.connect(url_for(system.settings), autocommit=True) as connection,
        switchyard.enlist(connection),
        pytest.raises(EnlistRefused, match=r"autocommit.*connection\.transaction"),
    ):
        system.jobs.parked.send("refused")
    with (
        engine(system.settings, "psycopg", isolation_level="AUTOCOMMIT") as made,
        made.connect() as alchemy,
        switchyard.enlist(alchemy),
        pytest.raises(EnlistRefused, match="autocommit"),
    ):
        system.jobs.parked.send("refused")

    assert not system.rows("SELECT 1 FROM switchyard.job WHERE payload #>> '{args,0}' = 'refused'")


def test_another_database_is_refused(system, databases):
    url = databases.create()
    with psycopg.connect(url) as connection:
        for _ in range(2):
            with switchyard.enlist(connection), pytest.raises(EnlistRefused, match="another database"):
                system.jobs.parked.send()
        assert connection.execute("SELECT count(*) FROM switchyard.job").fetchone() == (0,)
    databases.drop(url)


def test_what_cannot_be_enlisted_is_refused_by_name(system):
    for target in (object(), system.settings, None):
        with pytest.raises(TypeError, match=r"takes a SQLAlchemy Session or Connection, or a psycopg"), switchyard.enlist(target):
            pass
    psycopg2 = pytest.importorskip("psycopg2")
    with (
        closing(psycopg2.connect(url_for(system.settings))) as connection,
        pytest.raises(TypeError, match="through a SQLAlchemy engine"),
        switchyard.enlist(connection),
    ):
        pass
    with sqlalchemy.create_engine("sqlite://").connect() as lite:
        with switchyard.enlist(lite), pytest.raises(EnlistRefused, match=r"sqlite\+pysqlite .*postgresql\+psycopg"):
            system.jobs.parked.send()
        lite.engine.dispose()


def test_without_listen_the_poll_finds_them(fresh):
    system = fresh(pgbouncer=True).start()
    with psycopg.connect(url_for(system.settings)) as connection, switchyard.enlist(connection):
        message = system.jobs.add.send(1, 2)

    assert system.ended(message).result == 3


SCRIPT = """
import os, signal, sys
import psycopg, switchyard
from tests.conformance import jobs

actors = jobs.declare(switchyard.configure())
with psycopg.connect(sys.argv[1]) as connection:
    with switchyard.enlist(connection):
        message = actors.count.send(sys.argv[3], "from the dead")
    print(message.message_id, flush=True)
    if sys.argv[2] == "after":
        connection.commit()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_killed_around_the_commit(system, moment):
    key = new_key()
    command = [sys.executable, "-c", SCRIPT, url_for(system.settings), moment, key]
    environment = base_environment() | variables(system.settings) | {"PYTHONPATH": str(ROOT)}

    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)

    assert done.returncode == -signal.SIGKILL, done.stderr
    message_id = done.stdout.strip()
    if moment == "after":
        wait_until(lambda: system.job(message_id).state is State.COMPLETED)
        assert jobs.seen[key] == ["from the dead"]
    else:
        # The server may take a moment to notice; whatever it then does, the row is not there.
        wait_until(
            lambda: (
                not system.rows(
                    "SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%' AND datname = current_database()"
                )
            )
        )
        assert switchyard.get_job(message_id) is None
