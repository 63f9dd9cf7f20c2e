-- Taking jobs. A claim is one guarded update: only a pending row can be claimed, by whoever's update comes first; under READ
-- COMMITTED the second one waits for the row lock, looks again, and finds it running. The token is made by the client, so that
-- a claim whose reply was lost can be read back. Unknown actors are left alone: another process may know them. So is what is paused; while
-- nothing is, that costs one probe of an empty table. What a limit decides about is left to `admit` (limits.sql): jobs that are limited,
-- and all jobs of a queue that is.
-- Times are told by date_part, which is a double's arithmetic: extract is a numeric's, and four of those were 3 us of a claim's 20.

-- name: claim_by_id
-- The rows that a batch of triggers points at. The array is sorted by the client: the index scan then locks in id order.
UPDATE switchyard.job
SET state = 'running', attempt = attempt + 1, token = %(token)s, worker = %(worker)s,
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s), next_publish_at = NULL, publish_count = 0,
    started_at = NULL, wait_reason = NULL, wait_since = NULL
WHERE id = ANY(%(ids)s::bigint[]) AND state = 'pending' AND suspect = %(suspects)s AND actor = ANY(%(actors)s::text[])
    AND (
        NOT EXISTS (SELECT 1 FROM switchyard.pause)
        OR NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (job.queue, '*') AND p.actor IN (job.actor, '*'))
    )
    AND NOT limited AND queue <> ALL(ARRAY(SELECT name FROM switchyard.rule WHERE kind = 'queue'))
RETURNING id, message_id::text, queue, actor, payload, options, generation, attempt, failures, max_attempts, suspect,
    (date_part('epoch', created_at) * 1000)::bigint AS created_ms,
    (date_part('epoch', clock_timestamp()) * 1000)::bigint AS claimed_ms, parent_id::text, tags,
    (date_part('epoch', expires_at) * 1000)::bigint AS expires_ms, max_lost,
    (date_part('epoch', run_at) * 1000)::bigint AS due_ms, batch_id::text;

-- name: claim_next
-- The next rows of one queue of the Postgres broker, by priority, then age. One queue a time: over several, no index gives the
-- order, and the whole backlog would be sorted for every claim. The ids go through an array, not a join: a join planned while the
-- table was empty walks the whole table for each of them, and that plan is kept.
WITH picked AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE queue = %(queue)s AND suspect = %(suspects)s AND state = 'pending' AND broker = 'postgres' AND actor = ANY(%(actors)s::text[])
        AND wait_reason IS DISTINCT FROM 'paused'
        AND (
            NOT EXISTS (SELECT 1 FROM switchyard.pause)
            OR NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (job.queue, '*') AND p.actor IN (job.actor, '*'))
        )
        AND NOT limited AND NOT EXISTS (SELECT 1 FROM switchyard.rule WHERE kind = 'queue' AND name = %(queue)s)
    ORDER BY priority, id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE switchyard.job AS j
SET state = 'running', attempt = attempt + 1, token = %(token)s, worker = %(worker)s,
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s), next_publish_at = NULL, publish_count = 0,
    started_at = NULL, wait_reason = NULL, wait_since = NULL
WHERE j.id = ANY(ARRAY(SELECT id FROM picked))
RETURNING j.id, message_id::text, queue, actor, payload, options, generation, attempt, failures, max_attempts, suspect,
    (date_part('epoch', created_at) * 1000)::bigint AS created_ms,
    (date_part('epoch', clock_timestamp()) * 1000)::bigint AS claimed_ms, parent_id::text, tags,
    (date_part('epoch', expires_at) * 1000)::bigint AS expires_ms, max_lost,
    (date_part('epoch', run_at) * 1000)::bigint AS due_ms, batch_id::text, priority;

