"""Bound what a job's history keeps, and remember which workflows retention has begun to remove.

Lock cost: two columns, whose defaults no row is rewritten for, and a trigger: each is added in a moment, once nobody is at work on its
table. First batch in a transaction of its own, then attempt: whoever uses both in either order meets one lock at a time, not a deadlock.
Deploy: before the code that needs it; older workers go on working, and the histories of their jobs are bounded as well.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# Of each outcome the first ten and the latest ninety stay. It looks at the oldest thousand alone, of which five hundred may stay, so that a
# history that grew before there was a bound is cut down bit by bit, and no end of an execution takes long. Beyond these, and beyond the
# lines of the last one that goes (a job's lines have the order of its executions), nothing is read: the ends of other jobs are in the same
# transaction, and whoever writes them takes a statement that lasts too long for an outage, and repeats it.
TRIM_HISTORY: Final = """
CREATE FUNCTION switchyard.trim_history() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last_generation integer;
    last_attempt integer;
    generations integer[];
    attempts integer[];
    beyond bigint;
BEGIN
    SELECT h.generation, h.attempt INTO last_generation, last_attempt
    FROM (
        SELECT a.generation, a.attempt
        FROM switchyard.attempt AS a
        WHERE a.job_id = NEW.job_id
        ORDER BY a.generation, a.attempt
        LIMIT 1000
    ) AS h
    ORDER BY h.generation DESC, h.attempt DESC
    LIMIT 1;
    WITH ranked AS MATERIALIZED (
        SELECT
            h.generation, h.attempt, h.outcome,
            row_number() OVER (PARTITION BY h.outcome ORDER BY h.generation, h.attempt) AS place,
            count(*) OVER (PARTITION BY h.outcome) AS total
        FROM switchyard.attempt AS h
        WHERE h.job_id = NEW.job_id AND (h.generation, h.attempt) <= (last_generation, last_attempt)
    ),
    gone AS (
        DELETE FROM switchyard.attempt AS a
        USING ranked AS r
        WHERE a.job_id = NEW.job_id AND (a.generation, a.attempt) <= (last_generation, last_attempt)
            AND a.generation = r.generation AND a.attempt = r.attempt AND r.place > 10 AND r.place <= r.total - 90
        RETURNING a.generation, a.attempt, a.outcome
    ),
    counted AS (
        UPDATE switchyard.attempt AS a
        SET omitted = a.omitted + g.count
        FROM (SELECT outcome, count(*) AS count FROM gone GROUP BY outcome) AS g
        JOIN ranked AS r ON r.outcome = g.outcome AND r.place = 10
        WHERE a.job_id = NEW.job_id AND (a.generation, a.attempt) <= (last_generation, last_attempt)
            AND a.generation = r.generation AND a.attempt = r.attempt
    )
    SELECT array_agg(g.generation ORDER BY g.generation, g.attempt), array_agg(g.attempt ORDER BY g.generation, g.attempt)
    INTO generations, attempts
    FROM gone AS g;
    IF generations IS NOT NULL THEN
        SELECT l.id INTO beyond
        FROM switchyard.job_log AS l
        WHERE l.job_id = NEW.job_id
            AND (l.generation, l.attempt) > (generations[cardinality(generations)], attempts[cardinality(attempts)])
        ORDER BY l.id
        LIMIT 1;
        DELETE FROM switchyard.job_log AS l
        USING unnest(generations, attempts) AS g (generation, attempt)
        WHERE l.job_id = NEW.job_id AND l.id < coalesce(beyond, 9223372036854775807)
            AND l.generation = g.generation AND l.attempt = g.attempt;
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # It stays where what follows fails; the next try finds it.
        op.add_column("batch", sa.Column("pruned_at", sa.DateTime(timezone=True)), schema="switchyard", if_not_exists=True)
    op.add_column(
        "attempt", sa.Column("omitted", sa.BigInteger(), nullable=False, server_default=sa.text("0")), schema="switchyard"
    )
    op.execute(TRIM_HISTORY)
    # Every tenth execution, so that nine of ten pay for no more than the condition; whose generation and attempt are that small has no
    # hundred of anything. Attempts begin anew with each generation: of ten in a row, in one generation or in many, one meets it.
    op.execute(
        "CREATE TRIGGER attempt_trim_history AFTER INSERT ON switchyard.attempt FOR EACH ROW"
        " WHEN ((NEW.generation > 1 OR NEW.attempt > 100) AND (NEW.generation + NEW.attempt) % 10 = 0)"
        " EXECUTE FUNCTION switchyard.trim_history()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER attempt_trim_history ON switchyard.attempt")
    op.execute("DROP FUNCTION switchyard.trim_history()")
    op.drop_column("batch", "pruned_at", schema="switchyard")
    op.drop_column("attempt", "omitted", schema="switchyard")
