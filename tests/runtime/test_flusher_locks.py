"""The flusher, where a database's administrator has less patience with locks than it has."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from runtime.flusher import Flusher
from tests.ledger.factory import completed
from tests.rig.postgres import Databases
from tests.rig.waiting import wait_until


@pytest.mark.parametrize("pgbouncer", [False, True], ids=["straight", "as behind PgBouncer"])
def test_a_result_is_written_however_soon_waiting_for_its_row_is_given_up(desk, database_url, pgbouncer):
    desk.database.pgbouncer = pgbouncer
    (held,) = desk.claim(1)
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET lock_timeout = '50ms'").format(sql.Identifier(Databases.name_of(database_url)))
        )
        holder.execute("SELECT id FROM switchyard.job FOR UPDATE")
        flusher = Flusher(desk.database, desk.held, desk.counters)
        flusher.start()
        assert desk.held.finish(held)
        flusher.put(held, completed(held.job.id, held.token))
        # Several times as long as the administrator allows.
        with pytest.raises(AssertionError):
            wait_until(lambda: not desk.held.settling, 0.6)

    wait_until(lambda: desk.states() == ["completed"], 15)
    assert flusher.stop(2.0)
