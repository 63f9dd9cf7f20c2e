"""The way to Postgres under faults: forks, restarts, silence, refusals, and a pool with a limit."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from time import monotonic

import psycopg
import pytest

from errors import LedgerUnavailable
from ledger.database import REFUSAL_PATIENCE, BoundedConnection, Database, is_outage
from tests.ledger.blocking import Meanwhile
from tests.rig.forks import in_child
from tests.rig.postgres import PrivatePostgres
from tests.rig.waiting import wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    """A Postgres of this module's own, to be restarted and frozen."""
    postgres = PrivatePostgres()
    postgres.start()
    yield postgres
    postgres.stop()


@pytest.fixture
def database(ledger_url) -> Iterator[Database]:
    found = Database(ledger_url, pool_size=3, timeout=3.0)
    yield found
    found.close()


@pytest.fixture
def mortal(server) -> Iterator[Database]:
    """A database on the server that faults hit."""
    server.start()
    found = Database(server.url, pool_size=3, timeout=2.0)
    yield found
    found.close()


def one(connection: BoundedConnection) -> int:
    row = connection.execute("SELECT 1").fetchone()
    assert row is not None
    return int(row[0])


def backend(connection: BoundedConnection) -> int:
    return connection.info.backend_pid


def test_nothing_connects_before_the_first_use():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    Database(f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/x").close()

    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


def test_the_pool_never_holds_more_than_its_size(database):
    with database.connection() as first, database.connection() as second, database.connection() as third:
        assert len({backend(first), backend(second), backend(third)}) == 3
        started = monotonic()
        with pytest.raises(LedgerUnavailable, match=r"no connection within 1\.5 s"), database.connection(1.5):
            pass
        assert 1.4 < monotonic() - started < 10
    with database.connection(1.0) as again:
        assert one(again) == 1


def test_whoever_waits_for_a_connection_gets_the_next_one_that_is_free(database):
    with database.connection(), database.connection():
        with database.connection() as third:
            waiting = Meanwhile(lambda: database.run(one))
            wait_until(lambda: database._current_pool().get_stats().get("requests_waiting"), 30, "somebody waits")
            assert one(third) == 1
        assert waiting.result() == 1


def test_a_connection_is_returned_whatever_happens(database):
    for _ in range(10):
        with pytest.raises(psycopg.errors.UndefinedTable), database.connection() as connection:
            connection.execute("SELECT * FROM nowhere")
        with pytest.raises(KeyError), database.connection() as connection:
            {}[connection.execute("BEGIN")]

    with database.connection(1.0) as connection:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_wrong_statement_is_no_outage(database):
    calls = []

    def wrong(connection):
        calls.append(1)
        connection.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero) as wrong_statement:
        database.run(wrong)

    assert len(calls) == 1
    assert not is_outage(wrong_statement.value)


def test_a_forked_child_opens_connections_of_its_own_and_leaves_the_parents_alone(database):
    with database.connection() as connection:
        mine = backend(connection)

    def ask() -> str:
        with database.connection() as connection:
            answer = f"{backend(connection)} {one(connection)}"
        database.close()
        return answer

    answer = in_child(ask)

    assert answer.endswith(" 1"), answer
    assert answer != f"{mine} 1"
    # A busy machine may have made the pool open a second one at the start, and lend that first.
    with database.connection() as first, database.connection() as second:
        assert mine in {backend(first), backend(second)}
        assert (one(first), one(second)) == (1, 1)


def test_a_child_that_was_forked_while_another_thread_opened_the_pool_opens_its_own(database):
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with database._lock:
            held.set()
            forked.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        answer = in_child(lambda: database.run(one))
    finally:
        forked.set()
        holder.join()

    assert answer == "1"
    # Over here it was held all the while, and is free now.
    assert database.run(one) == 1


def test_a_child_that_only_ends_does_no_harm_to_the_parents_connections(database):
    with database.connection() as connection:
        mine = backend(connection)
    child = os.fork()
    if child == 0:
        database.close()
        os._exit(0)
    os.waitpid(child, 0)

    # A busy machine may have made the pool open a second one at the start, and lend that first.
    with database.connection() as first, database.connection() as second:
        assert mine in {backend(first), backend(second)}
        assert (one(first), one(second)) == (1, 1)


def test_a_restart_of_postgres_is_healed_by_the_next_call(mortal, server):
    connections = [mortal.connection() for _ in range(3)]
    for connection in connections:
        assert one(connection.__enter__()) == 1
    for connection in connections:
        connection.__exit__(None, None, None)
    server.restart()

    started = monotonic()
    assert mortal.run(one) == 1
    assert monotonic() - started < 10
    for _ in range(5):
        assert mortal.run(one) == 1


