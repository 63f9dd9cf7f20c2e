"""Add what the keeper's further duties need: routes, epochs, samples, and what a worker declares of itself.

Lock cost: the new columns are nullable or have constant defaults, so each takes its lock for a moment; the tables are new. The index
job_due is built anew and the index job_placed is new, which holds back writes to job for some seconds per million waiting rows.
Deploy: before the workers that need it; older ones go on working.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
DUE = sa.text("next_publish_at IS NOT NULL")
KIND = sa.text("((state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int)")


def upgrade() -> None:
    op.drop_index("job_due", "job", schema="switchyard")
    op.create_index("job_due", "job", [KIND, "next_publish_at"], schema="switchyard", postgresql_where=DUE)
    op.add_column("job", sa.Column("max_age", sa.Float), schema="switchyard")
    op.add_column("job", sa.Column("expires_at", sa.DateTime(timezone=True)), schema="switchyard")
    op.create_index(
        "job_expiry",
        "job",
        ["expires_at"],
        schema="switchyard",
        postgresql_where=sa.text("expires_at IS NOT NULL AND state IN ('scheduled', 'pending', 'retrying')"),
    )
    op.add_column("worker", sa.Column("routes", JSONB, nullable=False, server_default=sa.text("'{}'")), schema="switchyard")
    op.add_column("worker", sa.Column("actors", ARRAY(sa.Text)), schema="switchyard")
    op.add_column(
        "worker",
        sa.Column("consumes", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        schema="switchyard",
    )
    op.create_table(
        "route",
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("broker", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("overruled", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        schema="switchyard",
    )
    op.create_table(
        "declaration",
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("broker", sa.Text, primary_key=True),
        sa.Column("entered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        schema="switchyard",
    )
    op.create_index(
        "job_placed",
        "job",
        ["broker", "queue"],
        schema="switchyard",
        postgresql_where=sa.text("state = 'pending' AND broker <> 'postgres'"),
    )
    op.create_table(
        "epoch",
        sa.Column("broker", sa.Text, primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("lost_before", sa.DateTime(timezone=True)),
        schema="switchyard",
    )
    op.create_table(
        "watch",
        sa.Column("broker", sa.Text, primary_key=True),
        sa.Column("keeper", sa.Text, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        schema="switchyard",
    )
    op.create_table(
        "mark",
        sa.Column("broker", sa.Text, primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("band", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        schema="switchyard",
    )
    op.create_table(
        "duty",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("position", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        schema="switchyard",
    )
    op.execute(
        """
        CREATE FUNCTION switchyard.refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'job % is %: only a job that has ended may be removed', OLD.id, OLD.state
                USING ERRCODE = 'check_violation', CONSTRAINT = 'job_legal_removal';
        END $$
        """
    )
    # The condition stands in the WHEN clause, so a legal removal never calls a function.
    op.execute(
        "CREATE TRIGGER job_legal_removal BEFORE DELETE ON switchyard.job FOR EACH ROW"
        " WHEN (OLD.state NOT IN ('completed', 'dead', 'cancelled')) EXECUTE FUNCTION switchyard.refuse_removal()"
    )
    op.create_table(
        "sample",
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("scheduled", sa.BigInteger, nullable=False),
        sa.Column("pending", sa.BigInteger, nullable=False),
        sa.Column("running", sa.BigInteger, nullable=False),
        sa.Column("retrying", sa.BigInteger, nullable=False),
        sa.Column("oldest_pending", sa.Float),
        schema="switchyard",
    )
    op.create_table(
        "activity",
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("actor", sa.Text, primary_key=True),
        sa.Column("completed", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("dead", sa.BigInteger, nullable=False),
        sa.Column("waits", ARRAY(sa.Integer), nullable=False),
        sa.Column("runs", ARRAY(sa.Integer), nullable=False),
        schema="switchyard",
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER job_legal_removal ON switchyard.job")
    op.execute("DROP FUNCTION switchyard.refuse_removal()")
    op.drop_index("job_placed", "job", schema="switchyard")
    for table in ("mark", "watch", "activity", "sample", "duty", "epoch", "declaration", "route"):
        op.drop_table(table, schema="switchyard")
    op.drop_index("job_expiry", table_name="job", schema="switchyard")
    for table, column in (
        ("worker", "consumes"),
        ("worker", "actors"),
        ("worker", "routes"),
        ("job", "expires_at"),
        ("job", "max_age"),
    ):
        op.drop_column(table, column, schema="switchyard")
    op.drop_index("job_due", "job", schema="switchyard")
    op.create_index("job_due", "job", ["next_publish_at"], schema="switchyard", postgresql_where=DUE)
