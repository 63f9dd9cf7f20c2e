"""What a client leaves behind on the server that gave up, fell silent or vanished, and what the server's own settings do to ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg import sql

from errors import LedgerUnavailable
from keeper.rescue import rescue
from ledger import cancelling
from ledger import database as module
from ledger.database import BoundedConnection, Database, is_outage
from tests.ledger.factory import add, age_lease, claim, fetch
from tests.rig.forks import in_child
from tests.rig.postgres import Databases
from tests.rig.waiting import wait_until

#: What a database's administrator may have set for everybody, and far below what our statements may wait for.
_STRICT = {"lock_timeout": "100ms", "statement_timeout": "150ms", "idle_in_transaction_session_timeout": "100ms"}


@pytest.fixture
def place(database_url) -> Iterator[Database]:
    found = Database(database_url, pool_size=3, timeout=1.0)
    yield found
    found.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def admin(database_url) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as found:
        yield found


def waiting(admin: psycopg.Connection) -> int:
    """How many sessions of this database wait for a lock."""
    row = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def count(connection: BoundedConnection) -> None:
    connection.execute("SELECT count(*) FROM switchyard.job")


def test_a_statement_that_is_given_up_ends_on_the_server_too(place, admin, database_url):
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE switchyard.job IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            with pytest.raises(LedgerUnavailable):
                place.run(count)
        # Each of them would hold a session, and its place in the line for the lock, for as long as the table is locked.
        wait_until(lambda: not waiting(admin), 15, "no session waits on")

    place.run(count)


def test_a_dedicated_connection_that_is_given_up_leaves_nothing_waiting(place, admin, stack, database_url):
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE switchyard.job IN ACCESS EXCLUSIVE MODE")
        connection = stack.enter_context(place.dedicated("test"))
        connection.time_limit = 0.5
        with pytest.raises(psycopg.OperationalError) as silence:
            count(connection)
        assert is_outage(silence.value, connection)
        wait_until(lambda: not waiting(admin), 15, "no session waits on")


@pytest.mark.parametrize("refused", [False, True])
def test_however_many_were_given_up_the_next_one_is_cancelled_too(place, admin, stack, database_url, monkeypatch, refused):
    def give_up() -> None:
        connection = stack.enter_context(place.dedicated("test"))
        connection.time_limit = 0.2
        with pytest.raises(psycopg.OperationalError):
            count(connection)

    def cannot(_: object) -> None:
        raise psycopg.OperationalError("no more connections")

    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE switchyard.job IN ACCESS EXCLUSIVE MODE")
        if refused:
            with monkeypatch.context() as patch:
                patch.setattr(cancelling, "_cancellation", cannot)
                for _ in range(cancelling.AT_A_TIME + 1):
                    give_up()
        left = waiting(admin)
        for _ in range(cancelling.AT_A_TIME + 1):
            give_up()
            wait_until(lambda: waiting(admin) <= left, 15, "its session waits no more")


def test_a_forked_child_cancels_whatever_its_parent_was_at(stack):
    for _ in range(cancelling.AT_A_TIME):
        assert cancelling._places.acquire(blocking=False)
        stack.callback(cancelling._places.release)

    assert in_child(lambda: cancelling._places.acquire(blocking=False)) == "True"


def test_a_job_that_a_silent_transaction_holds_is_rescued(place, admin, stack, monkeypatch):
    monkeypatch.setattr(module, "IDLE_LIMIT", 0.5)
    frozen, keeper = (stack.enter_context(place.dedicated(name)) for name in ("flusher", "keeper"))
    id_ = add(keeper)
    claim(keeper, id_, holder="dead")
    age_lease(keeper, id_)
    # A process that is stopped, or whose machine lost its power, between two statements of a transaction.
    frozen.execute("BEGIN")
    frozen.execute("SELECT id FROM switchyard.job WHERE id = %s FOR UPDATE", [id_])
    assert rescue(keeper, lease=0.001, max_lost=3, connected_again_at=None) == []

    wait_until(lambda: rescue(keeper, lease=0.001, max_lost=3, connected_again_at=None), 15, "the job is taken back")

    assert fetch(keeper, id_, "state") == "pending"
    with pytest.raises(psycopg.Error) as ended:
        frozen.execute("COMMIT")
    assert is_outage(ended.value, frozen)


def test_the_server_notices_a_client_that_is_gone(place, stack):
    pooled = stack.enter_context(place.connection())
    dedicated = stack.enter_context(place.dedicated("test"))

    for connection in (pooled, dedicated):
        shown = [
            connection.execute(f"SHOW tcp_{name}").fetchone()
            for name in ("keepalives_idle", "keepalives_interval", "keepalives_count", "user_timeout")
        ]
        assert shown == [("10",), ("5",), ("3",), ("25000",)]


def test_what_an_administrator_set_for_everybody_does_not_end_our_threads_statements(place, admin, stack, database_url):
    name = sql.Identifier(Databases.name_of(database_url))
    for setting, value in _STRICT.items():
        admin.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value)))

    connection = stack.enter_context(place.dedicated("test"))

    connection.execute("SELECT pg_sleep(0.3)")
    shown = [connection.execute(f"SHOW {name}").fetchone() for name in _STRICT]
    assert shown == [("0",), ("25s",), ("30s",)]


def test_a_lock_that_is_not_had_in_time_is_an_outage_and_no_rows_fault(place, stack, database_url):
    # Behind PgBouncer the administrator's lock_timeout stays in force.
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as other:
        holder.execute("LOCK TABLE switchyard.job IN ACCESS EXCLUSIVE MODE")
        other.execute("SET lock_timeout = 10")
        with pytest.raises(psycopg.errors.LockNotAvailable) as late:
            other.execute("SELECT count(*) FROM switchyard.job")

    assert is_outage(late.value)


def test_the_pool_lets_go_of_a_server_that_has_become_a_standby(place, admin, database_url):
    # The address led to a standby for a moment, as it does after a failover, and now leads to the primary: what was opened meanwhile
    # can be read from for ever, and never written to.
    name = sql.Identifier(Databases.name_of(database_url))
    admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    with ExitStack() as all_of_them:
        for _ in range(3):
            all_of_them.enter_context(place.connection())
    admin.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))

    place.timeout = 10.0
    id_ = place.run(add)

    assert [place.run(add) for _ in range(3)] == [id_ + 1, id_ + 2, id_ + 3]
