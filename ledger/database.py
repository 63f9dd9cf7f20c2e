"""The way to Postgres: a pool for sends and reads, and dedicated connections for the threads that live on theirs.

Nothing connects before the first use. A pool belongs to the process that opened it: after a fork the child opens its own and
leaves the inherited sockets alone, since closing them would close the parent's sessions. Every wait is bounded, also when
Postgres is up but silent (a stopped process still acknowledges TCP). Driver errors that mean "Postgres is away" leave this
module as ``LedgerUnavailable``; what the caller's own SQL does wrong stays a psycopg error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import Connection, Cursor
from psycopg.abc import Params, PQGen
from psycopg.errors import InsufficientPrivilege
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from errors import LedgerNotMigrated, LedgerUnavailable
from ledger import cancelling, pooler, rights
from ledger.forks import ForkSafeLock
from ledger.version import LEDGER_REVISION, SCHEMA

T = TypeVar("T")
C = TypeVar("C", bound="BoundedConnection")

#: What Postgres says when the ledger's tables are not there, or older than this code.
_UNDEFINED: Final = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedColumn)

# What the pool cannot do reaches the caller as LedgerUnavailable, with the reason; its own running commentary would say it tenfold.
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)

#: What a standby says to whoever wants to write.
_STANDBY: Final = "25006"
#: How long one connection attempt may take, in whole seconds (libpq knows no fractions).
CONNECT_TIMEOUT: Final = 5
#: How long a caller waits while connections are refused, in seconds: a restart is ridden out, a wrong address is told at once.
REFUSAL_PATIENCE: Final = 1.0
#: How long the dedicated threads wait for one statement, in seconds: longer than any of ours takes, short enough to notice an outage.
STATEMENT_TIMEOUT: Final = 20.0
#: The same for the server, in seconds, should the client not be there any more to give up; what an administrator set for everybody may be
#: far less, and would end a keeper's statement at every turn.
SERVER_TIMEOUT: Final = STATEMENT_TIMEOUT + 5.0
#: How long a transaction of a dedicated thread may be silent, in seconds: longer than a broker takes for an answer. A process that is
#: stopped in the middle of one, or whose machine is gone, would keep its rows locked, and everybody passes locked rows by.
IDLE_LIMIT: Final = 30.0
#: By when the server knows that a client's machine is gone: in 25 s. Left to the system, in 2 hours.
_SERVER_OPTIONS: Final = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=25000"
)
_LIMITS: Final = (
    "SELECT set_config('lock_timeout', '0', false), set_config('statement_timeout', %s, false),"
    " set_config('idle_in_transaction_session_timeout', %s, false)"
)
#: How long a dedicated connection keeps a plan, in seconds. One made while the table was empty is a disaster for a full one, and
#: without this it would stay until the next ANALYZE (measured: 820 ms instead of 9 for a claim of 100 among 50,000).
REPLAN_EVERY: Final = 5.0

#: Pools that a forked child inherited. Kept for ever: collecting one would send a goodbye on the parent's connections.
_inherited: list[Any] = []


class BoundedConnection(Connection[tuple[Any, ...]]):
    """A psycopg connection on which no statement waits longer than ``time_limit`` seconds; then the connection is given up."""

    time_limit: float | None = None
    #: Whether kept plans are given up every ``REPLAN_EVERY`` seconds.
    replan = False
    _replan_at = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: Names of the statements that ``ledger.prepared`` has prepared on it.
        self.prepared: set[bytes] = set()

    def execute(
        self, query: Any, params: Params | None = None, *, prepare: bool | None = None, binary: bool = False
    ) -> Cursor[tuple[Any, ...]]:
        """Execute a statement, as the base class does."""
        if self.replan and monotonic() >= self._replan_at:
            self._replan_at = monotonic() + REPLAN_EVERY
            super().execute("DISCARD PLANS", prepare=False)
        return super().execute(query, params, prepare=prepare, binary=binary)

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Consume a generator of psycopg's, as the base class does, but give up a connection that stays silent."""
        started = monotonic()
        try:
            return super().wait(gen, interval, timeout if timeout is not None else self.time_limit)
        except psycopg.OperationalError:
            if timeout is None and self.time_limit is not None and monotonic() - started >= self.time_limit:
                # The statement may still be running over there: this session can never be used again.
                cancelling.cancel(self.pgconn)
                self.pgconn.finish()
            raise


