-- What one keeper does for all of them, and what it takes to be the one.

-- name: take_duty
-- Whether a duty's turn is due and nobody else is at it; if so its row stays locked until the transaction ends. The very first call makes
-- the row, for the next one to find; with ON CONFLICT alone, it would wait for whoever is at it.
WITH made AS (
    INSERT INTO switchyard.duty (name)
    SELECT %(name)s WHERE NOT EXISTS (SELECT 1 FROM switchyard.duty WHERE name = %(name)s)
    ON CONFLICT (name) DO NOTHING
)
SELECT position FROM switchyard.duty WHERE name = %(name)s AND due_at <= clock_timestamp() FOR UPDATE SKIP LOCKED;

-- name: leave_duty
-- When its next turn is, and how far this one got.
UPDATE switchyard.duty
SET due_at = clock_timestamp() + make_interval(secs => %(pause)s), position = %(position)s
WHERE name = %(name)s;

-- name: prunable
-- One page of a walk over the jobs by id, oldest first: those of the page that ended too long ago, at most a limit. Ids grow with the time
-- of creation and nothing ends before it is created, so the walk is over where the page reaches jobs younger than the shortest time.
-- Workflows are kept while they go on: a dead step until nothing waits for it, near or far, and the jobs of a batch until nothing waits for
-- it or one around it; until the outermost one is over, successfully or for as long as dead letters are kept; and while any job in it is
-- active, replayed it may be. Asked once more, up to the last one, when the rows are held.
WITH rule AS MATERIALIZED (
    SELECT *
    FROM unnest(%(states)s::text[], %(kinds)s::text[], %(names)s::text[], %(seconds)s::float8[]) AS u (state, kind, name, seconds)
),
page AS MATERIALIZED (
    SELECT id, message_id, batch_id, state, queue, actor, created_at, finished_at
    FROM switchyard.job
    WHERE id > %(after)s AND id <= coalesce(%(upto)s, 9223372036854775807)
    ORDER BY id
    LIMIT %(page)s
),
aged AS MATERIALIZED (
    SELECT
        p.id, p.message_id, p.batch_id, p.state,
        CASE WHEN p.batch_id IS NOT NULL THEN (SELECT b.root_id FROM switchyard.batch AS b WHERE b.id = p.batch_id) END AS root_id
    FROM page AS p
    WHERE p.finished_at < coalesce(%(now)s, clock_timestamp()) - make_interval(secs => coalesce(
        (SELECT r.seconds FROM rule AS r WHERE r.state = p.state AND r.kind = 'actor' AND r.name = p.actor),
        (SELECT r.seconds FROM rule AS r WHERE r.state = p.state AND r.kind = 'queue' AND r.name = p.queue),
        (SELECT r.seconds FROM rule AS r WHERE r.state = p.state AND r.kind = 'all')
    ))
),
flow AS MATERIALIZED (
    SELECT
        o.id,
        CASE
            WHEN o.succeeded_at IS NOT NULL THEN false
            WHEN o.waits_for IS NULL AND o.completed_at IS NULL THEN true
            WHEN o.waits_for IS NULL AND o.completed_at >= coalesce(%(now)s, clock_timestamp())
                - make_interval(secs => (SELECT r.seconds FROM rule AS r WHERE r.state = 'dead' AND r.kind = 'all')) THEN true
            ELSE EXISTS (
                WITH RECURSIVE tree (id) AS (
                    SELECT o.id
                    UNION ALL
                    SELECT c.id FROM tree AS t JOIN switchyard.batch AS c ON c.parent_id = t.id
                )
                SELECT 1
                FROM tree AS t
                CROSS JOIN (VALUES ('running'), ('pending'), ('retrying'), ('scheduled')) AS active (state)
                WHERE EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = t.id AND j.state = active.state)
            )
        END AS kept
    FROM (SELECT DISTINCT root_id AS id FROM aged WHERE root_id IS NOT NULL) AS r
    JOIN switchyard.batch AS o ON o.id = r.id
),
old AS MATERIALIZED (
    SELECT p.id, p.root_id
    FROM aged AS p
    WHERE CASE
            WHEN p.state IN ('dead', 'cancelled')
                THEN NOT EXISTS (
                    WITH RECURSIVE awaited (id) AS (
                        SELECT p.message_id
                        UNION
                        SELECT behind.id
                        FROM awaited AS a
                        CROSS JOIN LATERAL (
                            SELECT w.message_id AS id FROM switchyard.job AS w WHERE w.upstream_id = a.id
                            UNION ALL
                            SELECT b.id FROM switchyard.batch AS b WHERE b.waits_for = a.id
                        ) AS behind
                    )
                    SELECT 1 FROM awaited AS a JOIN switchyard.job AS w ON w.upstream_id = a.id WHERE w.state = 'scheduled'
                )
            ELSE true
        END
        AND CASE
            WHEN p.batch_id IS NOT NULL
                THEN NOT coalesce((SELECT f.kept FROM flow AS f WHERE f.id = p.root_id), false) AND NOT EXISTS (
                    WITH RECURSIVE around (id) AS (
                        SELECT p.batch_id
                        UNION
                        SELECT b.parent_id FROM around AS a JOIN switchyard.batch AS b ON b.id = a.id WHERE b.parent_id IS NOT NULL
                    ),
                    awaited (id) AS (
                        SELECT id FROM around
                        UNION
                        SELECT behind.id
                        FROM awaited AS a
                        CROSS JOIN LATERAL (
                            SELECT w.message_id AS id FROM switchyard.job AS w WHERE w.upstream_id = a.id
                            UNION ALL
                            SELECT b.id FROM switchyard.batch AS b WHERE b.waits_for = a.id
                        ) AS behind
                    )
                    SELECT 1 FROM awaited AS a JOIN switchyard.job AS w ON w.upstream_id = a.id WHERE w.state = 'scheduled'
                )
            ELSE true
        END
    ORDER BY p.id
    LIMIT %(limit)s
)
SELECT
    ARRAY(SELECT id FROM old ORDER BY id) AS ids,
    ARRAY(SELECT coalesce(root_id::text, '') FROM old ORDER BY id) AS roots,
    CASE WHEN (SELECT count(*) FROM old) = %(limit)s THEN (SELECT max(id) FROM old) ELSE (SELECT max(id) FROM page) END AS position,
    (SELECT count(*) FROM old) < %(limit)s AND (
        (SELECT count(*) FROM page) < %(page)s
        OR (SELECT max(created_at) FROM page)
            > coalesce(%(now)s, clock_timestamp()) - make_interval(secs => (SELECT min(seconds) FROM rule))
    ) AS over;

