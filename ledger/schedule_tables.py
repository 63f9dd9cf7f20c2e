"""The tables of schedules: what they are, who declares them, and what they made. See ``ledger/schedules.py``."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Float, Index, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSON

from ledger.metadata import NOW, metadata

schedule = Table(
    "schedule",
    metadata,
    # The actor's own of a declared one.
    Column("name", Text, primary_key=True),
    Column("actor", Text, nullable=False),
    # Null: the actor's.
    Column("queue", Text),
    # As in job.
    Column("payload", JSON, nullable=False),
    Column("options", JSON),
    Column("expression", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("catch_up", Text, nullable=False),
    # How far back catching up goes, and by how much a tick's job may be made later.
    Column("window_seconds", Float, nullable=False),
    Column("jitter_seconds", Float, nullable=False),
    # declared: it stands in code, and processes say so; created: somebody made it.
    Column("source", Text, nullable=False),
    # Of a declared one: which declaration it follows.
    Column("digest", Text),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("paused_at", DateTime(timezone=True)),
    # No living process declares it any more.
    Column("retired_at", DateTime(timezone=True)),
    # The latest tick that was acted on, and the first that nobody has dealt with; null: it has none any more.
    Column("last_tick_at", DateTime(timezone=True)),
    Column("next_tick_at", DateTime(timezone=True)),
    # When the next tick's job is made; null: it is not (paused, retired, over).
    Column("due_at", DateTime(timezone=True)),
    # Why the latest tick has no job, if it was to have one.
    Column("error", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    CheckConstraint("catch_up IN ('skip', 'last', 'all')", name="catch_up_known"),
    CheckConstraint("source IN ('declared', 'created')", name="source_known"),
    CheckConstraint(
        "due_at IS NULL OR (paused_at IS NULL AND retired_at IS NULL AND next_tick_at IS NOT NULL)", name="due_when_active"
    ),
    Index("schedule_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
)

schedule_declaration = Table(
    "schedule_declaration",
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("definition", JSON, nullable=False),
    # As in declaration.
    Column("entered_at", DateTime(timezone=True), nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
)

tick = Table(
    "tick",
    metadata,
    # In this order, so that what is old is found by the key.
    Column("tick_at", DateTime(timezone=True), primary_key=True),
    Column("schedule", Text, primary_key=True),
    # The job's message id; null: no job could be made, and error says why.
    Column("message_id", Uuid),
    Column("error", Text),
    Column("made_at", DateTime(timezone=True), nullable=False, server_default=NOW),
)

# Imported with them, so that the metadata are complete.
