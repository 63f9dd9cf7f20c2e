"""What the user of a connection has to be allowed, and how a refusal of Postgres becomes an error that names the GRANT.

Postgres says which schema or table it refused, and nothing else: not the right that is missing. So the advice is what a sender needs of
that table (``SENDING``, the list of docs/howto/enqueue-in-a-transaction.md), and for a table that only workers and commands use all that
these need (``WORKING``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import psycopg
from psycopg import Connection

from errors import LedgerForbidden
from ledger.version import SCHEMA

#: What a worker, a keeper and the commands need on every table.
WORKING: Final = "SELECT, INSERT, UPDATE, DELETE"
#: What a process needs that sends, per table.
SENDING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "route": "SELECT",
        "job": "SELECT, INSERT, UPDATE",
        "idempotency": "SELECT, INSERT, UPDATE, DELETE",
        "rule": "SELECT, INSERT, UPDATE",
        "batch": "SELECT, INSERT, UPDATE",
    }
)
#: The ledger's tables, by name. SQLAlchemy's would take every process half a second to load.
TABLES: Final = frozenset(
    (
        "activity",
        "alembic_version",
        "attempt",
        "batch",
        "dead_notice",
        "declaration",
        "duty",
        "epoch",
        "gate",
        "idempotency",
        "job",
        "job_log",
        "job_step",
        "mark",
        "pause",
        "route",
        "rule",
        "sample",
        "schedule",
        "schedule_declaration",
        "tick",
        "watch",
        "worker",
    )
)

_WORD: Final = re.compile(r"[a-z_0-9]+")
_PLAIN: Final = re.compile(r"[a-z_][a-z_0-9]*")


def refusal(error: psycopg.errors.InsufficientPrivilege, connection: Connection[Any]) -> LedgerForbidden | None:
    """The error to raise for a refusal on this connection; None when it is about something that is not the ledger's."""
    # In every language the name stands last, or at least unchanged: "permission denied for table route".
    words = _WORD.findall(error.diag.message_primary or str(error))
    named = next((word for word in reversed(words) if word == SCHEMA or word in TABLES), None)
    if named is None:
        return None
    user = connection.info.user
    role = user if _PLAIN.fullmatch(user) else '"' + user.replace('"', '""') + '"'
    if named == SCHEMA:
        grant = f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}; GRANT {WORKING} ON ALL TABLES IN SCHEMA {SCHEMA} TO {role}"
        fewer = "(to send only, fewer: docs/howto/enqueue-in-a-transaction.md)"
        return LedgerForbidden(f'user "{user}" may not use schema {SCHEMA}', f"{grant} {fewer}")
    return LedgerForbidden(
        f'user "{user}" may not do this with table {SCHEMA}.{named}',
        f"GRANT {SENDING.get(named, WORKING)} ON {SCHEMA}.{named} TO {role}",
    )