-- name: hold_workflows
-- Outermost batches whose jobs are to be removed: no replay decides to rely on what is in them meanwhile (hold_batches). One that does
-- already is passed by.
SELECT id::text FROM switchyard.batch WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED;

-- name: hold_prunable
-- Jobs that are to be removed, but those that somebody has in hand, or relies on (hold_upstreams).
SELECT id FROM switchyard.job WHERE id = ANY(%(ids)s::bigint[]) ORDER BY id FOR UPDATE SKIP LOCKED;

-- name: mark_pruned
-- Workflows of which jobs are removed, and which have not succeeded: what is left of them is not replayed any more.
UPDATE switchyard.batch
SET pruned_at = clock_timestamp()
WHERE id = ANY(%(ids)s::uuid[]) AND pruned_at IS NULL AND succeeded_at IS NULL;

-- name: prune
-- They go, with all that is theirs.
DELETE FROM switchyard.job WHERE id = ANY(%(ids)s::bigint[]) RETURNING id;

-- name: sample
-- What is on its way through each queue that holds anything or that a living worker consumes: one row per queue and interval, whoever
-- writes it. An active row is running, or has a next_publish_at, or is pending in the Postgres broker, or parked, or waits without a time:
-- read.sql says why.
INSERT INTO switchyard.sample (at, queue, scheduled, pending, running, retrying, oldest_pending)
SELECT
    to_timestamp(floor(extract(epoch FROM clock_timestamp()) / %(every)s) * %(every)s),
    coalesce(a.queue, w.queue),
    count(*) FILTER (WHERE a.state = 'scheduled'),
    count(*) FILTER (WHERE a.state = 'pending'),
    count(*) FILTER (WHERE a.state = 'running'),
    count(*) FILTER (WHERE a.state = 'retrying'),
    CASE
        WHEN count(*) FILTER (WHERE a.state = 'pending') > 0
            THEN greatest(extract(epoch FROM clock_timestamp() - min(a.run_at) FILTER (WHERE a.state = 'pending')), 0)
    END
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
) AS a
FULL JOIN (
    SELECT DISTINCT unnest(queues) AS queue
    FROM switchyard.worker
    WHERE beat_at > clock_timestamp() - make_interval(secs => lease_seconds)
) AS w ON w.queue = a.queue
GROUP BY coalesce(a.queue, w.queue)
ON CONFLICT (at, queue) DO NOTHING;

