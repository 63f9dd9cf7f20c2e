"""Create what the shipped actors own: contacts and their imports, hourly statistics, in the schema switchyard_jobs.

Lock cost: none, the tables are new.
Deploy: before the workers whose actors use them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
ZERO = sa.text("0")


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS switchyard_jobs")
    op.create_table(
        "contact",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("company", sa.Text),
        sa.Column("phone", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.UniqueConstraint("email", name="contact_email_key"),
        schema="switchyard_jobs",
    )
    op.create_index("contact_created_at", "contact", ["created_at"], schema="switchyard_jobs")
    op.create_table(
        "import_run",
        sa.Column("sha256", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default=sa.text("'running'")),
        sa.Column("records", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("inserted", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("updated", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("invalid", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("status IN ('running', 'completed')", name=op.f("import_run_status_known")),
        sa.CheckConstraint("(status = 'completed') = (finished_at IS NOT NULL)", name=op.f("import_run_completed_is_finished")),
        schema="switchyard_jobs",
    )
    op.create_table(
        "import_error",
        sa.Column("sha256", sa.Text, sa.ForeignKey("switchyard_jobs.import_run.sha256", ondelete="CASCADE"), primary_key=True),
        sa.Column("line", sa.BigInteger, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        schema="switchyard_jobs",
    )
    op.create_table(
        "statistics",
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, primary_key=True),
        sa.Column("jobs", sa.BigInteger, nullable=False),
        schema="switchyard_jobs",
    )


def downgrade() -> None:
    for table in ("statistics", "import_error", "import_run", "contact"):
        op.drop_table(table, schema="switchyard_jobs")
    op.execute("DROP SCHEMA switchyard_jobs")