-- name: claimed_with_token
-- A claim's reply was lost: what did it take?
SELECT id, message_id::text, queue, actor, payload, options, generation, attempt, failures, max_attempts, suspect,
    (date_part('epoch', created_at) * 1000)::bigint AS created_ms,
    (date_part('epoch', clock_timestamp()) * 1000)::bigint AS claimed_ms, parent_id::text, tags,
    (date_part('epoch', expires_at) * 1000)::bigint AS expires_ms, max_lost,
    (date_part('epoch', run_at) * 1000)::bigint AS due_ms, batch_id::text,
    limited OR EXISTS (SELECT 1 FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = job.queue) AS limited
FROM switchyard.job
WHERE worker = %(worker)s AND token = %(token)s AND state = 'running'
ORDER BY priority, id;

-- name: ready_queues
-- Which of these queues hold something that this process could claim, and whether it is a suspect: one index probe each. While something
-- is paused, what is not parked yet is walked past.
SELECT q.queue, s.suspect
FROM unnest(%(queues)s::text[]) AS q (queue)
CROSS JOIN (VALUES (false), (true)) AS s (suspect)
WHERE EXISTS (
    SELECT 1
    FROM switchyard.job AS j
    WHERE j.queue = q.queue AND j.suspect = s.suspect AND j.state = 'pending' AND j.broker = 'postgres'
        AND j.actor = ANY(%(actors)s::text[]) AND j.wait_reason IS DISTINCT FROM 'paused' AND NOT j.limited
        AND (
            NOT EXISTS (SELECT 1 FROM switchyard.pause)
            OR NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
        )
) AND NOT EXISTS (SELECT 1 FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = q.queue);

-- name: why_not_claimed
-- Triggers whose rows were not claimed: gone, not pending any more, paused, a suspect, of an unknown actor, or for a limit to decide about.
SELECT
    id, state, actor, suspect,
    EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*')) AS paused,
    queue, limited OR EXISTS (SELECT 1 FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = j.queue) AS limited
FROM switchyard.job AS j
WHERE id = ANY(%(ids)s::bigint[]);

-- name: postpone_suspects
-- Suspects this process keeps in mind until the one it runs has ended; should the process die, the relay offers them again.
UPDATE switchyard.job
SET next_publish_at = clock_timestamp() + make_interval(secs => %(delay)s)
WHERE id = ANY(%(ids)s::bigint[]) AND state = 'pending' AND suspect AND next_publish_at IS NOT NULL;

-- name: postpone_unknown
-- Jobs of an actor this process does not know: offered again with a growing pause, since another process may know it. If no living one
-- does, that is why they wait, and since when; one of an older version does not say what it knows (null), so it may know any.
UPDATE switchyard.job AS j
SET wait_reason = CASE WHEN w.known THEN nullif(j.wait_reason, 'unknown_actor') ELSE 'unknown_actor' END,
    wait_since = CASE
        WHEN w.known THEN CASE WHEN j.wait_reason <> 'unknown_actor' THEN j.wait_since END
        WHEN j.wait_reason = 'unknown_actor' THEN j.wait_since
        ELSE clock_timestamp()
    END,
    next_publish_at = clock_timestamp()
        + make_interval(secs => least(%(delay)s * 2 ^ least(greatest(abs(j.publish_count) - 1, 0), 10), 60)),
    publish_count = -abs(j.publish_count)
FROM (
    SELECT s.id, EXISTS (
        SELECT 1
        FROM switchyard.worker AS l
        WHERE l.beat_at > clock_timestamp() - make_interval(secs => l.lease_seconds)
            AND (l.actors IS NULL OR s.actor = ANY(l.actors))
    ) AS known
    FROM switchyard.job AS s
    WHERE s.id = ANY(%(ids)s::bigint[])
) AS w
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.id = w.id AND j.state = 'pending' AND NOT (j.actor = ANY(%(actors)s::text[]))
    AND j.wait_reason IS DISTINCT FROM 'paused';

-- name: record_start
-- A suspect's start is committed before its first instruction: if it kills the process, it is known to be the one. So is that of a
-- job that is dead when its worker dies: whether it had begun decides whether it may run.
UPDATE switchyard.job
SET started_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id = %(id)s AND token = %(token)s AND state = 'running'
RETURNING id;
