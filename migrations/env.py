"""Alembic's entry point: run the migrations that it is called for online, in one transaction, under a lock that ends with that.

A lock of the session's would outlive the run behind a pooler in transaction mode, and every later run would wait for it.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

import migrations
from ledger.tables import metadata
from ledger.version import SCHEMA

#: Two deploys at once: the second waits for the first instead of failing on its tables. Any number that nobody else uses.
_MIGRATION_LOCK = 727_227_001


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Compare our own schema only; the application's tables in the same database are none of our business."""
    return name == SCHEMA if kind == "schema" else True


def run() -> None:
    """Connect, take the lock, create the schema if need be, migrate."""
    with migrations.engine(context.config.attributes["database_url"]).begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema=SCHEMA,
            include_schemas=True,
            include_name=include_name,
            compare_server_default=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
