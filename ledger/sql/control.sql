-- What people ask for while jobs are on their way: stop, wait, change. See docs/adr/0027-cancel-and-pause.md.
--
-- Processes are told by NOTIFY on the channel switchyard_control: their own name for a request to stop something they run, '*' for what
-- concerns all. It says no more than "look"; what there is to see stands in the rows.
--
-- A pause is a row of a small table, and every claim looks there, so a pause holds from its commit on, heard or not. What is paused is
-- parked: pending, no next_publish_at, wait_reason 'paused', and in none of the indexes by which claims, relay and search for strays find
-- rows. Who parks: the relay what comes due, the fetchers what a trigger led them to, a keeper's duty the rest. Who unparks: resume, and
-- should it die, the keeper. Whether a row is paused is asked in the same words everywhere: NOT EXISTS (any pause) first, which is one
-- probe of an empty table for the whole statement.

-- name: cancel
-- A job that no worker holds ends at once; one that runs is asked to stop, and its worker is told.
WITH asked AS (
    UPDATE switchyard.job
    SET state = CASE WHEN state = 'running' THEN 'running' ELSE 'cancelled' END,
        finished_at = CASE WHEN state = 'running' THEN NULL ELSE clock_timestamp() END,
        cancel_requested_at = CASE WHEN state = 'running' THEN coalesce(cancel_requested_at, clock_timestamp()) END,
        next_publish_at = NULL, wait_reason = NULL, wait_since = NULL
    WHERE message_id = %(message_id)s AND state IN ('scheduled', 'pending', 'retrying', 'running')
    RETURNING id, state, worker, blocked_on
)
SELECT
    state,
    -- It may have had its turn for a slot.
    CASE WHEN state = 'cancelled' AND blocked_on IS NOT NULL THEN id END,
    CASE WHEN state = 'running' THEN pg_notify('switchyard_control', worker) END
FROM asked;

-- name: cancel_rows
-- As cancel, for many rows that are still in one of these states; locked in id order. Which were cancelled, and how many asked.
WITH picked AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE id = ANY(%(ids)s::bigint[]) AND state = ANY(%(states)s::text[])
        AND state IN ('scheduled', 'pending', 'retrying', 'running')
    ORDER BY id
    FOR UPDATE
),
asked AS (
    UPDATE switchyard.job
    SET state = CASE WHEN state = 'running' THEN 'running' ELSE 'cancelled' END,
        finished_at = CASE WHEN state = 'running' THEN NULL ELSE clock_timestamp() END,
        cancel_requested_at = CASE WHEN state = 'running' THEN coalesce(cancel_requested_at, clock_timestamp()) END,
        next_publish_at = NULL, wait_reason = NULL, wait_since = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM picked))
    RETURNING id, message_id, state, worker, blocked_on
),
rung AS MATERIALIZED (
    SELECT pg_notify('switchyard_control', w.worker) FROM (SELECT DISTINCT worker FROM asked WHERE state = 'running') AS w
)
SELECT
    array_agg(message_id::text) FILTER (WHERE state = 'cancelled') AS cancelled,
    count(*) FILTER (WHERE state = 'running') AS asked,
    array_agg(id) FILTER (WHERE state = 'cancelled' AND blocked_on IS NOT NULL) AS turns,
    (SELECT count(*) FROM rung) AS told
FROM asked;

-- name: orders
-- What a worker process has to know of that others decided: which of its claims are to stop, and everything that is paused.
SELECT
    ARRAY(
        SELECT j.id
        FROM switchyard.job AS j
        WHERE j.id = ANY(%(ids)s::bigint[]) AND j.worker = %(worker)s AND j.cancel_requested_at IS NOT NULL
            AND CASE WHEN j.state = 'running' THEN true END
    ) AS stop,
    ARRAY(SELECT queue FROM switchyard.pause ORDER BY queue, actor) AS queues,
    ARRAY(SELECT actor FROM switchyard.pause ORDER BY queue, actor) AS actors;

-- name: pause
-- From this commit on no claim takes what it names. Zero: it was paused already. All processes are told either way.
WITH paused AS (
    INSERT INTO switchyard.pause (queue, actor) VALUES (%(queue)s, %(actor)s) ON CONFLICT (queue, actor) DO NOTHING RETURNING 1
)
SELECT (SELECT count(*) FROM paused) AS new, pg_notify('switchyard_control', '*');

-- name: resume
-- Lift the pause of exactly this name. Zero: there was none. What is parked goes on by unpark.
WITH lifted AS (
    DELETE FROM switchyard.pause WHERE queue = %(queue)s AND actor = %(actor)s RETURNING 1
)
SELECT (SELECT count(*) FROM lifted) AS gone, pg_notify('switchyard_control', '*');

-- name: pauses
-- What is paused, and how many pending jobs wait for its end.
SELECT
    p.queue, p.actor, p.since,
    (
        SELECT count(*)
        FROM switchyard.job AS j
        WHERE j.state = 'pending' AND j.wait_reason = 'paused'
            AND (p.queue = '*' OR j.queue = p.queue) AND (p.actor = '*' OR j.actor = p.actor)
    ) AS waiting
