"""Add the columns of jobs that are steered: keys, limits, groups, schedules, requests to cancel.

Lock cost: nullable columns without defaults, and one with a constant one, so each takes its lock for a moment.
Deploy: before the code that needs them; older workers go on working.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COLUMNS = (
    ("cancel_requested_at", sa.DateTime(timezone=True)),
    ("idempotency_key", sa.Text()),
    ("unique_key", sa.Text()),
    ("rate_key", sa.Text()),
    ("rate_cost", sa.Integer()),
    ("reserved_at", sa.DateTime(timezone=True)),
    ("reserved_version", sa.BigInteger()),
    ("concurrency_key", sa.Text()),
    ("fair_key", sa.Text()),
    ("fair_weight", sa.Float()),
    ("blocked_on", sa.Text()),
    ("line", sa.Float()),
    ("limited", sa.Boolean()),
    ("batch_id", sa.Uuid()),
    ("upstream_id", sa.Uuid()),
    ("fingerprint", sa.Text()),
    ("schedule", sa.Text()),
    ("tick_at", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    for name, kind in COLUMNS:
        # A constant default is no rewrite.
        column = (
            sa.Column(name, kind, nullable=False, server_default=sa.text("false")) if name == "limited" else sa.Column(name, kind)
        )
        op.add_column("job", column, schema="switchyard")


def downgrade() -> None:
    for name, _ in reversed(COLUMNS):
        op.drop_column("job", name, schema="switchyard")
