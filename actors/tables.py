"""The tables that the shipped actors own, in a schema of their own beside the ledger: schema only, nothing is mapped.

Alembic compares the migrations against this module. The ledger never reads these; dropping the schema leaves it whole.

    contact        what import_csv imports, one row per e-mail address
    import_run     one row per imported file, recognised by its content; how far it is, and its counts
    import_error   lines of a file that were not imported, and why
    statistics     jobs per hour, queue and state, as hourly_statistics found them
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Table,
    Text,
    text,
)

SCHEMA = "switchyard_jobs"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={"ix": "%(table_name)s_%(column_0_N_name)s", "ck": "%(table_name)s_%(constraint_name)s"},
)

_NOW = text("clock_timestamp()")
_ZERO = text("0")

contact = Table(
    "contact",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # Lower case; what an import recognises a contact by.
    Column("email", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("company", Text),
    Column("phone", Text),
    # The transaction's time: equal as long as nothing was updated.
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Index("contact_created_at", "created_at"),
)

import_run = Table(
    "import_run",
    metadata,
    # SHA-256 of the file's bytes, in hexadecimal: the same file is the same import, whatever it is called.
    Column("sha256", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'running'")),
    # The resume point: records done, counted from 0 after the header. Moves in the transaction that stores the batch.
    Column("records", BigInteger, nullable=False, server_default=_ZERO),
    Column("inserted", BigInteger, nullable=False, server_default=_ZERO),
    Column("updated", BigInteger, nullable=False, server_default=_ZERO),
    Column("invalid", BigInteger, nullable=False, server_default=_ZERO),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("finished_at", DateTime(timezone=True)),
    CheckConstraint("status IN ('running', 'completed')", name="status_known"),
    CheckConstraint("(status = 'completed') = (finished_at IS NOT NULL)", name="completed_is_finished"),
)

import_error = Table(
    "import_error",
    metadata,
    Column("sha256", Text, ForeignKey(import_run.c.sha256, ondelete="CASCADE"), primary_key=True),
    # The file's line on which the record ends; the header is line 1.
    Column("line", BigInteger, primary_key=True),
    # Which column and why; never the value, which may be personal.
    Column("reason", Text, nullable=False),
)

statistics = Table(
    "statistics",
    metadata,
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("queue", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
)
