"""Add the index by which the jobs that a job sent are found, and the one by which the keeper finds batches that never began.

Lock cost: none to speak of: both are built beside the writers (CONCURRENTLY), which takes two readings of the table and waits for older
transactions of this database to end; nobody waits for it. It cannot be done in a transaction: an invalid index is left behind where it is
interrupted, and the next try begins by removing that.
Deploy: before the code that needs it; older workers go on working.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INDEXES = (
    ("job_parent", "job", ["parent_id", "id"], "parent_id IS NOT NULL"),
    ("batch_unbegun", "batch", ["number"], "waits_for IS NOT NULL AND completed_at IS NULL"),
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, table, columns, where in INDEXES:
            op.drop_index(name, table_name=table, schema="switchyard", if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name, table, columns, schema="switchyard", postgresql_where=sa.text(where), postgresql_concurrently=True
            )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name, table, _, _ in reversed(INDEXES):
            op.drop_index(name, table_name=table, schema="switchyard", if_exists=True, postgresql_concurrently=True)
