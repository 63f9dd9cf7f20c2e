"""Create the tables of schedules: what is to be sent when, who declares it, and which ticks were made.

Lock cost: new tables only; nothing that exists is locked.
Deploy: before the code that needs them; older workers make no jobs of schedules.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = "switchyard"


def _moment(name: str, *, known: bool = False, **options: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=not known, **options)  # type: ignore[arg-type]


def upgrade() -> None:
    now = sa.text("clock_timestamp()")
    op.create_table(
        "schedule",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text()),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON()),
        sa.Column("expression", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("catch_up", sa.Text(), nullable=False),
        sa.Column("window_seconds", sa.Float(), nullable=False),
        sa.Column("jitter_seconds", sa.Float(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text()),
        sa.Column("version", sa.BigInteger(), nullable=False, server_default=sa.text("1")),
        _moment("paused_at"),
        _moment("retired_at"),
        _moment("last_tick_at"),
        _moment("next_tick_at"),
        _moment("due_at"),
        sa.Column("error", sa.Text()),
        _moment("created_at", known=True, server_default=now),
        _moment("changed_at", known=True, server_default=now),
        sa.CheckConstraint("catch_up IN ('skip', 'last', 'all')", name="catch_up_known"),
        sa.CheckConstraint("source IN ('declared', 'created')", name="source_known"),
        sa.CheckConstraint(
            "due_at IS NULL OR (paused_at IS NULL AND retired_at IS NULL AND next_tick_at IS NOT NULL)",
            name="due_when_active",
        ),
        schema=SCHEMA,
    )
    op.create_index("schedule_due", "schedule", ["due_at"], schema=SCHEMA, postgresql_where=sa.text("due_at IS NOT NULL"))
    op.create_table(
        "schedule_declaration",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("digest", sa.Text(), primary_key=True),
        sa.Column("definition", sa.JSON(), nullable=False),
        _moment("entered_at", known=True),
        _moment("until", known=True),
        schema=SCHEMA,
    )
    op.create_table(
        "tick",
        _moment("tick_at", known=True, primary_key=True),
        sa.Column("schedule", sa.Text(), primary_key=True),
        sa.Column("message_id", sa.Uuid()),
        sa.Column("error", sa.Text()),
        _moment("made_at", known=True, server_default=now),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("tick", schema=SCHEMA)
    op.drop_table("schedule_declaration", schema=SCHEMA)
    op.drop_table("schedule", schema=SCHEMA)
