"""Add workflows: batches, the steps that a job remembers, and the indexes by which waiting steps and a batch's jobs are found.

Lock cost: the tables are new. The indexes hold only rows of workflows and rows that wait without a time, of which there are none before;
building them reads the table job once each and holds back writes to it meanwhile.
Deploy: before the code that needs it; older workers go on working, but do not move workflows on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("number", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("parent_id", sa.Uuid),
        sa.Column("root_id", sa.Uuid, nullable=False),
        sa.Column("sent_by", sa.Uuid),
        sa.Column("waits_for", sa.Uuid),
        sa.Column("followed", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("place", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("total", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("expected", sa.Integer),
        sa.Column("on_complete", JSON),
        sa.Column("on_success", JSON),
        sa.Column("on_death", JSON),
        sa.Column("created_at", TIME, nullable=False, server_default=NOW),
        sa.Column("died_at", TIME),
        sa.Column("completed_at", TIME),
        sa.Column("succeeded_at", TIME),
        schema="switchyard",
    )
    op.create_index(
        "batch_open",
        "batch",
        ["number"],
        schema="switchyard",
        postgresql_where=sa.text("succeeded_at IS NULL AND waits_for IS NULL"),
    )
    op.create_index("batch_number", "batch", ["number"], schema="switchyard")
    op.create_index(
        "batch_nested", "batch", ["parent_id"], schema="switchyard", postgresql_where=sa.text("parent_id IS NOT NULL")
    )
    op.create_index(
        "batch_waiting", "batch", ["waits_for"], schema="switchyard", postgresql_where=sa.text("waits_for IS NOT NULL")
    )
    op.create_table(
        "job_step",
        sa.Column("job_id", sa.BigInteger, sa.ForeignKey("switchyard.job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("result", JSON),
        sa.Column("at", TIME, nullable=False, server_default=NOW),
        schema="switchyard",
    )
    op.create_index(
        "job_batch", "job", ["batch_id", "state"], schema="switchyard", postgresql_where=sa.text("batch_id IS NOT NULL")
    )
    op.create_index(
        "job_upstream", "job", ["upstream_id"], schema="switchyard", postgresql_where=sa.text("upstream_id IS NOT NULL")
    )
    op.create_index(
        "job_timeless",
        "job",
        ["queue"],
        schema="switchyard",
        postgresql_where=sa.text("state = 'scheduled' AND next_publish_at IS NULL"),
    )


def downgrade() -> None:
    for name in ("job_timeless", "job_upstream", "job_batch"):
        op.drop_index(name, table_name="job", schema="switchyard")
    op.drop_table("job_step", schema="switchyard")
    op.drop_table("batch", schema="switchyard")