FROM switchyard.pause AS p
ORDER BY p.since, p.queue, p.actor;

-- name: park_rows
-- Rows that a claim refused because they are paused.
UPDATE switchyard.job AS j
SET wait_reason = 'paused', wait_since = clock_timestamp(), next_publish_at = NULL, publish_count = -abs(j.publish_count)
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.state = 'pending' AND j.wait_reason IS DISTINCT FROM 'paused'
    AND EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
RETURNING j.id;

-- name: park_place
-- Pending rows of one queue, last published to one broker, of one paused actor or of all ('*'): a chunk of them. The pause may have been
-- lifted meanwhile. The triggers they leave behind lead to nothing. Rows locked by another statement are skipped.
WITH kept AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE state = 'pending' AND broker = 'postgres' AND %(broker)s = 'postgres' AND queue = %(queue)s
        AND wait_reason IS DISTINCT FROM 'paused' AND (%(actor)s = '*' OR actor = %(actor)s)
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
),
carried AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE state = 'pending' AND broker <> 'postgres' AND broker = %(broker)s AND queue = %(queue)s
        AND wait_reason IS DISTINCT FROM 'paused' AND (%(actor)s = '*' OR actor = %(actor)s)
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE switchyard.job AS j
SET wait_reason = 'paused', wait_since = clock_timestamp(), next_publish_at = NULL, publish_count = -abs(j.publish_count)
WHERE j.id = ANY(ARRAY(SELECT id FROM kept UNION ALL SELECT id FROM carried))
    AND EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
RETURNING j.id;

-- name: resumed_places
-- Queues and actors with parked rows that are paused no more: one index probe for each pair there is, however many rows wait.
WITH RECURSIVE parked AS (
    (
        SELECT queue, actor FROM switchyard.job WHERE state = 'pending' AND wait_reason = 'paused' ORDER BY queue, actor LIMIT 1
    )
    UNION ALL
    SELECT following.queue, following.actor
    FROM parked AS k
    CROSS JOIN LATERAL (
        SELECT j.queue, j.actor
        FROM switchyard.job AS j
        WHERE j.state = 'pending' AND j.wait_reason = 'paused' AND (j.queue, j.actor) > (k.queue, k.actor)
        ORDER BY j.queue, j.actor
        LIMIT 1
    ) AS following
)
SELECT k.queue, k.actor
FROM parked AS k
WHERE NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (k.queue, '*') AND p.actor IN (k.actor, '*'));

-- name: unpark
-- A chunk of these queues' and actors' parked rows is due, best priority and oldest first; the relay publishes each at the route that its
-- queue has then. A row of the Postgres broker may be claimed from this commit on. Whoever pauses again meanwhile keeps them parked.
WITH next AS MATERIALIZED (
    SELECT head.id
    FROM unnest(%(queues)s::text[], %(actors)s::text[]) AS u (queue, actor)
    CROSS JOIN LATERAL (
        SELECT j.id, j.priority
        FROM switchyard.job AS j
        WHERE j.state = 'pending' AND j.wait_reason = 'paused' AND j.queue = u.queue AND j.actor = u.actor
        ORDER BY j.priority, j.id
        LIMIT %(limit)s
    ) AS head
    ORDER BY head.priority, head.id
    LIMIT %(limit)s
),
mine AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE id = ANY(ARRAY(SELECT id FROM next)) AND state = 'pending' AND wait_reason = 'paused'
    ORDER BY id
    FOR UPDATE SKIP LOCKED
)
UPDATE switchyard.job AS j
SET wait_reason = NULL, wait_since = NULL, next_publish_at = clock_timestamp(), publish_count = -abs(j.publish_count)
WHERE j.id = ANY(ARRAY(SELECT id FROM mine))
    AND NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
RETURNING j.id;

-- name: lock_waiting
-- A waiting job that is about to be changed.
SELECT id, actor, queue, payload, options, clock_timestamp() AS now, unique_key, rate_key, concurrency_key, fair_key
FROM switchyard.job
WHERE message_id = %(message_id)s AND state IN ('scheduled', 'pending', 'retrying')
FOR UPDATE;