def is_outage(error: BaseException, connection: Connection[Any] | None = None) -> bool:
    """Whether a driver error says that Postgres is away or restarting, rather than that a statement was wrong."""
    if isinstance(error, PoolTimeout | PoolClosed | psycopg.InterfaceError):
        return True
    if isinstance(error, psycopg.Error) and error.sqlstate:
        # 08 connection, 53 out of memory, disk or connections, 57 shutdown or cancelled from outside, 25006 a standby, 55P03 a lock that
        # was not had within an administrator's lock_timeout: none of them is a row's fault, and each passes.
        state = error.sqlstate
        return (
            state.startswith(("08", "53", "57")) or state in (_STANDBY, "55P03") or (connection is not None and connection.broken)
        )
    # Without a state: the socket broke, or was silent for too long.
    return isinstance(error, psycopg.OperationalError)


def arguments(url: str, name: str, *, pgbouncer: bool = False) -> dict[str, Any]:
    """What to connect with, beside the URL.

    Parameters:
        name: what the connection is for, shown in ``pg_stat_activity``.
    """
    found: dict[str, Any] = {}
    if not pgbouncer:
        # Guarded statements that waited for a row have to look at it again: above READ COMMITTED, which a role or a database may have
        # as its default, they fail instead. PgBouncer takes no options; there the default has to be right.
        given = psycopg.conninfo.conninfo_to_dict(url).get("options") or ""
        # Compiling costs a second, and a statement over a thousand ids, which the planner cannot count, looks costly enough for it
        # (cancelling 10,000 jobs took 9 s, of which 8 went into that).
        found["options"] = f"{given} -c default_transaction_isolation=read\\ committed -c jit=off {_SERVER_OPTIONS}".strip()
    return found | {
        "autocommit": True,
        "application_name": name,
        "connect_timeout": CONNECT_TIMEOUT,
        "prepare_threshold": None if pgbouncer else 0,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1_000))


