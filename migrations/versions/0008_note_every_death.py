"""Note every death: a notice per dead job, what dead jobs are grouped by, a view of them; and let a replay wait for its time.

Lock cost: the table, the functions and the view are new. The index job_dead_group holds back writes to job while it is built, which takes
one look at every row of it; the triggers are exchanged in a moment. Jobs that are dead already get a fingerprint, a write each.
Deploy: before the code that needs it; older workers go on working, and their dead jobs get notices and coarser fingerprints.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Legal steps as of this migration; ledger/states.py is the living table, and a test compares the two.
STEPS = (
    "'scheduled>pending', 'scheduled>cancelled', 'scheduled>dead',"
    " 'pending>running', 'pending>scheduled', 'pending>cancelled', 'pending>dead',"
    " 'retrying>pending', 'retrying>scheduled', 'retrying>cancelled', 'retrying>dead',"
    " 'running>completed', 'running>retrying', 'running>scheduled', 'running>pending', 'running>dead', 'running>cancelled',"
    " 'dead>pending', 'cancelled>pending'"
)
REPLAYS_THAT_WAIT = ", 'dead>scheduled', 'cancelled>scheduled'"

FINGERPRINT = """
CREATE FUNCTION switchyard.fingerprint(actor text, reason text, error_type text, kind text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT left(encode(sha256(convert_to(
        actor || chr(31) || coalesce(reason, '') || chr(31) || coalesce(error_type, '') || chr(31) || coalesce(kind, ''), 'UTF8'
    )), 'hex'), 16)
$$
"""
# A row per consumer: what it says is what the job was like when it died, since a replay or a removal may come before the keeper does.
NOTE_DEATH = """
CREATE FUNCTION switchyard.note_death() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fingerprint IS NULL THEN
        NEW.fingerprint := switchyard.fingerprint(NEW.actor, NEW.dead_reason, NEW.error_type, '');
    END IF;
    INSERT INTO switchyard.dead_notice (
        consumer, job_id, generation, message_id, actor, queue, reason, error_type, error, fingerprint, attempts, failures, lost,
        created_at, died_at, hook
    )
    SELECT
        c.consumer, NEW.id, NEW.generation, NEW.message_id, NEW.actor, NEW.queue, NEW.dead_reason, NEW.error_type, NEW.error,
        NEW.fingerprint, NEW.attempt, NEW.failures, NEW.lost, NEW.created_at, NEW.finished_at, NEW.options ->> 'on_dead'
    FROM (VALUES ('broker'), ('hook')) AS c (consumer)
    WHERE c.consumer <> 'hook' OR NEW.options ->> 'on_dead' IS NOT NULL
    ON CONFLICT (consumer, job_id, generation) DO NOTHING;
    RETURN NEW;
END $$
"""
# The view as of this migration; ledger/sql/dead.sql has the living one.
VIEW = """
CREATE VIEW switchyard.dead_letter AS
SELECT message_id AS id, actor, queue, dead_reason AS reason, error_type, error, fingerprint, generation, attempt AS attempts, failures,
    lost, created_at, finished_at AS died_at
FROM switchyard.job
WHERE state = 'dead'
"""


def _legal_step(steps: str, replayed: str) -> None:
    """Exchange the trigger for one with these steps. The condition stands in the WHEN clause, so a legal update calls no function."""
    op.execute("DROP TRIGGER job_legal_step ON switchyard.job")
    op.execute(
        f"""
        CREATE TRIGGER job_legal_step BEFORE UPDATE ON switchyard.job FOR EACH ROW WHEN (
            (OLD.state <> NEW.state AND NOT (OLD.state || '>' || NEW.state = ANY (ARRAY[{steps}])))
            OR (NEW.generation <> OLD.generation + CASE
                WHEN OLD.state IN ('dead', 'cancelled') AND NEW.state IN ({replayed}) THEN 1 ELSE 0 END)
        ) EXECUTE FUNCTION switchyard.refuse_step()
        """
    )


def upgrade() -> None:
    _legal_step(STEPS + REPLAYS_THAT_WAIT, "'pending', 'scheduled'")
    op.create_table(
        "dead_notice",
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("job_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("message_id", sa.Uuid, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("error_type", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("died_at", sa.DateTime(timezone=True)),
        sa.Column("hook", sa.Text),
        schema="switchyard",
    )
    op.execute(FINGERPRINT)
    op.execute(
        "UPDATE switchyard.job SET fingerprint = switchyard.fingerprint(actor, dead_reason, error_type, '') WHERE state = 'dead'"
    )
    op.execute(NOTE_DEATH)
    # After job_legal_step, since triggers fire in the order of their names: an illegal death is refused before it is noted. Statements
    # that do not write the state never come to the condition.
    op.execute(
        "CREATE TRIGGER job_note_death BEFORE UPDATE OF state ON switchyard.job FOR EACH ROW"
        " WHEN (NEW.state = 'dead' AND OLD.state <> 'dead') EXECUTE FUNCTION switchyard.note_death()"
    )
    op.create_index(
        "job_dead_group",
        "job",
        ["fingerprint", "finished_at", "id"],
        schema="switchyard",
        postgresql_where=sa.text("state = 'dead'"),
    )
    op.execute(VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW switchyard.dead_letter")
    op.drop_index("job_dead_group", "job", schema="switchyard")
    op.execute("DROP TRIGGER job_note_death ON switchyard.job")
    op.execute("DROP FUNCTION switchyard.note_death()")
    op.execute("DROP FUNCTION switchyard.fingerprint(text, text, text, text)")
    op.drop_table("dead_notice", schema="switchyard")
    op.execute("UPDATE switchyard.job SET fingerprint = NULL WHERE fingerprint IS NOT NULL")
    _legal_step(STEPS, "'pending'")