-- name: edit
-- Change what a job will run with, and when; null leaves a thing as it is. A trigger that is out there already is published again with
-- its new priority; the old one leads to nothing, unless it is first. A job that waits for something else than a time (a slot, another
-- job) cannot be told a time. One that had its turn for a slot and is put off gives it up: it would be woken for it before its time.
UPDATE switchyard.job AS j
SET payload = coalesce(%(payload)s::json, j.payload),
    priority = coalesce(%(priority)s, j.priority),
    tags = CASE WHEN %(retag)s THEN %(tags)s::text[] ELSE j.tags END,
    state = CASE WHEN j.state = 'pending' AND %(delay)s::float8 > 0 THEN 'scheduled' ELSE j.state END,
    run_at = CASE
        WHEN %(delay)s::float8 > 0 OR (%(delay)s::float8 IS NOT NULL AND j.state <> 'pending')
            THEN clock_timestamp() + make_interval(secs => greatest(%(delay)s::float8, 0))
        ELSE j.run_at
    END,
    next_publish_at = CASE
        WHEN %(delay)s::float8 > 0 OR (%(delay)s::float8 IS NOT NULL AND j.state <> 'pending')
            THEN clock_timestamp() + make_interval(secs => greatest(%(delay)s::float8, 0))
        WHEN j.state = 'pending' AND j.publish_count > 0 AND j.next_publish_at IS NOT NULL AND %(priority)s <> j.priority
            THEN clock_timestamp()
        ELSE j.next_publish_at
    END,
    publish_count = CASE
        WHEN %(delay)s::float8 > 0 THEN 0
        WHEN j.state = 'pending' AND j.next_publish_at IS NOT NULL AND %(priority)s <> j.priority THEN -abs(j.publish_count)
        ELSE j.publish_count
    END,
    wait_reason = CASE WHEN %(delay)s::float8 > 0 THEN NULL ELSE j.wait_reason END,
    wait_since = CASE WHEN %(delay)s::float8 > 0 THEN NULL ELSE j.wait_since END,
    blocked_on = CASE WHEN %(delay)s::float8 > 0 THEN NULL ELSE j.blocked_on END,
    line = CASE WHEN %(delay)s::float8 > 0 THEN NULL ELSE j.line END
WHERE j.id = %(id)s AND j.state IN ('scheduled', 'pending', 'retrying')
    AND (%(delay)s::float8 IS NULL OR j.wait_reason IS NULL OR j.wait_reason IN ('paused', 'unknown_actor'))
RETURNING j.actor;

-- name: rekey
-- The arguments of a waiting job were changed, in this transaction, which holds its row; with them goes what it counts as. What it was
-- promised under another rate's key is void, and its place in another key's line: it is due now, and its claim decides anew. A turn for a
-- slot that it had is given up; the key is returned whose line moves on by that. One that nothing limits any more is found by its trigger
-- again, which was used up.
WITH was AS MATERIALIZED (
    SELECT
        id, state, wait_reason, limited, concurrency_key,
        (rate_key, rate_cost) IS DISTINCT FROM (%(rate_key)s::text, %(rate_cost)s::integer) AS rated,
        coalesce(blocked_on = concurrency_key, false)
        AND (concurrency_key, fair_key) IS DISTINCT FROM (%(concurrency_key)s::text, %(fair_key)s::text) AS moved
    FROM switchyard.job
    WHERE id = %(id)s AND state IN ('scheduled', 'pending', 'retrying')
),
goal AS MATERIALIZED (
    SELECT
        id, state, concurrency_key, rated, moved,
        state = 'scheduled' AND ((rated AND wait_reason = 'rate_limit') OR (moved AND wait_reason = 'concurrency')) AS comes,
        state = 'pending' AND limited AND %(rate_key)s::text IS NULL AND %(concurrency_key)s::text IS NULL AS free
    FROM was
)
UPDATE switchyard.job AS j
SET unique_key = %(unique_key)s, rate_key = %(rate_key)s, rate_cost = %(rate_cost)s, concurrency_key = %(concurrency_key)s,
    fair_key = %(fair_key)s, fair_weight = %(fair_weight)s,
    limited = %(rate_key)s::text IS NOT NULL OR %(concurrency_key)s::text IS NOT NULL,
    reserved_at = CASE WHEN goal.rated THEN NULL ELSE j.reserved_at END,
    reserved_version = CASE WHEN goal.rated THEN NULL ELSE j.reserved_version END,
    blocked_on = CASE WHEN goal.moved THEN NULL ELSE j.blocked_on END,
    line = CASE WHEN goal.moved THEN NULL ELSE j.line END,
    run_at = CASE WHEN goal.comes THEN clock_timestamp() ELSE j.run_at END,
    next_publish_at = CASE
        WHEN goal.comes OR (goal.free AND j.broker <> 'postgres' AND j.next_publish_at IS NOT NULL) THEN clock_timestamp()
        ELSE j.next_publish_at
    END,
    publish_count = CASE
        WHEN goal.comes THEN 0
        WHEN goal.free AND j.broker <> 'postgres' THEN -abs(j.publish_count)
        ELSE j.publish_count
    END,
    wait_reason = CASE WHEN goal.comes THEN NULL ELSE j.wait_reason END,
    wait_since = CASE WHEN goal.comes THEN NULL ELSE j.wait_since END
FROM goal
WHERE j.id = goal.id
RETURNING CASE WHEN goal.moved AND goal.state = 'pending' THEN goal.concurrency_key END;

-- name: wake_line
-- A turn for a slot of this key was given up: whoever is next has it.
SELECT switchyard.wake_waiters(ARRAY[%(key)s::text]);
