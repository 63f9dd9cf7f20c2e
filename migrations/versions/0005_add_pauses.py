"""Add pauses: what is paused, and an index of what waits for the end of a pause, which leaves the others.

Lock cost: the table is new. The indexes job_ready and job_placed are built anew and job_parked is new, which holds back writes to job for
some seconds per million pending rows.
Deploy: before the code that needs it; older workers go on working, and know no pause.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

READY = ("queue", "suspect", "priority", "id")
PLACED = ("broker", "queue")
IN_POSTGRES = "state = 'pending' AND broker = 'postgres'"
CARRIED = "state = 'pending' AND broker <> 'postgres'"
UNPARKED = " AND wait_reason IS DISTINCT FROM 'paused'"


def upgrade() -> None:
    op.create_table(
        "pause",
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("actor", sa.Text, primary_key=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        schema="switchyard",
    )
    _index_pending(UNPARKED)
    op.create_index(
        "job_parked",
        "job",
        ["queue", "actor", "priority", "id"],
        schema="switchyard",
        postgresql_where=sa.text("state = 'pending' AND wait_reason = 'paused'"),
    )


def downgrade() -> None:
    # What is parked goes on: the code before this knows no pause.
    op.execute(
        "UPDATE switchyard.job SET wait_reason = NULL, wait_since = NULL, next_publish_at = clock_timestamp()"
        " WHERE state = 'pending' AND wait_reason = 'paused'"
    )
    op.drop_index("job_parked", "job", schema="switchyard")
    _index_pending("")
    op.drop_table("pause", schema="switchyard")


def _index_pending(unparked: str) -> None:
    for name, columns, where in (("job_ready", READY, IN_POSTGRES), ("job_placed", PLACED, CARRIED)):
        op.drop_index(name, "job", schema="switchyard")
        op.create_index(name, "job", list(columns), schema="switchyard", postgresql_where=sa.text(where + unparked))