def test_a_restart_while_a_call_waits_is_ridden_out(mortal, server):
    mortal.timeout = 20.0
    assert mortal.run(one) == 1
    server.kill()
    waiting = Meanwhile(lambda: retried(mortal))
    server.start()

    assert waiting.result(30) == 1


def retried(database: Database) -> int:
    """A caller that tries again, as the worker's threads do."""
    while True:
        try:
            return database.run(one)
        except LedgerUnavailable:
            continue


def test_a_frozen_postgres_is_unavailable_within_the_time_out_and_heals(mortal, server):
    assert mortal.run(one) == 1
    server.freeze()
    try:
        started = monotonic()
        with pytest.raises(LedgerUnavailable):
            mortal.run(one)
        assert monotonic() - started < 15
    finally:
        server.thaw()

    assert wait_until(lambda: retried(mortal), 30) == 1


def test_a_frozen_postgres_does_not_hold_a_dedicated_connection_for_ever(mortal, server):
    connection = mortal.dedicated("test")
    connection.time_limit = 1.0
    server.freeze()
    try:
        started = monotonic()
        with pytest.raises(psycopg.OperationalError) as silence:
            connection.execute("SELECT 1")
        assert monotonic() - started < 15
        assert is_outage(silence.value, connection)
        # A statement may still run over there, so this session is never used again.
        assert connection.closed
    finally:
        server.thaw()


def test_a_refused_connection_fails_soon_and_says_why():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    database = Database(f"postgresql://postgres@127.0.0.1:{port}/x", timeout=10.0)

    started = monotonic()
    with pytest.raises(LedgerUnavailable, match=f"port {port} failed"):
        database.run(one)
    assert monotonic() - started < 8
    with pytest.raises(LedgerUnavailable, match=f"port {port} failed"):
        database.dedicated("test")
    database.close()


def test_a_missing_database_fails_soon_and_says_why(ledger_url):
    database = Database(ledger_url + "_gone", timeout=10.0)

    with pytest.raises(LedgerUnavailable, match="does not exist"):
        database.run(one)
    database.close()


def test_a_session_that_was_ended_is_replaced(database, connect):
    with database.connection() as connection:
        pid = backend(connection)
        connect().execute("SELECT pg_terminate_backend(%s)", [pid])
        with pytest.raises(psycopg.OperationalError) as ended:
            wait_until(lambda: one(connection) != 1, 30)
        assert is_outage(ended.value, connection)

    assert database.run(one) == 1


def test_a_pool_that_is_refused_more_connections_shares_those_it_has(mortal, server):
    with mortal.connection() as admin:
        admin.execute("DROP ROLE IF EXISTS modest")
        admin.execute("CREATE ROLE modest LOGIN CONNECTION LIMIT 1")
    modest = Database(server.url.replace("postgres@", "modest@"), pool_size=2, timeout=20.0)
    with modest.connection() as only:
        waiting, since = Meanwhile(lambda: modest.run(one)), monotonic()
        wait_until(lambda: modest._refusal, 30, "the pool was refused a second connection")
        wait_until(lambda: waiting.done or monotonic() - since > 2 * REFUSAL_PATIENCE, 30)
        assert not waiting.done
        assert one(only) == 1

    assert waiting.result() == 1
    modest.close()


def test_behind_pgbouncer_nothing_is_prepared(ledger_url):
    database = Database(ledger_url, pgbouncer=True)
    with database.dedicated("test") as connection:
        for _ in range(10):
            connection.execute("SELECT %s::int", [1])
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        assert connection.execute("SHOW plan_cache_mode").fetchone() == ("auto",)


def test_a_dedicated_connection_plans_once_and_by_index(ledger_url):
    with Database(ledger_url).dedicated("test") as connection:
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("plan_cache_mode", "enable_seqscan", "jit")]
        assert shown == [("force_generic_plan",), ("off",), ("off",)]
        assert connection.info.parameter_status("application_name") == "switchyard test"


@pytest.mark.parametrize(
    "statements",
    [
        ("SET statement_timeout = 10", "SELECT pg_sleep(5)"),
        ("SET default_transaction_read_only = on", "CREATE TABLE anything (a int)"),
    ],
    ids=["cancelled from outside", "a standby"],
)
def test_what_passes_by_itself_is_an_outage_and_no_rows_fault(database_url, statements):
    setting, statement = statements
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(setting)

        with pytest.raises(psycopg.Error) as refused:
            connection.execute(statement)

    assert is_outage(refused.value)
