"""Add limits: the rules, the gates that are asked, the functions that decide, and the indexes of what waits for them.

Lock cost: two new tables. The index job_ready is built anew and five others are new, which holds back writes to job for some seconds per
million waiting rows.
Deploy: before the code that needs it; older workers go on working, and limit nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.functions_0009 import ADMIT, FREE_SLOTS, WAKE_WAITERS

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
READY = sa.text("state = 'pending' AND broker = 'postgres' AND wait_reason IS DISTINCT FROM 'paused'")
INDEXES: tuple[tuple[str, list[str | sa.TextClause], str], ...] = (
    (
        "job_limited",
        ["queue", "suspect", "priority", "id"],
        "state = 'pending' AND limited AND wait_reason IS DISTINCT FROM 'paused'",
    ),
    ("job_slots", ["concurrency_key"], "state = 'running' AND concurrency_key IS NOT NULL"),
    ("job_line", ["blocked_on", "priority", "line", "id"], "state = 'scheduled' AND blocked_on IS NOT NULL"),
    (
        "job_flow",
        ["blocked_on", sa.text("(COALESCE(fair_key, ''))"), "line"],
        "state = 'scheduled' AND blocked_on IS NOT NULL",
    ),
    ("job_turn", ["blocked_on"], "state = 'pending' AND blocked_on IS NOT NULL"),
)


def upgrade() -> None:
    op.drop_index("job_ready", "job", schema="switchyard")
    op.create_index(
        "job_ready", "job", ["queue", "suspect", "limited", "priority", "id"], schema="switchyard", postgresql_where=READY
    )
    for name, columns, where in INDEXES:
        op.create_index(name, "job", columns, schema="switchyard", postgresql_where=sa.text(where))
    op.create_table(
        "rule",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("amount", sa.Integer, nullable=False),
        sa.Column("period", sa.Float),
        sa.Column("burst", sa.Integer),
        sa.Column("declared_amount", sa.Integer),
        sa.Column("declared_period", sa.Float),
        sa.Column("declared_burst", sa.Integer),
        sa.Column("overridden", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("renewing", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.CheckConstraint("kind IN ('rate', 'concurrency', 'queue')", name=op.f("rule_kind_known")),
        sa.CheckConstraint(
            "amount > 0 AND CASE WHEN kind = 'rate' THEN period > 0 AND burst > 0 ELSE period IS NULL AND burst IS NULL END",
            name=op.f("rule_limits_something"),
        ),
        schema="switchyard",
    )
    op.create_table(
        "gate",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("tat", sa.DateTime(timezone=True)),
        sa.Column("tail", sa.DateTime(timezone=True)),
        sa.Column("shift", sa.Float, nullable=False, server_default=sa.text("0")),
        sa.Column("clock", sa.Float, nullable=False, server_default=sa.text("0")),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        schema="switchyard",
        postgresql_with={"fillfactor": "70"},
    )
    for function in (ADMIT, WAKE_WAITERS, FREE_SLOTS):
        # As it is: alembic would take what follows a colon for a parameter.
        op.get_bind().exec_driver_sql(function)


def downgrade() -> None:
    op.execute("DROP FUNCTION switchyard.admit, switchyard.free_slots, switchyard.wake_waiters")
    op.drop_table("gate", schema="switchyard")
    op.drop_table("rule", schema="switchyard")
    for name, _, _ in reversed(INDEXES):
        op.drop_index(name, "job", schema="switchyard")
    op.drop_index("job_ready", "job", schema="switchyard")
    op.create_index("job_ready", "job", ["queue", "suspect", "priority", "id"], schema="switchyard", postgresql_where=READY)
