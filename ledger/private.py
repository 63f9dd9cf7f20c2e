"""Connections that are lent to user code for a transaction of its own, one at a time each, and kept for the next.

They are neither the pool's (a job that works for minutes would be missing there, and what user code sets on a connection would meet the
ledger's statements) nor tuned as those of our own threads. What a borrower left behind, from settings to advisory locks, is
discarded before the next one. Behind PgBouncer that has to happen before the commit, since the session is somebody else's right after it;
there an advisory lock of the session's survives a rollback.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from errors import LedgerUnavailable
from ledger.database import BoundedConnection, Database, is_outage

#: Most connections kept while nobody uses them.
KEEP: Final = 4
#: What DISCARD ALL does, as far as it may be done inside a transaction and concerns a borrower who can prepare nothing.
_FORGET: Final = (
    "CLOSE ALL; UNLISTEN *; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DISCARD TEMP; SELECT pg_advisory_unlock_all()"
)
#: What PgBouncer remembers for each client; reset, it would stay so.
_CLIENTS: Final = ("application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings")


class PrivateConnections:
    """Lends connections; ``name`` is shown in ``pg_stat_activity``."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[BoundedConnection] = []
        #: What PgBouncer remembers of a connection that nobody has used yet.
        self._own: dict[str, str] = {}

    @contextmanager
    def connection(self) -> Iterator[BoundedConnection]:
        """Lend an autocommit connection on which statements may take as long as they take.

        Raises:
            LedgerUnavailable: Postgres cannot be reached, or was lost inside the block.
        """
        connection = self._checked() or self._new()
        connection.time_limit = None
        try:
            yield connection
        except psycopg.Error as error:
            if is_outage(error, connection):
                raise LedgerUnavailable(str(error).strip() or type(error).__name__) from error
            raise
        finally:
            self._take_back(connection)

    def leave_nothing(self, connection: BoundedConnection) -> None:
        """Call it inside a borrower's transaction when they are done with it, before it is committed; needed behind PgBouncer alone."""
        if self._database.pgbouncer:
            own = [(name, self._own[name]) for name in _CLIENTS if name in self._own]
            again = [sql.SQL("SET {} = {}").format(sql.Identifier(name.lower()), sql.Literal(value)) for name, value in own]
            connection.execute(sql.SQL("; ").join([sql.SQL(_FORGET), *again]), prepare=False)

    def close(self) -> None:
        """Close what nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _checked(self) -> BoundedConnection | None:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            return None
        try:
            connection.execute("SELECT 1")
        except psycopg.Error:
            # After a restart of Postgres none of them works.
            connection.close()
            self.close()
            return None
        return connection

    def _new(self) -> BoundedConnection:
        connection = self._database.dedicated(self._name)
        connection.prepare_threshold = None
        connection.replan = False
        shown = {name: connection.info.parameter_status(name) for name in _CLIENTS}
        self._own = {name: value for name, value in shown.items() if value is not None}
        self._clean(connection)
        return connection

    def _take_back(self, connection: BoundedConnection) -> None:
        try:
            if connection.info.transaction_status == TransactionStatus.IDLE:
                connection.time_limit = self._database.timeout
                self._clean(connection)
                with self._lock:
                    if len(self._idle) < KEEP:
                        self._idle.append(connection)
                        return
        except psycopg.Error:
            # It is given up; whoever lent it knows already how their transaction ended.
            pass
        connection.close()

    def _clean(self, connection: BoundedConnection) -> None:
        connection.row_factory = tuple_row
        connection.cursor_factory = psycopg.Cursor
        if not self._database.pgbouncer:
            connection.execute("DISCARD ALL")
