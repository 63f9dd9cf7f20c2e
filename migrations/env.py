"""Alembic's entry point: run the migrations that it is called for online, one run at a time.

The lock is held by a transaction on a connection of its own: a session's would outlive the run behind a pooler in transaction mode, where
every later run would wait for it, and a migration's own transaction ends early where an index is built CONCURRENTLY.
"""

from __future__ import annotations

from time import sleep

from alembic import context
from sqlalchemy import Connection, Engine, text

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
    """Take the lock for as long as the transaction of this connection lasts. By asking again and again: a statement that waits for it has
    a snapshot for as long, and an index that the one before builds CONCURRENTLY waits for every snapshot there is, so both would wait
    for ever. What has been answered has none."""
    while not connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}).scalar():
        connection.rollback()
        sleep(_ASK_AGAIN)
    # Whatever an administrator thinks of transactions that do nothing: this one waits for the other connection.
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


def run() -> None:
    """Take the lock, create the schema if need be, migrate."""
    engine = migrations.engine(context.config.attributes["database_url"])
    with engine.connect() as turn:
        take_turn(turn)
        migrate(engine)


def migrate(engine: Engine) -> None:
    """The work itself; the lock is held."""
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.commit()
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