def _first_line(error: BaseException) -> str:
    """What a driver has to say, without its advice on the lines below."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


class Database:
    """One Postgres database, as one process sees it.

    Parameters:
        url: ``postgresql://…``.
        pool_size: most connections for sends and reads, opened on demand.
        timeout: seconds a pooled statement, or the wait for a pooled connection, may take.
        pgbouncer: behind PgBouncer in transaction mode; nothing is prepared and no session setting is made. False: such a pooler is
            refused.
    """

    def __init__(self, url: str, *, pool_size: int = 10, timeout: float = 5.0, pgbouncer: bool = False) -> None:
        self.url = url
        self.pool_size = pool_size
        self.timeout = timeout
        self.pgbouncer = pgbouncer
        self._lock = ForkSafeLock()
        self._pool: ConnectionPool[BoundedConnection] | None = None
        self._pid = 0
        #: Why the pool's last attempt to connect failed; None when it succeeded.
        self._refusal: psycopg.OperationalError | None = None
        #: Whether the address needs no look at what answers there: it was looked at, or PGBOUNCER says what it is.
        self._known = pgbouncer
        #: Connections that are lent out at this moment.
        self._lent: set[BoundedConnection] = set()

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[BoundedConnection]:
        """Borrow a pooled autocommit connection.

        Parameters:
            timeout: seconds for the connection and for each statement; default the database's own.

        Raises:
            LedgerUnavailable: no connection could be had, or it was lost in between.
            LedgerForbidden: the user lacks a right on the ledger's schema or tables.
        """
        limit = self.timeout if timeout is None else timeout
        pool = self._current_pool()
        connection = self._borrowed(pool, limit)
        connection.time_limit = limit
        self._lent.add(connection)
        try:
            yield connection
        except psycopg.Error as error:
            if is_outage(error, connection):
                if error.sqlstate == _STANDBY:
                    # The address may lead to the primary by now; what was opened before never will.
                    pool.drain()
                raise LedgerUnavailable(_first_line(error)) from error
            if isinstance(error, _UNDEFINED) and f"{SCHEMA}." in str(error):
                raise LedgerNotMigrated(None, LEDGER_REVISION) from error
            if isinstance(error, InsufficientPrivilege) and (forbidden := rights.refusal(error, connection)) is not None:
                raise forbidden from error
            raise
        finally:
            self._lent.discard(connection)
            pool.putconn(connection)

    def run(self, work: Callable[[BoundedConnection], T], timeout: float | None = None) -> T:
        """Call ``work`` with a pooled connection, and once more when the connection turned out to be lost.

        ``work`` has to be safe to repeat: a lost reply does not tell whether its statement was committed.

        Raises:
            LedgerUnavailable: the second try failed too, or there was no time left for one.
        """
        deadline = monotonic() + (self.timeout if timeout is None else timeout)
        try:
            with self.connection(deadline - monotonic()) as connection:
                return work(connection)
        except LedgerUnavailable:
            if monotonic() >= deadline - 0.05:
                raise
        # After a restart of Postgres every idle connection is dead: weed them out, or the second try meets the next dead one.
        self._current_pool().check()
        with self.connection(max(0.05, deadline - monotonic())) as connection:
            return work(connection)

    def dedicated(self, name: str, *, batches: bool = False) -> BoundedConnection:
        """Open a private autocommit connection for a thread that lives on it; the caller closes it.

        Parameters:
            batches: its statements join rows with arrays of values; the planner, which takes every array for ten values, must hash
                them and not walk over one for each element of the other.

        Raises:
            LedgerUnavailable: Postgres cannot be reached.
        """
        try:
            connection = self._connect(
                BoundedConnection.connect, self.url, **arguments(self.url, f"switchyard {name}", pgbouncer=self.pgbouncer)
            )
            connection.time_limit = STATEMENT_TIMEOUT
            if not self.pgbouncer:
                # The hot statements touch few rows of a table whose statistics lag behind its churn: always the index, in its
                # order (a bitmap would sort the whole backlog for each claim), and planned once in a while, not for each batch.
                connection.execute(
                    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off",
                    prepare=False,
                )
                connection.execute(_LIMITS, [_milliseconds(SERVER_TIMEOUT), _milliseconds(IDLE_LIMIT)], prepare=False)
                if batches:
                    connection.execute("SET enable_nestloop = off; SET enable_mergejoin = off", prepare=False)
                connection.replan = True
        except psycopg.Error as error:
            raise LedgerUnavailable(pooler.refusal(error, announced=self.pgbouncer)) from error
        return connection

    def close(self) -> None:
        """Close the pool, if this process opened it."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()

    def _connect(self, connect: Callable[..., C], *arguments: Any, **options: Any) -> C:
        """Connect, the first time with a look at what answers there.

        Raises:
            psycopg.OperationalError: nobody does, or a pooler that may not be used like a server.
        """

        def bounded() -> C:
            connection = connect(*arguments, **options)
            connection.time_limit = CONNECT_TIMEOUT
            return connection

        connection = bounded()
        if not self._known:
            try:
                if pooler.lends_for_a_transaction(connection, bounded):
                    raise psycopg.OperationalError(pooler.ADVICE)
            except BaseException:
                connection.close()
                raise
            self._known = True
        return connection

    def _borrowed(self, pool: ConnectionPool[BoundedConnection], limit: float) -> BoundedConnection:
        deadline = monotonic() + limit
        while True:
            try:
                return pool.getconn(min(REFUSAL_PATIENCE, max(0.0, deadline - monotonic())))
            except PoolTimeout as error:
                refusal = self._refusal
                # While others work on theirs, a refusal only kept the pool from growing: wait for a turn.
                if refusal is not None and not self._lent:
                    raise LedgerUnavailable(pooler.refusal(refusal, announced=self.pgbouncer)) from refusal
                # Nobody refused: all connections are busy, or Postgres is silent. That may pass until the deadline.
                if monotonic() >= deadline:
                    raise LedgerUnavailable(f"no connection within {limit:g} s ({error})") from error
            except (PoolClosed, psycopg.OperationalError) as error:
                raise LedgerUnavailable(str(error).strip()) from error

    def _pooled_class(self) -> type[BoundedConnection]:
        """The class of this pool's connections. The pool only logs why it could not connect; this keeps the reason for callers."""
        database = self

        class Pooled(BoundedConnection):
            @classmethod
            def connect(cls, *arguments: Any, **options: Any) -> Self:
                try:
                    connection = database._connect(super().connect, *arguments, **options)
                except psycopg.OperationalError as error:
                    database._refusal = error
                    raise
                database._refusal = None
                return connection

        return Pooled

    def _current_pool(self) -> ConnectionPool[BoundedConnection]:
        pool = self._pool
        if pool is not None and self._pid == os.getpid():
            return pool
        with self._lock:
            if self._pool is not None and self._pid != os.getpid():
                _inherited.append((self._pool, self._lent))
                self._pool, self._lent, self._refusal = None, set(), None
            if self._pool is None:
                self._pool = ConnectionPool(
                    self.url,
                    connection_class=self._pooled_class(),
                    kwargs=arguments(self.url, "switchyard", pgbouncer=self.pgbouncer),
                    min_size=1,
                    max_size=self.pool_size,
                    timeout=self.timeout,
                    # Give up a failed attempt soon: the next caller starts a new one, so that recovery is not held by a long back-off.
                    reconnect_timeout=0.5,
                    num_workers=1,
                    open=True,
                )
                self._pid = os.getpid()
            return self._pool


