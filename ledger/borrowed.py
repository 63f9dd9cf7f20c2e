"""Connections that belong to the caller: rows are written on them, inside the transaction that the caller has open there.

A borrowed connection is never committed, rolled back or reconfigured, and its errors reach the caller as its own driver raises them: what
to do about a deadlock or a lost server is decided where the transaction is. Before the first write on a connection it is asked which
database it leads to; a row in another database than the ledger's would never run.

    psycopg Connection        written on directly
    SQLAlchemy Connection     ``exec_driver_sql``, so that its own begin, echo and invalidation see the statements
    SQLAlchemy Session        the connection of its current transaction, asked for at every write
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from errors import EnlistRefused
from ledger.database import Database
from ledger.forks import ForkSafeLock
from ledger.sql import SQL

if TYPE_CHECKING:
    from sqlalchemy import Connection as AlchemyConnection
    from sqlalchemy.orm import Session

#: SQLAlchemy drivers that take psycopg's parameter style and say what state a connection is in.
_DRIVERS: Final = ("psycopg", "psycopg_async", "psycopg2")

_ACCEPTED: Final = "a SQLAlchemy Session or Connection, or a psycopg (3) Connection"


class Rows:
    """What a statement returned, fetched already, so that nothing of ours stays open on the connection."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchone(self) -> Any:
        """The first row, or None."""
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[Any]:
        """All rows."""
        return self._rows


class Borrowed(ABC):
    """A caller's connection, as far as the ledger's write path needs one: ``execute`` and ``transaction``."""

    @abstractmethod
    def execute(self, statement: str, parameters: dict[str, Any] | None = None) -> Rows:
        """Run one statement that returns rows in the caller's transaction."""

    @abstractmethod
    def command(self, statement: str) -> None:
        """Run one statement that returns none."""

    @abstractmethod
    def driver_connection(self) -> Any:
        """The driver's own connection object."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A savepoint, so that several statements are written all or none whatever the caller does about an error."""
        self.command("SAVEPOINT switchyard_enlist")
        try:
            yield
        except BaseException:
            if self.driver_connection().info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                self.command("ROLLBACK TO SAVEPOINT switchyard_enlist")
            raise
        self.command("RELEASE SAVEPOINT switchyard_enlist")


class _Psycopg(Borrowed):
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: dict[str, Any] | None = None) -> Rows:
        # The caller's row factory and cursor class are made for the caller's rows.
        with psycopg.Cursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(statement.encode(), parameters)
            return Rows(cursor.fetchall())

    def command(self, statement: str) -> None:
        self._connection.execute(statement.encode())

    def driver_connection(self) -> psycopg.Connection[Any]:
        return self._connection


class _SqlAlchemy(Borrowed):
    def __init__(self, target: AlchemyConnection | Session) -> None:
        self._target = target

    def execute(self, statement: str, parameters: dict[str, Any] | None = None) -> Rows:
        return Rows(list(self._connection().exec_driver_sql(statement, parameters).fetchall()))

    def command(self, statement: str) -> None:
        self._connection().exec_driver_sql(statement)

    def driver_connection(self) -> Any:
        return self._connection().connection.driver_connection

    def _connection(self) -> AlchemyConnection:
        from sqlalchemy.orm import Session

        # A session may have committed and begun anew since the last send.
        connection = self._target.connection() if isinstance(self._target, Session) else self._target
        if connection.dialect.name != "postgresql" or connection.dialect.driver not in _DRIVERS:
            raise EnlistRefused(
                f"{connection.dialect.name}+{connection.dialect.driver} cannot carry a send; "
                "make the engine with postgresql+psycopg:// (or postgresql+psycopg2://)"
            )
        return connection


def borrow(target: object) -> Borrowed:
    """Make a caller's session or connection usable by the write path; nothing is sent on it yet.

    Raises:
        TypeError: it is nothing that can be enlisted; the text says what can.
    """
    if isinstance(target, psycopg.Connection):
        return _Psycopg(target)
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(target, scoped_session):
        target = target()
    if isinstance(target, Session | Connection):
        return _SqlAlchemy(target)
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    advice = ""
    if "async" in kind.lower():
        advice = "; inside `await session.run_sync(function)` the function gets a session that can be enlisted"
    elif kind.startswith("psycopg2."):
        advice = "; a psycopg2 connection can be enlisted through a SQLAlchemy engine (postgresql+psycopg2://)"
    raise TypeError(f"enlist() takes {_ACCEPTED}, not {kind}{advice}")


class LedgerOnly:
    """Lets pass what is in a transaction on the ledger's own database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = ForkSafeLock()
        self._ledger: tuple[str, str] | None = None
        self._checked: WeakSet[Any] = WeakSet()

    def check(self, borrowed: Borrowed) -> None:
        """Look at the connection's state, and ask it for its database once.

        Raises:
            EnlistRefused: it commits every statement by itself, or leads to another database; the text names the fix.
            LedgerUnavailable: the ledger could not be asked which database it is.
        """
        connection = borrowed.driver_connection()
        if connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
            raise EnlistRefused(
                "the connection is in autocommit mode with no transaction open, so there is nothing to belong to; "
                "open one first (`with connection.transaction():`), turn autocommit off, or send outside of enlist()"
            )
        if connection in self._checked:
            return
        theirs = _identity(borrowed)
        with self._lock:
            if theirs != self._ledger:
                # The first one, or the server was restarted since.
                self._ledger = self._database.run(lambda own: _identity(cast("Borrowed", own)))
            if theirs != self._ledger:
                raise EnlistRefused(
                    "the connection leads to another database than the ledger (DATABASE_URL), where the job would never run; "
                    "enlist a connection to the ledger's database, or commit first and then send"
                )
            self._checked.add(connection)


def _identity(connection: Borrowed) -> tuple[str, str]:
    row = connection.execute(SQL["which_database"]).fetchone()
    return row[0], row[1]
