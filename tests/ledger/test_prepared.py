"""The statement of every send: prepared once, as bounded and as telling as any other, and no stranger to PgBouncer."""

from __future__ import annotations

import psycopg
import pytest

from errors import JobExists
from ledger import write
from ledger.database import Database, is_outage
from ledger.prepared import Prepared
from tests.ledger.factory import new_job
from tests.rig.waiting import wait_until

ECHO = Prepared("echo", "SELECT %(word)s::text || %(other)s::text || %(word)s::text")


def prepared(connection):
    return connection.execute(
        "SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE '\\_pg3%'", prepare=False
    ).fetchone()[0]


def test_it_is_prepared_once_per_connection_and_takes_its_values_by_name(ledger, connect):
    assert [ECHO.run(ledger, {"word": "a", "other": "ü"}) for _ in range(3)] == ["aüa".encode()] * 3
    assert prepared(ledger) == 1
    assert ECHO.run(ledger, {"word": "a", "other": None}) is None

    other = connect()
    assert prepared(other) == 0
    assert ECHO.run(other, {"word": "x", "other": ""}) == b"xx"


def test_after_a_rollback_which_makes_the_driver_deallocate_everything_it_is_prepared_again(ledger):
    taken = new_job()
    write.enqueue(ledger, taken)
    with pytest.raises(JobExists):
        write.enqueue_many(ledger, [new_job(), new_job(message_id=taken.message_id, actor="other")])
    ledger.execute("SELECT 1")

    sent = [write.enqueue(ledger, new_job()) for _ in range(2)]

    assert [entry.created for entry in sent] == [True, True]


def test_behind_pgbouncer_it_runs_unprepared(ledger_url):
    with Database(ledger_url, pgbouncer=True).dedicated("test") as connection:
        assert ECHO.run(connection, {"word": "a", "other": "b"}) == b"aba"
        entry = write.enqueue(connection, new_job())
        with pytest.raises(JobExists):
            write.enqueue(connection, new_job(message_id=entry.message_id, actor="other"))
        assert all(entry.created for entry in write.enqueue_many(connection, [new_job() for _ in range(2 * write.PART)]))
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_an_error_is_the_drivers_own_and_leaves_the_connection_usable(ledger):
    job = new_job()
    write.enqueue(ledger, job)

    with pytest.raises(psycopg.errors.InvalidTextRepresentation) as refused:
        Prepared("number", "SELECT %(word)s::int").run(ledger, {"word": "x"})
    assert not is_outage(refused.value, ledger)
    with pytest.raises(psycopg.errors.UndefinedTable):
        Prepared("nowhere", "SELECT 1 FROM nowhere").run(ledger, {})

    assert write.enqueue(ledger, job).created is False
    assert write.enqueue(ledger, new_job()).created is True


def test_another_violation_than_that_of_the_id_is_not_taken_for_a_repeat(ledger):
    ledger.execute("CREATE UNIQUE INDEX only_one ON switchyard.job (actor) WHERE actor = 'single'")
    try:
        write.enqueue(ledger, new_job(actor="single"))

        with pytest.raises(psycopg.errors.UniqueViolation, match="only_one"):
            write.enqueue(ledger, new_job(actor="single"))
    finally:
        ledger.execute("DROP INDEX switchyard.only_one")


def test_it_waits_no_longer_than_the_connection_may(ledger, connect):
    job, waiting = new_job(), connect()
    waiting.time_limit = 0.3
    with ledger.transaction(force_rollback=True):
        write.enqueue(ledger, job)

        with pytest.raises(psycopg.OperationalError) as over:
            write.enqueue(waiting, job)

    assert is_outage(over.value, waiting)
    assert waiting.closed


def test_a_session_that_was_ended_is_an_outage(ledger, connect):
    victim = connect()
    write.enqueue(victim, new_job())
    pid = victim.info.backend_pid
    ledger.execute("SELECT pg_terminate_backend(%s)", [pid])
    wait_until(lambda: not ledger.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone())

    with pytest.raises(psycopg.OperationalError) as gone:
        write.enqueue(victim, new_job())

    assert is_outage(gone.value, victim)
