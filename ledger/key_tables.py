"""The table of keys that outlive their jobs. See ``ledger/sql/keys.sql``."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, DateTime, Index, Table, Text, Uuid

from ledger.metadata import NOW, metadata

idempotency = Table(
    "idempotency",
    metadata,
    # idempotency: a sender's key. unique: an actor's, for a period.
    Column("kind", Text, primary_key=True),
    # The actor.
    Column("scope", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    # Of the payload, by HMAC; null where payloads are not compared.
    Column("fingerprint", Text),
    # Not a foreign key: the key outlives the job's row.
    Column("message_id", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    # From then on it counts as absent, and the keepers remove it.
    Column("expires_at", DateTime(timezone=True), nullable=False),
    CheckConstraint("kind IN ('idempotency', 'unique')", name="kind_known"),
    Index("idempotency_expires_at", "expires_at"),
)