def applied_revision(connection: Connection[Any]) -> str | None:
    """The migration the database is at; None when it has no ledger. Raises: LedgerForbidden: the user may not read it."""
    try:
        row = connection.execute("SELECT version_num FROM switchyard.alembic_version").fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    except InsufficientPrivilege as error:
        raise rights.refusal(error, connection) or error from error
    return row[0] if row else None


def require_migrated(database: Database) -> None:
    """Make sure that this code can work with the database.

    Raises:
        LedgerUnavailable: it cannot be reached, or a pooler keeps its transactions from being what they have to be.
        LedgerNotMigrated: its tables are missing or older than this code. Newer ones are fine: migrations only ever expand.
        LedgerForbidden: the user may not read it.
    """
    connection = database.dedicated("check")
    try:
        found = applied_revision(connection)
        with connection.transaction():
            row = connection.execute(
                "SELECT current_setting('default_transaction_isolation'), quote_ident(current_user)"
            ).fetchone()
    except psycopg.errors.ProtocolViolation as error:
        raise LedgerUnavailable(f"{_first_line(error)}; PgBouncer needs pool_mode = transaction") from error
    finally:
        connection.close()
    if row is not None and row[0] != "read committed":
        # Without a pooler in between, every connection asks for it.
        raise LedgerUnavailable(
            f"transactions of {row[1]} are {row[0].upper()} by default, and a pooler carries no other wish; in Postgres itself: "
            f"ALTER ROLE {row[1]} SET default_transaction_isolation = 'read committed'"
        )
    if found is None or found < LEDGER_REVISION:
        raise LedgerNotMigrated(found, LEDGER_REVISION)
