"""Alembic's entry point: run the migrations online, under a lock, in one transaction each."""

from __future__ import annotations

from time import sleep

from alembic import context
from sqlalchemy import Connection, text

import migrations
from ledger.tables import metadata
from ledger.version import SCHEMA

#: Two deploys at once: the second waits for the first instead of failing on its tables. Any number that nobody else uses.
_MIGRATION_LOCK = 727_227_001
#: Seconds until whoever waits for that asks again.
_ASK_AGAIN = 0.2


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Compare our own schema only; the application's tables in the same database are none of our business."""
    return name == SCHEMA if kind == "schema" else True


def take_turn(connection: Connection) -> None:
    """Take the lock, which the session keeps. By asking again and again: a statement that waits for it has a snapshot for as long, and
    an index that the one before builds CONCURRENTLY waits for every snapshot there is, so both would wait for ever."""
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _MIGRATION_LOCK}).scalar():
        connection.rollback()
        sleep(_ASK_AGAIN)


def run() -> None:
    """Connect, take the lock, create the schema if need be, migrate."""
    with migrations.engine(context.config.attributes["database_url"]).connect() as connection:
        take_turn(connection)
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema=SCHEMA,
            include_schemas=True,
            include_name=include_name,
            compare_server_default=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
