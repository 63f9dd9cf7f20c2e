"""Create the ledger: jobs, attempts, job logs, workers, and the trigger that refuses illegal transitions.

Lock cost: none, the tables are new.
Deploy: before the first worker.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")

# Legal steps as of this migration; ledger/states.py is the living table, and a test compares the two. The condition stands in the
# trigger's WHEN clause, so a legal update never calls a function.
ILLEGAL_STEP = """
    (OLD.state <> NEW.state AND NOT (OLD.state || '>' || NEW.state = ANY (ARRAY[
        'scheduled>pending', 'scheduled>cancelled', 'scheduled>dead',
        'pending>running', 'pending>scheduled', 'pending>cancelled', 'pending>dead',
        'retrying>pending', 'retrying>scheduled', 'retrying>cancelled', 'retrying>dead',
        'running>completed', 'running>retrying', 'running>scheduled', 'running>pending', 'running>dead', 'running>cancelled',
        'dead>pending', 'cancelled>pending'
    ])))
    OR (NEW.generation <> OLD.generation + CASE
        WHEN OLD.state IN ('dead', 'cancelled') AND NEW.state = 'pending' THEN 1 ELSE 0 END)
"""

# Rules as of this migration; ledger/sql/rules.sql has the living ones, and a test compares the two.
RULES = """
CREATE OR REPLACE FUNCTION switchyard.job_is_sound(
    state text, token uuid, lease_until timestamptz, finished_at timestamptz, dead_reason text, result json,
    next_publish_at timestamptz, broker text, wait_reason text,
    attempt integer, failures integer, lost integer, generation integer, max_attempts integer, max_lost integer,
    progress double precision
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    broken CONSTANT text := CASE
        WHEN state NOT IN ('scheduled', 'pending', 'running', 'retrying', 'completed', 'dead', 'cancelled')
            THEN 'job_state_known'
        WHEN (state = 'running') <> (token IS NOT NULL) OR (state = 'running') <> (lease_until IS NOT NULL)
            THEN 'job_running_is_claimed'
        WHEN (state IN ('completed', 'dead', 'cancelled')) <> (finished_at IS NOT NULL)
            THEN 'job_terminal_is_finished'
        WHEN (state = 'dead') <> (dead_reason IS NOT NULL)
            THEN 'job_dead_has_reason'
        WHEN next_publish_at IS NOT NULL AND state IN ('running', 'completed', 'dead', 'cancelled')
            THEN 'job_only_waiting_is_due'
        WHEN next_publish_at IS NULL AND wait_reason IS NULL AND state IN ('scheduled', 'retrying', 'pending')
            AND NOT (state = 'pending' AND broker = 'postgres')
            THEN 'job_waiting_is_reachable'
        WHEN result IS NOT NULL AND state <> 'completed'
            THEN 'job_result_is_completed'
        WHEN attempt < 0 OR failures < 0 OR lost < 0 OR generation < 1 OR max_attempts < 1 OR max_lost < 1
            THEN 'job_counters_sane'
        WHEN progress NOT BETWEEN 0 AND 100
            THEN 'job_progress_is_percent'
    END;
BEGIN
    IF broken IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING
        MESSAGE = 'a job in state ' || state || ' cannot look like this: it breaks the rule ' || broken,
        ERRCODE = 'check_violation', SCHEMA = 'switchyard', TABLE = 'job', CONSTRAINT = broken;
END $$
"""
SOUND = """switchyard.job_is_sound(
    state, token, lease_until, finished_at, dead_reason, result, next_publish_at, broker, wait_reason,
    attempt, failures, lost, generation, max_attempts, max_lost, progress
)"""


def upgrade() -> None:
    op.execute(RULES)
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("message_id", sa.Uuid, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("options", JSON),
        sa.Column("tags", ARRAY(sa.Text)),
        sa.Column("parent_id", sa.Uuid),
        sa.Column("generation", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("attempt", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("failures", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("max_attempts", sa.Integer),
        sa.Column("lost", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("suspect", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("broker", sa.Text, nullable=False),
        sa.Column("token", sa.Uuid),
        sa.Column("last_token", sa.Uuid),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("next_publish_at", sa.DateTime(timezone=True)),
        sa.Column("publish_count", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("wait_reason", sa.Text),
        sa.Column("wait_since", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("run_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("progress", sa.Float),
        sa.Column("stage", sa.Text),
        sa.Column("result", JSON),
        sa.Column("error_type", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("dead_reason", sa.Text),
        sa.Column("max_lost", sa.Integer),
        sa.UniqueConstraint("message_id", name="job_message_id_key"),
        sa.CheckConstraint(SOUND, name=op.f("job_sound")),
        schema="switchyard",
        postgresql_with={"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.05"},
    )
    for name, columns, where in (
        ("job_due", ["next_publish_at"], "next_publish_at IS NOT NULL"),
        ("job_lease", ["lease_until"], "state = 'running'"),
        ("job_ready", ["queue", "suspect", "priority", "id"], "state = 'pending' AND broker = 'postgres'"),
        ("job_ended_badly", ["state", "finished_at", "id"], "state IN ('dead', 'cancelled')"),
        ("job_unknown_actor", ["wait_since"], "wait_reason = 'unknown_actor'"),
    ):
        op.create_index(name, "job", columns, schema="switchyard", postgresql_where=sa.text(where))

    op.create_table(
        "attempt",
        sa.Column("job_id", sa.BigInteger, sa.ForeignKey("switchyard.job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("worker", sa.Text),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("error_type", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.CheckConstraint(
            "outcome IN ('failed', 'lost', 'released', 'snoozed', 'cancelled')", name=op.f("attempt_outcome_known")
        ),
        schema="switchyard",
    )
    op.create_table(
        "job_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("job_id", sa.BigInteger, sa.ForeignKey("switchyard.job.id", ondelete="CASCADE"), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("line", sa.Text, nullable=False),
        schema="switchyard",
    )
    op.create_index("job_log_job_id_id", "job_log", ["job_id", "id"], schema="switchyard")
    op.create_table(
        "worker",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("broker", sa.Text, nullable=False),
        sa.Column("queues", ARRAY(sa.Text), nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("running", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("counters", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("lease_seconds", sa.Float, nullable=False),
        schema="switchyard",
    )

    op.execute(
        """
        CREATE FUNCTION switchyard.refuse_step() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                RAISE EXCEPTION 'a job cannot begin as %', NEW.state
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'job_legal_step';
            END IF;
            RAISE EXCEPTION 'job % cannot go from % to % (generation % to %)',
                OLD.id, OLD.state, NEW.state, OLD.generation, NEW.generation
                USING ERRCODE = 'check_violation', CONSTRAINT = 'job_legal_step';
        END $$
        """
    )
    op.execute(
        f"CREATE TRIGGER job_legal_step BEFORE UPDATE ON switchyard.job FOR EACH ROW WHEN ({ILLEGAL_STEP})"
        " EXECUTE FUNCTION switchyard.refuse_step()"
    )
    op.execute(
        "CREATE TRIGGER job_legal_start BEFORE INSERT ON switchyard.job FOR EACH ROW"
        " WHEN (NEW.state NOT IN ('scheduled', 'pending')) EXECUTE FUNCTION switchyard.refuse_step()"
    )


def downgrade() -> None:
    for table in ("worker", "job_log", "attempt", "job"):
        op.drop_table(table, schema="switchyard")
    op.execute("DROP FUNCTION switchyard.refuse_step()")
    op.execute("DROP FUNCTION switchyard.job_is_sound")
