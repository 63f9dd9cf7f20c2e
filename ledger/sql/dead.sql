-- Dead letters: reading, replaying and removing them, and the notices of deaths that the keeper takes.
--
-- Every death writes its notices in its own transaction, whoever writes it: the trigger job_note_death (migration 0008). A notice belongs
-- to one consumer, which removes it when it has done its part: broker (an entry in the broker's own dead-letter place), hook (the job of
-- the option on_dead; only where there is one).

-- name: dead_letter_view
-- The dead letters, for whoever looks at them with SQL.
CREATE OR REPLACE VIEW switchyard.dead_letter AS
SELECT message_id AS id, actor, queue, dead_reason AS reason, error_type, error, fingerprint, generation, attempt AS attempts, failures,
    lost, created_at, finished_at AS died_at
FROM switchyard.job
WHERE state = 'dead';

-- name: dead_rows
-- Dead letters; the conditions and the order are the caller's to add.
SELECT id, fingerprint, finished_at FROM switchyard.job;

-- name: dead_clock
-- The clock by which jobs die.
SELECT clock_timestamp();

-- name: dead_tracebacks
-- The traceback of each job's last execution, where it has one.
SELECT j.message_id::text, a.traceback
FROM switchyard.job AS j
JOIN switchyard.attempt AS a ON a.job_id = j.id AND a.generation = j.generation AND a.attempt = j.attempt
WHERE j.message_id = ANY(%(message_ids)s::uuid[]) AND a.traceback IS NOT NULL;

-- name: dead_count
-- How many dead rows there are among the caller's.
SELECT count(*) FROM dead;

-- name: dead_groups
-- What dead rows (the caller's) have in common, the largest groups first, each with the youngest job as its example.
SELECT g.fingerprint, g.count, e.actor, e.dead_reason, e.error_type, e.error, g.first_at, g.last_at, e.message_id::text
FROM (
    SELECT fingerprint, count(*) AS count, min(finished_at) AS first_at, max(finished_at) AS last_at, max(id) AS example
    FROM dead
    GROUP BY fingerprint
    ORDER BY count(*) DESC, max(finished_at) DESC
    LIMIT %(limit)s
) AS g
JOIN switchyard.job AS e ON e.id = g.example
ORDER BY g.count DESC, g.last_at DESC;

-- name: lock_ended
-- A dead or cancelled job that is about to be replayed with other arguments.
SELECT id, actor, queue, payload, options, clock_timestamp() AS now, unique_key, rate_key, concurrency_key, fair_key
FROM switchyard.job
WHERE message_id = %(message_id)s AND state IN ('dead', 'cancelled')
FOR UPDATE;

-- name: rekey_ended
-- What it counts as with them, before the replay: that is refused by the key it has now, and not by the one it had.
UPDATE switchyard.job
SET unique_key = %(unique_key)s, rate_key = %(rate_key)s, rate_cost = %(rate_cost)s, concurrency_key = %(concurrency_key)s,
    fair_key = %(fair_key)s, fair_weight = %(fair_weight)s,
    limited = %(rate_key)s::text IS NOT NULL OR %(concurrency_key)s::text IS NOT NULL
WHERE id = %(id)s AND state IN ('dead', 'cancelled');

-- name: replay
-- A dead or cancelled job begins a new generation: same id, counters at zero, history kept. Due at once.
UPDATE switchyard.job
SET state = 'pending', generation = generation + 1, attempt = 0, failures = 0, lost = 0, suspect = false,
    queue = coalesce(%(queue)s::text, queue), payload = coalesce(%(payload)s::json, payload),
    finished_at = NULL, started_at = NULL, dead_reason = NULL, worker = NULL, progress = NULL, stage = NULL,
    wait_reason = NULL, wait_since = NULL, publish_count = 0, run_at = clock_timestamp(), next_publish_at = clock_timestamp(),
    expires_at = clock_timestamp() + make_interval(secs => max_age / 1000),
    cancel_requested_at = NULL, reserved_at = NULL, reserved_version = NULL, blocked_on = NULL, line = NULL, fingerprint = NULL
WHERE message_id = %(message_id)s AND state IN ('dead', 'cancelled')
RETURNING id;

-- name: replay_rows
-- As replay, for a chunk of dead rows, in the order of the array: the n-th is due `interval` seconds after the one before it, the first
-- `ahead` seconds after `base` (null: now). What is due later waits as scheduled, so that no broker can hand it out before. Rows whose key
-- is in use, by an active job or by one before it in the array, stay dead, as do those of `without`. The state stands inside a CASE, so that rows are found by id.
WITH beginning AS MATERIALIZED (
    -- Once: for each row anew, the clock would have gone on.
    SELECT coalesce(%(base)s::timestamptz, clock_timestamp()) AS base
),
locked AS MATERIALIZED (
    SELECT id, actor, unique_key
    FROM switchyard.job
    WHERE id = ANY(%(ids)s::bigint[]) AND CASE WHEN state = 'dead' THEN true END AND NOT (message_id = ANY(%(without)s::uuid[]))
    ORDER BY id
    FOR UPDATE SKIP LOCKED
),
placed AS MATERIALIZED (
    SELECT l.id, l.actor, l.unique_key, u.place, row_number() OVER (PARTITION BY l.actor, l.unique_key ORDER BY u.place) AS turn
    FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS u (id, place)
    JOIN locked AS l ON l.id = u.id
),
chosen AS MATERIALIZED (
    SELECT p.id, p.place
    FROM placed AS p
    LEFT JOIN LATERAL (
        -- With a limit, so that each key is a probe of its index; without one, the planner would read whatever is active.
        SELECT true AS held
        FROM switchyard.job AS other
        WHERE p.unique_key IS NOT NULL AND other.actor = p.actor AND other.unique_key = p.unique_key AND other.unique_key IS NOT NULL
            AND other.state IN ('scheduled', 'pending', 'retrying', 'running')
        LIMIT 1
    ) AS key ON true
    WHERE p.unique_key IS NULL OR (p.turn = 1 AND key.held IS NULL)
),
timed AS MATERIALIZED (
    SELECT
        c.id, t.base,
        t.base + make_interval(secs => %(ahead)s + %(interval)s * (row_number() OVER (ORDER BY c.place) - 1)) AS due_at,
        %(ahead)s + %(interval)s * (row_number() OVER (ORDER BY c.place) - 1) > 0 AS later
    FROM chosen AS c
    CROSS JOIN beginning AS t
)
UPDATE switchyard.job AS j
SET state = CASE WHEN t.later THEN 'scheduled' ELSE 'pending' END,
    generation = j.generation + 1, attempt = 0, failures = 0, lost = 0, suspect = false,
    queue = coalesce(%(queue)s::text, j.queue),
    finished_at = NULL, started_at = NULL, dead_reason = NULL, worker = NULL, progress = NULL, stage = NULL,
    wait_reason = NULL, wait_since = NULL, publish_count = 0, run_at = t.due_at, next_publish_at = t.due_at,
    expires_at = t.due_at + make_interval(secs => j.max_age / 1000),
    cancel_requested_at = NULL, reserved_at = NULL, reserved_version = NULL, blocked_on = NULL, line = NULL, fingerprint = NULL
FROM timed AS t
WHERE j.id = t.id AND CASE WHEN j.state = 'dead' THEN true END
RETURNING j.id, t.base, t.due_at, CASE WHEN coalesce(j.upstream_id, j.batch_id) IS NOT NULL THEN j.message_id::text END AS placed;

-- name: key_holder
-- The active job that holds the key of a job that has ended.
SELECT other.message_id::text
FROM switchyard.job AS j
JOIN switchyard.job AS other ON other.actor = j.actor AND other.unique_key = j.unique_key AND other.unique_key IS NOT NULL
    AND other.state IN ('scheduled', 'pending', 'retrying', 'running')
WHERE j.message_id = %(message_id)s AND other.id <> j.id
LIMIT 1;

-- name: discard
-- Remove a dead or cancelled job, with its attempts and its log.
DELETE FROM switchyard.job
WHERE message_id = %(message_id)s AND state IN ('dead', 'cancelled')
RETURNING actor, queue, state, dead_reason, batch_id::text;

-- name: discard_rows
-- Remove a chunk of dead rows.
WITH free AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE id = ANY(%(ids)s::bigint[]) AND CASE WHEN state = 'dead' THEN true END
    ORDER BY id
    FOR UPDATE SKIP LOCKED
)
DELETE FROM switchyard.job AS j WHERE j.id = ANY(ARRAY(SELECT id FROM free)) RETURNING j.message_id::text, j.batch_id::text;