-- name: until_next_sample
-- Seconds until the next interval begins.
SELECT %(every)s - mod(extract(epoch FROM clock_timestamp())::numeric, %(every)s::numeric)::float8;

-- name: forget_samples
-- What charts do not show any more.
DELETE FROM switchyard.sample WHERE at < (SELECT clock_timestamp() - make_interval(secs => %(keep)s));

-- name: forget_activity
-- What charts do not show any more.
DELETE FROM switchyard.activity WHERE at < (SELECT clock_timestamp() - make_interval(secs => %(keep)s));

-- name: record_activity
-- What one process ended since it last said so, added to what others say of the same minute; in the order of the key, so that two of
-- them do not wait for each other in a circle.
INSERT INTO switchyard.activity AS a (at, queue, actor, completed, failed, dead, waits, runs)
SELECT date_trunc('minute', statement_timestamp()), u.queue, u.actor, u.completed, u.failed, u.dead, u.waits::int[], u.runs::int[]
FROM unnest(
    %(queues)s::text[], %(actors)s::text[], %(completed)s::bigint[], %(failed)s::bigint[], %(dead)s::bigint[],
    %(waits)s::text[], %(runs)s::text[]
) AS u (queue, actor, completed, failed, dead, waits, runs)
ORDER BY u.queue, u.actor
ON CONFLICT (at, queue, actor) DO UPDATE
SET completed = a.completed + excluded.completed, failed = a.failed + excluded.failed, dead = a.dead + excluded.dead,
    waits = ARRAY(SELECT s.x + s.y FROM unnest(a.waits, excluded.waits) WITH ORDINALITY AS s (x, y, n) ORDER BY s.n),
    runs = ARRAY(SELECT s.x + s.y FROM unnest(a.runs, excluded.runs) WITH ORDINALITY AS s (x, y, n) ORDER BY s.n);

-- name: read_samples
-- Depths over time, the oldest first.
SELECT at, queue, scheduled, pending, running, retrying, oldest_pending
FROM switchyard.sample
WHERE at >= %(since)s AND at < %(until)s AND (%(queue)s::text IS NULL OR queue = %(queue)s)
ORDER BY at, queue;

-- name: read_activity
-- What the workers did, the oldest minute first.
SELECT at, queue, actor, completed, failed, dead, waits, runs
FROM switchyard.activity
WHERE at >= %(since)s AND at < %(until)s AND (%(queue)s::text IS NULL OR queue = %(queue)s)
    AND (%(actor)s::text IS NULL OR actor = %(actor)s)
ORDER BY at, queue, actor;
