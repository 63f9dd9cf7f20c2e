-- What people look at. The completed jobs are the bulk of the table and have no index of their own, so nothing here may have to
-- walk past them: whatever is active or ended badly is found by the partial indexes that the relay, the rescue and the claim use.
-- An active row is running, or has a next_publish_at, or is pending in the Postgres broker, or parked, or waits without a time of its own;
-- the branches below are these.

-- name: count_unfinished
-- Exact counts of everything but the completed.
SELECT queue, actor, state, count(*) AS count
FROM (
    SELECT queue, actor, state FROM switchyard.job WHERE state = 'running'
    UNION ALL
    SELECT queue, actor, state FROM switchyard.job WHERE next_publish_at IS NOT NULL
    UNION ALL
    SELECT queue, actor, state
    FROM switchyard.job
    WHERE state = 'pending' AND broker = 'postgres' AND next_publish_at IS NULL AND wait_reason IS DISTINCT FROM 'paused'
    UNION ALL
    SELECT queue, actor, state FROM switchyard.job WHERE state = 'pending' AND wait_reason = 'paused'
    UNION ALL
    SELECT queue, actor, state FROM switchyard.job WHERE state = 'scheduled' AND next_publish_at IS NULL
    UNION ALL
    SELECT queue, actor, state FROM switchyard.job WHERE state IN ('dead', 'cancelled')
) AS unfinished
GROUP BY queue, actor, state;

-- name: count_completed
-- Exact count of the completed, by reading the whole table: for a small one only.
SELECT queue, actor, count(*) AS count FROM switchyard.job WHERE state = 'completed' GROUP BY queue, actor;

-- name: sample_completed
-- A sample of whole pages, always the same ones as long as the table keeps its size, so that the figure does not flicker.
SELECT queue, actor, count(*) AS count
FROM switchyard.job TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (1)
WHERE state = 'completed'
GROUP BY queue, actor;

-- name: table_size
-- About how many rows the table holds: density at the last ANALYZE (10 a page before the first) times its pages of now.
SELECT
    pg_relation_size(c.oid) / current_setting('block_size')::int
    * CASE WHEN c.reltuples >= 0 AND c.relpages > 0 THEN c.reltuples::float8 / c.relpages ELSE 10 END AS rows
FROM pg_class AS c
WHERE c.oid = 'switchyard.job'::regclass;

-- name: queue_depths
-- What is on its way through each queue, and for how long the oldest pending job has been due.
SELECT
    queue,
    count(*) FILTER (WHERE state = 'pending') AS pending,
    count(*) FILTER (WHERE state = 'scheduled') AS scheduled,
    count(*) FILTER (WHERE state = 'retrying') AS retrying,
    count(*) FILTER (WHERE state = 'running') AS running,
    coalesce(
        greatest(extract(epoch FROM coalesce(%(now)s, clock_timestamp()) - min(run_at) FILTER (WHERE state = 'pending')), 0), 0
    )::float8 AS latency
FROM (
    SELECT queue, state, run_at FROM switchyard.job WHERE state = 'running'
    UNION ALL
    SELECT queue, state, run_at FROM switchyard.job WHERE next_publish_at IS NOT NULL
    UNION ALL
    SELECT queue, state, run_at
    FROM switchyard.job
    WHERE state = 'pending' AND broker = 'postgres' AND next_publish_at IS NULL AND wait_reason IS DISTINCT FROM 'paused'
    UNION ALL
    SELECT queue, state, run_at FROM switchyard.job WHERE state = 'pending' AND wait_reason = 'paused'
    UNION ALL
    SELECT queue, state, run_at FROM switchyard.job WHERE state = 'scheduled' AND next_publish_at IS NULL
) AS active
GROUP BY queue
ORDER BY queue;

-- name: jobs
-- Jobs as a reader sees them; the conditions are the caller's to add.
SELECT id, message_id::text AS message_id, parent_id::text AS parent_id, actor, queue, priority, state, payload, tags,
       attempt, max_attempts, failures, lost, generation, created_at, nullif(run_at, 'infinity') AS run_at, started_at, finished_at, progress, stage, result,
       error_type, error, dead_reason, wait_reason, broker, worker, cancel_requested_at, idempotency_key, rate_key, concurrency_key,
       batch_id::text AS batch_id, upstream_id::text AS upstream_id, fingerprint, schedule, tick_at,
       CASE WHEN state IN ('scheduled', 'pending') THEN blocked_on END AS blocked_on
FROM switchyard.job;

-- name: job_states
-- Rows and their states; the conditions are the caller's to add.
SELECT id, state FROM switchyard.job;

-- name: row_id
-- The row of a message id.
SELECT id FROM switchyard.job WHERE message_id = %(message_id)s;

-- name: job_attempts
-- The history of a job, and the execution that its own row stands for: the one that runs, or the one that completed.
SELECT a.attempt, a.generation, a.worker, a.started_at, a.finished_at, a.outcome, a.error_type, a.error, a.traceback, a.omitted
FROM switchyard.attempt AS a
WHERE a.job_id = %(id)s
UNION ALL
SELECT j.attempt, j.generation, j.worker, j.started_at, j.finished_at, j.state, NULL, NULL, NULL, 0
FROM switchyard.job AS j
WHERE j.id = %(id)s AND j.state IN ('running', 'completed')
ORDER BY generation, attempt;

-- name: job_logs
-- A job's log lines in the order written.
SELECT id, generation, attempt, at, line
FROM switchyard.job_log
WHERE job_id = %(job_id)s AND id > %(after)s
ORDER BY id
LIMIT %(limit)s;

-- name: living_workers
-- Processes whose heartbeat is younger than their own lease.
SELECT
    id, host, pid, broker, queues, threads, running, counters - 'version' AS counters, started_at, beat_at, lease_seconds,
    counters ->> 'version' AS version
FROM switchyard.worker
WHERE beat_at > coalesce(%(now)s, clock_timestamp()) - make_interval(secs => lease_seconds)
ORDER BY started_at, id;

-- name: held_jobs
-- Everything that is claimed, with its holder.
SELECT worker, message_id::text AS id, actor, queue, attempt, started_at
FROM switchyard.job
WHERE state = 'running'
ORDER BY started_at NULLS LAST, id;

-- name: job_ids
-- The oldest and the newest job's number.
SELECT min(id) AS oldest, max(id) AS newest FROM switchyard.job;

-- name: created_from
-- The first job at or after a number, for finding the number that goes with a time.
SELECT id, created_at FROM switchyard.job WHERE id >= %(id)s ORDER BY id LIMIT 1;