-- name: take_hooks
-- Notices whose hook is one of these actors: gone with the transaction in which their jobs are written.
WITH taken AS MATERIALIZED (
    SELECT job_id, generation
    FROM switchyard.dead_notice
    WHERE consumer = 'hook' AND hook = ANY(%(actors)s::text[])
    ORDER BY job_id, generation
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM switchyard.dead_notice AS n
USING taken AS t
WHERE n.consumer = 'hook' AND n.job_id = t.job_id AND n.generation = t.generation
RETURNING n.job_id, n.message_id::text, n.actor, n.queue, n.generation, n.reason, n.error_type, n.error, n.fingerprint, n.attempts,
    n.failures, n.lost, n.created_at, n.died_at, n.hook;

-- name: take_for_broker
-- Notices whose queue's route is this broker: gone with the transaction in which they are put there.
WITH taken AS MATERIALIZED (
    SELECT job_id, generation
    FROM switchyard.dead_notice AS n
    WHERE consumer = 'broker' AND %(broker)s = coalesce(
        (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = n.queue),
        (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = '*'),
        %(own)s
    )
    ORDER BY job_id, generation
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM switchyard.dead_notice AS n
USING taken AS t
WHERE n.consumer = 'broker' AND n.job_id = t.job_id AND n.generation = t.generation
RETURNING n.job_id, n.message_id::text, n.actor, n.queue, n.generation, n.reason, n.error_type, n.error, n.fingerprint, n.attempts,
    n.failures, n.lost, n.created_at, n.died_at, n.hook;

-- name: forget_notices
-- Notices that nobody could act on for a week: of a broker that never came back, or for a hook that no worker knows.
DELETE FROM switchyard.dead_notice
WHERE died_at < coalesce(%(now)s, clock_timestamp()) - make_interval(secs => %(keep)s)
RETURNING consumer, hook;
