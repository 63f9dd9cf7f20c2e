-- The whole system at one glance. Whoever asks may do so every second, of any ledger: each part reads an index of the few rows that are not
-- over, and none of them more than a bound.

-- name: overview_ledger
-- The clock, how large the ledger is in bytes (with indexes), about how many jobs it has, and how large their table alone is.
SELECT
    clock_timestamp() AS now,
    (
        SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
        FROM pg_class AS c
        WHERE c.relnamespace = 'switchyard'::regnamespace AND c.relkind = 'r'
    ) AS bytes,
    (
        SELECT (
            pg_relation_size(c.oid) / current_setting('block_size')::int
            * CASE WHEN c.reltuples >= 0 AND c.relpages > 0 THEN c.reltuples::float8 / c.relpages ELSE 10 END
        )::bigint
        FROM pg_class AS c
        WHERE c.oid = 'switchyard.job'::regclass
    ) AS jobs,
    pg_relation_size('switchyard.job') AS table_bytes;

-- name: overview_count
-- How many jobs there are, by reading the table: for a small one.
SELECT count(*) FROM switchyard.job;

-- name: overview_queues
-- Per queue what is on its way, what waits for a limit or the end of a pause, what is dead, and for how long the oldest one that may run has
-- been due. From each part at most a bound of rows; capped says that it was reached, so that the figures are too small. The parts are those
-- of read.sql.
WITH part AS MATERIALIZED (
    (SELECT 1 AS n, queue, state, run_at, wait_reason FROM switchyard.job WHERE state = 'running' LIMIT %(bound)s)
    UNION ALL
    (SELECT 2, queue, state, run_at, wait_reason FROM switchyard.job WHERE next_publish_at IS NOT NULL LIMIT %(bound)s)
    UNION ALL
    (
        SELECT 3, queue, state, run_at, wait_reason
        FROM switchyard.job
        WHERE state = 'pending' AND broker = 'postgres' AND next_publish_at IS NULL AND wait_reason IS DISTINCT FROM 'paused'
        LIMIT %(bound)s
    )
    UNION ALL
    (
        SELECT 4, queue, state, run_at, wait_reason
        FROM switchyard.job
        WHERE state = 'pending' AND wait_reason = 'paused'
        LIMIT %(bound)s
    )
    UNION ALL
    (
        SELECT 5, queue, state, run_at, wait_reason
        FROM switchyard.job
        WHERE state = 'scheduled' AND next_publish_at IS NULL
        LIMIT %(bound)s
    )
    UNION ALL
    (SELECT 6, queue, state, run_at, wait_reason FROM switchyard.job WHERE state = 'dead' LIMIT %(bound)s)
)
SELECT
    queue,
    count(*) FILTER (WHERE state = 'pending') AS waiting,
    count(*) FILTER (WHERE state = 'running') AS running,
    count(*) FILTER (WHERE state = 'retrying') AS retrying,
    count(*) FILTER (WHERE state = 'scheduled') AS scheduled,
    count(*) FILTER (WHERE wait_reason IN ('rate_limit', 'concurrency')) AS limited,
    count(*) FILTER (WHERE wait_reason = 'paused') AS parked,
    count(*) FILTER (WHERE state = 'dead') AS dead,
    greatest(
        extract(epoch FROM clock_timestamp())
            - min(extract(epoch FROM run_at)) FILTER (WHERE state = 'pending' AND wait_reason IS DISTINCT FROM 'paused'),
        CASE WHEN count(*) FILTER (WHERE state = 'pending' AND wait_reason IS DISTINCT FROM 'paused') > 0 THEN 0 END
    )::float8 AS oldest,
    (SELECT bool_or(c.rows >= %(bound)s) FROM (SELECT count(*) AS rows FROM part WHERE n < 6 GROUP BY n) AS c) AS capped,
    (SELECT count(*) >= %(bound)s FROM part WHERE n = 6) AS dead_capped
FROM part
GROUP BY queue
ORDER BY queue;

-- name: overview_sample
-- What the keepers last wrote down about each queue, where that is not long ago.
SELECT at, queue, scheduled, pending, running, retrying, oldest_pending
FROM switchyard.sample
WHERE at = (SELECT max(at) FROM switchyard.sample) AND at > clock_timestamp() - make_interval(secs => %(within)s)
ORDER BY queue;

-- name: overview_workers
-- Every worker process that has not said goodbye, with the seconds since its last heartbeat, and how many claims it holds.
SELECT
    w.id, w.host, w.pid, w.broker, w.consumes, w.queues, w.threads, coalesce(h.jobs, 0) AS held, w.started_at, w.beat_at,
    extract(epoch FROM clock_timestamp() - w.beat_at)::float8 AS silence, w.lease_seconds,
    w.counters ->> 'version' AS version
FROM switchyard.worker AS w
LEFT JOIN (SELECT worker, count(*) AS jobs FROM switchyard.job WHERE state = 'running' GROUP BY worker) AS h ON h.worker = w.id
ORDER BY w.started_at, w.id;

-- name: overview_unknown
-- What waits for a worker that knows its actor.
SELECT actor, count(*) AS jobs, extract(epoch FROM clock_timestamp() - min(wait_since))::float8 AS oldest
FROM (SELECT actor, wait_since FROM switchyard.job WHERE wait_reason = 'unknown_actor' LIMIT %(bound)s) AS waiting
GROUP BY actor
ORDER BY jobs DESC, actor
LIMIT %(most)s;

-- name: overview_overdue
-- Schedules whose tick has passed without its job.
SELECT name, actor, due_at
FROM switchyard.schedule
WHERE due_at < clock_timestamp() - make_interval(secs => %(patience)s)
ORDER BY due_at
LIMIT %(most)s;

-- name: overview_rest
-- How many schedules there are, and the next tick; what died within the last hour; claims whose lease ended so long ago that a rescue should
-- have seen it; and for how long the keepers' next sample has been overdue (null: none was ever due).
SELECT
    (SELECT count(*) FROM switchyard.schedule) AS schedules,
    (SELECT min(due_at) FROM switchyard.schedule WHERE due_at IS NOT NULL) AS next_due_at,
    (
        SELECT count(*)
        FROM (
            SELECT 1
            FROM switchyard.job
            WHERE state = 'dead' AND finished_at > clock_timestamp() - interval '1 hour'
            LIMIT %(bound)s
        ) AS lately
    ) AS died_lately,
    (
        SELECT count(*)
        FROM (
            SELECT 1
            FROM switchyard.job
            WHERE state = 'running' AND lease_until < clock_timestamp() - make_interval(secs => %(patience)s)
            LIMIT %(bound)s
        ) AS lost
    ) AS lost,
    (SELECT extract(epoch FROM clock_timestamp() - due_at)::float8 FROM switchyard.duty WHERE name = 'samples') AS unkept;

-- name: overview_pauses
-- What is paused.
SELECT queue, actor, since FROM switchyard.pause ORDER BY since, queue, actor;
