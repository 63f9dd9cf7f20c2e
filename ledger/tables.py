"""The ledger's tables, as SQLAlchemy knows them: schema only, nothing is mapped.

Alembic compares the migrations against this module, and the filtered reads are built from it; the hot statements are plain
SQL in ``ledger/sql``. Everything lives in a schema of its own, so that the ledger can share a database with the application.

    job       one row per job, the truth about it
    attempt   one row per execution that did not complete (a completed one is the job's own row); of very many, the first and the latest
    job_log   lines an actor wrote with ``job.log()``
    job_step  results that an actor remembered with ``job.step()``
    batch     one row per group: what it counts, and what is sent when it ends
    dead_notice   what a death has still to be told to
    worker    one row per living worker process, kept fresh by its heartbeat
    route     which broker each queue's triggers go to
    declaration   which brokers living processes have in their settings, and since when
    pause     what is paused, and since when
    epoch     which life of a broker the ledger's rows were published to
    watch     which keeper looks for lost triggers
    mark      how far the receivers of a broker's queues have come
    rule      what limits allow: how often jobs of an actor may start, how many of them, or of a queue, may run at once
    gate      a key that is limited: its lock, and what it has to remember
    duty      what one keeper does for all: when its next turn is, and how far it got
    sample    depths and ages of the queues over time, for charts
    activity  what the workers did in each minute, for charts
    idempotency   which job a sender's key, or an actor's key for a period, stands for, and until when
    schedule  when jobs are to be made without anybody sending them
    schedule_declaration   which schedules living processes have in their code, and since when
    tick      for which times of a schedule a job was made, so that each is made once
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB

from ledger import chart_tables, key_tables, limit_tables, schedule_tables
from ledger.metadata import NOW, metadata
from ledger.sql import SQL

# Whether a row that the relay has to look at is due (0) or sent (1). Statements say it in the same words, or the index does not serve them.
_KIND = "((state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int)"

job = Table(
    "job",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    # Dramatiq's message id, the job's name for everybody outside.
    Column("message_id", Uuid, nullable=False, unique=True),
    Column("queue", Text, nullable=False),
    Column("actor", Text, nullable=False),
    # Dramatiq's: lower runs first.
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("state", Text, nullable=False),
    # {"args": [...], "kwargs": {...}} exactly as sent: json keeps the order of keys and the digits of numbers, jsonb does not.
    Column("payload", JSON, nullable=False),
    # Dramatiq's message options; null when there are none.
    Column("options", JSON),
    Column("tags", ARRAY(Text)),
    # The job whose actor sent this one.
    Column("parent_id", Uuid),
    # Raised by a replay; the counters below start again with it.
    Column("generation", Integer, nullable=False, server_default=text("1")),
    # Executions within the generation.
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    # Executions that failed; compared with max_attempts (max_retries + 1; null: no bound).
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer),
    # Worker deaths this job was held guilty of; compared with MAX_LOST.
    Column("lost", Integer, nullable=False, server_default=text("0")),
    # Was in a process that died: runs alone among suspects, so that the guilty one is found.
    Column("suspect", Boolean, nullable=False, server_default=text("false")),
    # The transport this job's trigger was last published to.
    Column("broker", Text, nullable=False),
    # The claim: a random token guards every write of the claim's holder. last_token is that of the claim given up last.
    Column("token", Uuid),
    Column("last_token", Uuid),
    Column("worker", Text),
    Column("lease_until", DateTime(timezone=True)),
    # When the relay has to look at the row: its due time, or the time its trigger counts as lost. Null: the row needs no relay.
    Column("next_publish_at", DateTime(timezone=True)),
    # How often the row was published since it was last claimed; 0 or negative: its trigger is known not to be in the broker.
    Column("publish_count", Integer, nullable=False, server_default=text("0")),
    # Why a waiting job does not run, and since when.
    Column("wait_reason", Text),
    Column("wait_since", DateTime(timezone=True)),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("run_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    # Percent, 0 to 100, and the actor's own word for where it is.
    Column("progress", Float),
    Column("stage", Text),
    Column("result", JSON),
    # The last failure; gone once the job completes (its history stays in attempt).
    Column("error_type", Text),
    Column("error", Text),
    Column("dead_reason", Text),
    # How many worker deaths this job may cause before it is dead; null: the setting MAX_LOST.
    Column("max_lost", Integer),
    # Dramatiq's: milliseconds from the send, or from the last replay, after which the job is dead instead of run; null: no limit.
    Column("max_age", Float),
    # When that is.
    Column("expires_at", DateTime(timezone=True)),
    # Somebody wants it to stop while it runs: whatever ends it now, but a success, ends in cancelled.
    Column("cancel_requested_at", DateTime(timezone=True)),
    # The sender's key for this very job, and the actor's for jobs that count as the same.
    Column("idempotency_key", Text),
    Column("unique_key", Text),
    # What it counts against, and how much; its place among those that were promised a slot, and the version of the limit (ADR 26).
    Column("rate_key", Text),
    Column("rate_cost", Integer),
    Column("reserved_at", DateTime(timezone=True)),
    Column("reserved_version", BigInteger),
    # Whose slots it takes, on whose behalf, and with what weight among those that wait for them.
    Column("concurrency_key", Text),
    Column("fair_key", Text),
    Column("fair_weight", Float),
    # The key whose slots it waits for, and its place in that line.
    Column("blocked_on", Text),
    Column("line", Float),
    # Whether it has a rate_key or a concurrency_key: the plain claims pass it by.
    Column("limited", Boolean, nullable=False, server_default=text("false")),
    # The batch it belongs to, and the job or the batch whose completion it waits for: it was not given its result yet.
    Column("batch_id", Uuid),
    Column("upstream_id", Uuid),
    # What failures of the same kind have in common.
    Column("fingerprint", Text),
    # The schedule that made it, and for which tick.
    Column("schedule", Text),
    Column("tick_at", DateTime(timezone=True)),
    # The rules are in ledger/sql/rules.sql, each with a name of its own.
    CheckConstraint(
        "switchyard.job_is_sound(state, token, lease_until, finished_at, dead_reason, result, next_publish_at, broker, wait_reason,"
        " attempt, failures, lost, generation, max_attempts, max_lost, progress)",
        name="sound",
    ),
    # The relay's: what is due, by time (0), and what was sent, by the time at which its trigger is looked for (1); see keeper.sql.
    Index("job_due", text(_KIND), "next_publish_at", postgresql_where=text("next_publish_at IS NOT NULL")),
    # The rescue's, and the list of what runs.
    Index("job_lease", "lease_until", postgresql_where=text("state = 'running'")),
    # The Postgres broker's queue. Rows of other brokers do not pay for it. What a limit decides about stands aside, so that it hides
    # nothing from the plain claim.
    Index(
        "job_ready",
        "queue",
        "suspect",
        "limited",
        "priority",
        "id",
        postgresql_where=text("state = 'pending' AND broker = 'postgres' AND wait_reason IS DISTINCT FROM 'paused'"),
    ),
    # Where the other brokers' pending rows were published to, so that what has to move is found among a million that need not. Few
    # different keys, and rows join at the end of theirs: an insert costs a microsecond or two (ADR 20).
    Index(
        "job_placed",
        "broker",
        "queue",
        postgresql_where=text("state = 'pending' AND broker <> 'postgres' AND wait_reason IS DISTINCT FROM 'paused'"),
    ),
    # What waits for the end of a pause, in the order in which it goes on. In none of the indexes above, so that it hides nothing.
    Index(
        "job_parked", "queue", "actor", "priority", "id", postgresql_where=text("state = 'pending' AND wait_reason = 'paused'")
    ),
    # The dead letters and the cancelled, by time.
    Index("job_ended_badly", "state", "finished_at", "id", postgresql_where=text("state IN ('dead', 'cancelled')")),
    # What waits and has a max_age, by its end; the others do not pay for it.
    Index(
        "job_expiry",
        "expires_at",
        postgresql_where=text("expires_at IS NOT NULL AND state IN ('scheduled', 'pending', 'retrying')"),
    ),
    # One active job per key of an actor; a replay while another job has the key is refused by this. Only rows with one pay for it.
    Index(
        "job_unique_active",
        "actor",
        "unique_key",
        unique=True,
        postgresql_where=text("unique_key IS NOT NULL AND state IN ('scheduled', 'pending', 'retrying', 'running')"),
    ),
    # The dead letters by what they have in common.
    Index("job_dead_group", "fingerprint", "finished_at", "id", postgresql_where=text("state = 'dead'")),
    # What a limit has to decide about, whatever broker carries it.
    Index(
        "job_limited",
        "queue",
        "suspect",
        "priority",
        "id",
        postgresql_where=text("state = 'pending' AND limited AND wait_reason IS DISTINCT FROM 'paused'"),
    ),
    # The slots of each key that are taken; the line in front of it, the last of each flow in that, and whose turn it is.
    Index("job_slots", "concurrency_key", postgresql_where=text("state = 'running' AND concurrency_key IS NOT NULL")),
    Index(
        "job_line",
        "blocked_on",
        "priority",
        "line",
        "id",
        postgresql_where=text("state = 'scheduled' AND blocked_on IS NOT NULL"),
    ),
    Index(
        "job_flow",
        "blocked_on",
        text("(COALESCE(fair_key, ''))"),
        "line",
        postgresql_where=text("state = 'scheduled' AND blocked_on IS NOT NULL"),
    ),
    Index("job_turn", "blocked_on", postgresql_where=text("state = 'pending' AND blocked_on IS NOT NULL")),
    # Jobs waiting for a worker that knows their actor.
    Index("job_unknown_actor", "wait_since", postgresql_where=text("wait_reason = 'unknown_actor'")),
    # Scheduled rows that wait for something else than a time.
    Index("job_timeless", "queue", postgresql_where=text("state = 'scheduled' AND next_publish_at IS NULL")),
    # The jobs of a batch by state, and what waits for a job or a batch; the others do not pay for them.
    Index("job_batch", "batch_id", "state", postgresql_where=text("batch_id IS NOT NULL")),
    Index("job_upstream", "upstream_id", postgresql_where=text("upstream_id IS NOT NULL")),
    # What a job's actor sent, the newest first; jobs that nobody's actor sent do not pay for it.
    Index("job_parent", "parent_id", "id", postgresql_where=text("parent_id IS NOT NULL")),
    # Every update moves the row to a new version on the same page if there is room; the table is small and hot.
    postgresql_with={"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.05"},
)

# The CHECK needs its function first.
event.listen(job, "before_create", DDL(SQL["job_is_sound"]))  # type: ignore[no-untyped-call]
event.listen(job, "after_create", DDL(SQL["dead_letter_view"]))  # type: ignore[no-untyped-call]

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", BigInteger, ForeignKey(job.c.id, ondelete="CASCADE"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("worker", Text),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    # failed | lost | released | snoozed | cancelled
    Column("outcome", Text, nullable=False),
    Column("error_type", Text),
    Column("error", Text),
    Column("traceback", Text),
    # How many later ones of this outcome were not kept, up to the next that was: of each outcome a job keeps the first ten and the latest
    # ninety (ADR 36; the trigger attempt_trim_history, migration 0013).
    Column("omitted", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("outcome IN ('failed', 'lost', 'released', 'snoozed', 'cancelled')", name="outcome_known"),
)

job_log = Table(
    "job_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", BigInteger, ForeignKey(job.c.id, ondelete="CASCADE"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("line", Text, nullable=False),
    Index("job_log_job_id_id", "job_id", "id"),
)

job_step = Table(
    "job_step",
    metadata,
    Column("job_id", BigInteger, ForeignKey(job.c.id, ondelete="CASCADE"), primary_key=True),
    # The actor's own word for it; every later execution gets the result instead of doing it again.
    Column("name", Text, primary_key=True),
    # The execution that did it.
    Column("generation", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("result", JSON),
    Column("at", DateTime(timezone=True), nullable=False, server_default=NOW),
)

batch = Table(
    "batch",
    metadata,
    Column("id", Uuid, primary_key=True),
    # In the order of creation, for the keeper's walk and for lists.
    Column("number", BigInteger, Identity(always=True), nullable=False),
    Column("name", Text),
    # The batch around this one, the outermost one (itself, if there is none), and the job whose actor made it.
    Column("parent_id", Uuid),
    Column("root_id", Uuid, nullable=False),
    Column("sent_by", Uuid),
    # The job or batch whose completion all of it waits for; null: it has begun.
    Column("waits_for", Uuid),
    # A later step waits for its success. How many of its parent's jobs stand before it.
    Column("followed", Boolean, nullable=False, server_default=text("false")),
    Column("place", Integer, nullable=False, server_default=text("0")),
    # How many jobs were put into it. Of a stock Dramatiq group, whose children come one by one: how many there have to be.
    Column("total", Integer, nullable=False, server_default=text("0")),
    Column("expected", Integer),
    # Rows to be written when it happens, as enqueue_controlled takes them.
    Column("on_complete", JSON),
    Column("on_success", JSON),
    Column("on_death", JSON),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    # Each once, and never taken back: the first job dead; all of them ended; all of them completed.
    Column("died_at", DateTime(timezone=True)),
    Column("completed_at", DateTime(timezone=True)),
    Column("succeeded_at", DateTime(timezone=True)),
    # Of an outermost batch: since when retention has been removing jobs of it and of those within it; none of them is replayed any more.
    Column("pruned_at", DateTime(timezone=True)),
    # What the keeper looks through: what has begun and has not succeeded, and what may never begin.
    Index("batch_open", "number", postgresql_where=text("succeeded_at IS NULL AND waits_for IS NULL")),
    Index("batch_unbegun", "number", postgresql_where=text("waits_for IS NOT NULL AND completed_at IS NULL")),
    Index("batch_number", "number"),
    Index("batch_nested", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("batch_waiting", "waits_for", postgresql_where=text("waits_for IS NOT NULL")),
)

dead_notice = Table(
    "dead_notice",
    metadata,
    # Who has to be told: broker, hook. Whoever has done it removes the row.
    Column("consumer", Text, primary_key=True),
    # No foreign key: the job may be removed before that.
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    # What the job was like when it died.
    Column("message_id", Uuid, nullable=False),
    Column("actor", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("reason", Text),
    Column("error_type", Text),
    Column("error", Text),
    Column("fingerprint", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("died_at", DateTime(timezone=True)),
    # The actor of the option on_dead.
    Column("hook", Text),
)

worker = Table(
    "worker",
    metadata,
    # host:pid:random, unique for ever.
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("broker", Text, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("threads", Integer, nullable=False),
    Column("running", Integer, nullable=False, server_default=text("0")),
    # What the process counted since its start: triggers dropped as undecodable, unknown or stale, claims refused, and so on; and
    # its "version", see heartbeat.sql.
    Column("counters", JSONB, nullable=False, server_default=text("'{}'")),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("beat_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    # How long this process may be silent before it counts as dead, in seconds: its own LEASE.
    Column("lease_seconds", Float, nullable=False),
    # {queue: broker} as its settings declare it; "*" stands for every queue that is not named.
    Column("routes", JSONB, nullable=False, server_default=text("'{}'")),
    # The brokers it fetches from.
    Column("consumes", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    # The actors it knows; null: a process of an older version, which did not say.
    Column("actors", ARRAY(Text)),
)

route = Table(
    "route",
    metadata,
    # "*" stands for every queue without a row of its own.
    Column("queue", Text, primary_key=True),
    Column("broker", Text, nullable=False),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    # An operator decided against these (``broker drain``): declaring them changes nothing while the decision stands. Empty: nobody did.
    Column("overruled", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
)

declaration = Table(
    "declaration",
    metadata,
    # As in route.
    Column("queue", Text, primary_key=True),
    Column("broker", Text, primary_key=True),
    # When a starting process declared it while nobody else did: what entered last is the route.
    Column("entered_at", DateTime(timezone=True), nullable=False),
    # A lease after the last living process said it.
    Column("until", DateTime(timezone=True), nullable=False),
)

pause = Table(
    "pause",
    metadata,
    # "*" stands for every queue, and for every actor: a row with both is a pause of everything.
    Column("queue", Text, primary_key=True),
    Column("actor", Text, primary_key=True),
    Column("since", DateTime(timezone=True), nullable=False, server_default=NOW),
)

epoch = Table(
    "epoch",
    metadata,
    Column("broker", Text, primary_key=True),
    # Empty: the epoch is the broker's as a whole (Redis).
    Column("queue", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    # What was published before this is gone and not due yet; null: all of it is due, or was never lost.
    Column("lost_before", DateTime(timezone=True)),
)

watch = Table(
    "watch",
    metadata,
    Column("broker", Text, primary_key=True),
    # The keeper that looks for lost triggers in this broker, and until when others leave that to it.
    Column("keeper", Text, nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
)

mark = Table(
    "mark",
    metadata,
    Column("broker", Text, primary_key=True),
    Column("queue", Text, primary_key=True),
    # The priority band, 0 (first) to 9.
    Column("band", Integer, primary_key=True, autoincrement=False),
    # All that was published before this has been received.
    Column("at", DateTime(timezone=True), nullable=False),
)

duty = Table(
    "duty",
    metadata,
    Column("name", Text, primary_key=True),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    # How far it got; what that means is the duty's own business.
    Column("position", BigInteger, nullable=False, server_default=text("0")),
)

__all__ = ["chart_tables", "key_tables", "limit_tables", "metadata", "schedule_tables"]
