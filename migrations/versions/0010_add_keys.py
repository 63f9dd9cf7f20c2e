"""Add the keys that make two sends one job: a table for those that outlive a row, an index for those of active jobs.

Lock cost: a new table; a unique index on the job table, over rows with a key, of which there are none: building it reads the table once,
and holds up writes for that long (a second per some million rows).
Deploy: before the code that needs it; older workers go on working.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "idempotency",
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("scope", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('idempotency', 'unique')", name="kind_known"),
        schema="switchyard",
    )
    op.create_index("idempotency_expires_at", "idempotency", ["expires_at"], schema="switchyard")
    op.create_index(
        "job_unique_active",
        "job",
        ["actor", "unique_key"],
        unique=True,
        schema="switchyard",
        postgresql_where=sa.text("unique_key IS NOT NULL AND state IN ('scheduled', 'pending', 'retrying', 'running')"),
    )


def downgrade() -> None:
    op.drop_index("job_unique_active", "job", schema="switchyard")
    op.drop_table("idempotency", schema="switchyard")
