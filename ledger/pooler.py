"""Poolers between a process and Postgres, such as PgBouncer: what gives one away, and which of them cannot be used as it is.

Postgres tells at the login by which process id a session goes; a pooler invents one, since its sessions come and go. That alone does no
harm. Where a client may have another session at each transaction, though, its prepared statements and its LISTEN are somebody else's, and
so are its settings: that has to be said by PGBOUNCER, or refused. Two connections tell such a pooler from one that lends a session for as
long as a client stays: there each of them sees one process id for ever, and no two the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import Connection

#: What to do about a pooler that was not announced.
ADVICE: Final = "a pooler such as PgBouncer answers there: set PGBOUNCER=true, or name the address of Postgres itself"
#: What to do about settings that a URL asks for and a pooler that was announced does not carry.
_OPTIONS: Final = (
    "a pooler such as PgBouncer answers there and carries no options: take them out of DATABASE_URL (and PGOPTIONS); "
    "Postgres itself keeps settings for a user, by ALTER ROLE ... SET"
)
#: How a pooler refuses to carry session settings.
_REFUSES_SETTINGS: Final = "unsupported startup parameter"
#: How often each of two connections is asked for its session. An idle pooler shows itself at once, since it lends what was used last; a
#: busy one would have to give both the same again and again, by chance.
_ROUNDS: Final = 8


def refusal(error: psycopg.Error, *, announced: bool) -> str:
    """What a failed connection has to say; of a pooler that takes no session settings, what to do about it.

    Parameters:
        announced: PGBOUNCER is set, so that the settings are not ours.
    """
    said = str(error).strip()
    if _REFUSES_SETTINGS not in said:
        return said
    return _OPTIONS if announced else ADVICE


def lends_for_a_transaction(connection: Connection[Any], connect: Callable[[], Connection[Any]]) -> bool:
    """Whether a pooler gives this autocommit connection another session at each transaction. Costs one statement where there is none.

    Parameters:
        connect: makes a second connection, with the same parameters.
    """
    if _session(connection) == connection.info.backend_pid:
        return False
    with connect() as second:
        pairs = [(_session(connection), _session(second)) for _ in range(_ROUNDS)]
    mine, others = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    return len(mine) > 1 or len(others) > 1 or mine == others


def _session(connection: Connection[Any]) -> int:
    """The server process that runs this statement."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    assert row is not None
    return int(row[0])
