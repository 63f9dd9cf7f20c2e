"""A connection for a long piece of work: an export, a report, an import.

The pool is for statements of milliseconds, and a connection that works for minutes would be missing there. The ledger's private
connections are the right kind, but tuned for its hot statements (never a sequential scan, never a new plan), which is wrong for
a question about a whole table: that tuning is taken back here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

import switchyard


@contextmanager
def private_connection(name: str, *, statement_seconds: float) -> Iterator[Connection[Any]]:
    """Open an autocommit connection of the caller's own, closed at the end of the block.

    Parameters:
        name: what it is for, shown in ``pg_stat_activity``.
        statement_seconds: how long one statement may take before the connection is given up.

    Raises:
        LedgerUnavailable: Postgres cannot be reached.
    """
    with switchyard.database().dedicated(name) as connection:
        connection.time_limit = statement_seconds
        if not switchyard.settings().pgbouncer:
            connection.execute("RESET ALL")
            # The server's own clock as well: a connection given up on this side leaves its statement running on the other.
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(round(statement_seconds * 1_000))])
        yield connection
