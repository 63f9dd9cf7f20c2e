"""One statement on the way of every send, prepared once per connection and run without the driver's conveniences.

psycopg's cursor looks its query up, dumps each value by its type and builds rows for results of any shape: 100 of a send's 500 us
(docs/performance.md). For one statement whose values are texts already, libpq's own call and psycopg's wait are all that is needed.
Errors and time limits are the connection's own, as for any other statement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, LiteralString

from psycopg import generators
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

from ledger.database import BoundedConnection

_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_FINE: Final = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Prepared:
    """A statement with ``%(name)s`` parameters that returns at most one value."""

    def __init__(self, name: str, statement: LiteralString) -> None:
        self._name = name.encode()
        self._parameters = tuple(dict.fromkeys(_PARAMETER.findall(statement)))
        numbers = {parameter: f"${number}" for number, parameter in enumerate(self._parameters, 1)}
        self._unprepared = statement
        self._statement = _PARAMETER.sub(lambda match: numbers[match[1]], statement).encode()

    def run(self, connection: BoundedConnection, values: Mapping[str, str | None]) -> bytes | None:
        """Run it; every value is a text as Postgres reads it, or None for NULL.

        Returns: the value, as text; None when no row came back.
        Raises: psycopg.Error: as ``connection.execute`` would.
        """
        if connection.prepare_threshold is None:
            # Behind PgBouncer nothing can be prepared.
            row = connection.execute(self._unprepared, values).fetchone()
            return None if row is None else str(row[0]).encode()
        try:
            return self._run(connection, values)
        except InvalidSqlStatementName:
            # psycopg deallocates everything after a rollback on its connection, ours too. Inside a transaction this error ends it.
            if connection.info.transaction_status != TransactionStatus.IDLE:
                raise
            connection.prepared.discard(self._name)
            return self._run(connection, values)

    def _run(self, connection: BoundedConnection, values: Mapping[str, str | None]) -> bytes | None:
        raw = connection.pgconn
        if self._name not in connection.prepared:
            raw.send_prepare(self._name, self._statement)
            self._result(connection)
            connection.prepared.add(self._name)
        raw.send_query_prepared(
            self._name,
            [None if (value := values[parameter]) is None else value.encode() for parameter in self._parameters],
        )
        return self._result(connection)

    @staticmethod
    def _result(connection: BoundedConnection) -> bytes | None:
        result = connection.wait(generators.execute(connection.pgconn))[-1]
        if result.status not in _FINE:
            raise error_from_result(result, connection.info.encoding)
        return result.get_value(0, 0) if result.ntuples else None
