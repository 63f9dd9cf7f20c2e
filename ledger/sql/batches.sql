-- Workflows: steps that wait for a job or a batch, and batches that end when their jobs have.
--
--   a step waits      scheduled, wait_reason 'upstream', upstream_id the job or batch it waits for, no time of its own. upstream_id is set
--                     for exactly as long as it was not given the result it waits for: a cancelled step keeps it, and a replay waits again
--   a chain's front   of the jobs of a chain exactly one does not wait: those before it are completed, those behind it wait. So a batch
--                     is at rest when none of its jobs is active but for those that wait for others
--   a batch           waits (waits_for), is open, has a first dead job (died_at), is complete (all ended), has succeeded (all completed).
--                     One that waits is complete when none of its jobs waits any more: they were cancelled; or it has none, and what it
--                     waits for does not come. It begins all the same if that is replayed, and may succeed
--
-- No statement writes a batch's row because one of its jobs has ended: jobs are counted when somebody asks (index job_batch).

-- name: make_batches
-- The batches of a workflow, in the transaction of its jobs. A repeated send finds its own.
INSERT INTO switchyard.batch (
    id, name, parent_id, root_id, sent_by, waits_for, followed, place, total, expected, on_complete, on_success, on_death
)
SELECT
    u.id, u.name, u.parent_id, u.root_id, u.sent_by, u.waits_for, u.followed, u.place, u.total, u.expected, u.on_complete, u.on_success,
    u.on_death
FROM json_to_recordset(%(rows)s::json) AS u (
    id uuid, name text, parent_id uuid, root_id uuid, sent_by uuid, waits_for uuid, followed boolean, place int, total int, expected int,
    on_complete json, on_success json, on_death json
)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: feed_steps
-- A job or a batch is completed: what waits for it gets its result as its last argument, as the very text that was stored (numbers and the
-- order of keys included), and is due after its own delay; its max_age counts from now. In the transaction of that completion, so nothing
-- can come between the two. A step that was cancelled meanwhile gets it too, and stays cancelled. Found by the array, as in finish.sql.
WITH step AS MATERIALIZED (
    SELECT
        j.id, f.result, j.state = 'cancelled' AS cancelled, coalesce((j.options ->> 'delay')::float8, 0) / 1000 AS delay,
        CASE
            WHEN (j.options ->> 'piped')::boolean
                THEN '{"args":' || CASE
                    WHEN json_array_length(j.payload -> 'args') = 0 THEN '['
                    ELSE left(rtrim((j.payload -> 'args')::text), -1) || ','
                END || f.result || '],"kwargs":' || (j.payload -> 'kwargs')::text || '}'
            ELSE j.payload::text
        END AS payload
    FROM switchyard.job AS j
    JOIN unnest(%(upstreams)s::uuid[], %(results)s::text[]) AS f (upstream, result) ON j.upstream_id = f.upstream
    WHERE j.upstream_id = ANY(%(upstreams)s::uuid[]) AND j.upstream_id IS NOT NULL AND CASE WHEN j.state IN ('scheduled', 'cancelled') THEN true END
    ORDER BY j.id
    FOR UPDATE OF j
),
fed AS MATERIALIZED (
    SELECT
        id, cancelled, delay,
        CASE WHEN octet_length(payload) <= %(limit)s THEN payload END AS payload,
        CASE
            WHEN cancelled THEN 'cancelled'
            WHEN octet_length(payload) > %(limit)s THEN 'dead'
            WHEN delay > 0 THEN 'scheduled'
            ELSE 'pending'
        END AS state
    FROM step
)
UPDATE switchyard.job AS j
SET state = s.state, payload = coalesce(s.payload::json, j.payload), upstream_id = NULL, wait_reason = NULL, wait_since = NULL,
    publish_count = 0,
    run_at = CASE WHEN s.state IN ('cancelled', 'dead') THEN clock_timestamp() ELSE clock_timestamp() + make_interval(secs => s.delay) END,
    next_publish_at = CASE WHEN s.state IN ('scheduled', 'pending') THEN clock_timestamp() + make_interval(secs => s.delay) END,
    expires_at = CASE WHEN s.state IN ('scheduled', 'pending') THEN clock_timestamp() + make_interval(secs => j.max_age / 1000) END,
    finished_at = CASE WHEN s.state = 'dead' THEN clock_timestamp() ELSE j.finished_at END,
    dead_reason = CASE WHEN s.state = 'dead' THEN 'permanent' END,
    error_type = CASE WHEN s.state = 'dead' THEN 'PayloadError' ELSE j.error_type END,
    error = CASE
        WHEN s.state = 'dead' THEN 'with the result it waited for, its arguments take more than ' || %(limit)s || ' bytes of JSON'
        ELSE j.error
    END
FROM fed AS s
WHERE j.id = ANY(ARRAY(SELECT id FROM fed)) AND j.id = s.id
RETURNING j.id, j.state;

-- name: begin_batches
-- Batches that waited for it begin: their jobs were fed by the statement before.
UPDATE switchyard.batch SET waits_for = NULL WHERE waits_for = ANY(%(upstreams)s::uuid[]) RETURNING id::text;

-- name: cancel_followers
-- Everything that waits for these jobs or batches, and for that, and so on, is cancelled with them. A replay that relies on some of it may
-- wait for the batches that the caller holds: it is not waited for.
WITH RECURSIVE awaited (id) AS (
    SELECT unnest(%(upstreams)s::uuid[])
    UNION
    SELECT behind.id
    FROM awaited AS a
    CROSS JOIN LATERAL (
        SELECT j.message_id AS id FROM switchyard.job AS j WHERE j.upstream_id = a.id
        UNION ALL
        SELECT b.id FROM switchyard.batch AS b WHERE b.waits_for = a.id
    ) AS behind
),
waiting AS MATERIALIZED (
    SELECT j.id
    FROM switchyard.job AS j
    WHERE j.upstream_id = ANY(ARRAY(SELECT id FROM awaited)) AND j.state = 'scheduled'
    ORDER BY j.id
    FOR NO KEY UPDATE
)
UPDATE switchyard.job AS j
SET state = 'cancelled', finished_at = clock_timestamp(), wait_reason = NULL, wait_since = NULL
WHERE j.id = ANY(ARRAY(SELECT id FROM waiting))
RETURNING j.id;

-- name: batches_around
-- Batches and those around them: none of them can succeed once a job of theirs was removed before it was completed.
WITH RECURSIVE around (id) AS (
    SELECT unnest(%(ids)s::uuid[])
    UNION
    SELECT b.parent_id FROM around AS a JOIN switchyard.batch AS b ON b.id = a.id WHERE b.parent_id IS NOT NULL
)
SELECT id::text FROM around;

-- name: wait_again
-- Replayed steps that were never given the result they wait for wait for it again, in the transaction of the replay.
UPDATE switchyard.job
SET state = 'scheduled', run_at = 'infinity', next_publish_at = NULL, expires_at = NULL, wait_reason = 'upstream',
    wait_since = clock_timestamp()
WHERE message_id = ANY(%(message_ids)s::uuid[]) AND state IN ('pending', 'scheduled') AND CASE WHEN upstream_id IS NOT NULL THEN true END;

-- name: relied_on
-- What replayed jobs rely on, a row each: a step on all that it waits for, near or far, be it a job or a batch; a job in a batch on the
-- outermost one around it, and so on those around what it waits for.
WITH RECURSIVE need (replayed, id) AS (
    SELECT j.message_id, j.upstream_id
    FROM switchyard.job AS j
    WHERE j.message_id = ANY(%(message_ids)s::uuid[]) AND CASE WHEN j.upstream_id IS NOT NULL THEN true END
    UNION
    SELECT n.replayed, further.id
    FROM need AS n
    CROSS JOIN LATERAL (
        SELECT u.upstream_id AS id FROM switchyard.job AS u WHERE u.message_id = n.id AND u.upstream_id IS NOT NULL
        UNION ALL
        SELECT b.waits_for FROM switchyard.batch AS b WHERE b.id = n.id AND b.waits_for IS NOT NULL
        UNION ALL
        SELECT c.id FROM switchyard.batch AS c WHERE c.parent_id = n.id AND c.succeeded_at IS NULL
        UNION ALL
        SELECT m.upstream_id FROM switchyard.job AS m WHERE m.batch_id = n.id AND m.upstream_id IS NOT NULL
    ) AS further
)
SELECT n.replayed::text, n.id::text, false AS outermost FROM need AS n
UNION ALL
SELECT found.replayed::text, b.root_id::text, true
FROM (
    SELECT j.message_id AS replayed, j.batch_id AS id
    FROM switchyard.job AS j
    WHERE j.message_id = ANY(%(message_ids)s::uuid[]) AND j.batch_id IS NOT NULL
    UNION ALL
    SELECT n.replayed, n.id FROM need AS n
    UNION ALL
    SELECT n.replayed, u.batch_id
    FROM need AS n
    JOIN switchyard.job AS u ON u.message_id = n.id
    WHERE u.batch_id IS NOT NULL
) AS found
JOIN switchyard.batch AS b ON b.id = found.id;

-- name: hold_upstreams
-- Jobs that are relied on: none of them is removed before this transaction is over.
SELECT message_id::text FROM switchyard.job WHERE message_id = ANY(%(ids)s::uuid[]) ORDER BY id FOR KEY SHARE;

-- name: hold_batches
-- Batches that are relied on: no job of theirs is removed before this transaction is over. They may end.
SELECT id::text FROM switchyard.batch WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR KEY SHARE;

-- name: whole_workflows
-- Those of these outermost batches with which retention has not begun.
SELECT id::text FROM switchyard.batch WHERE id = ANY(%(ids)s::uuid[]) AND pruned_at IS NULL;

-- name: was_pruned
-- Whether retention has begun to remove the workflow that a job is in.
SELECT o.pruned_at IS NOT NULL
FROM switchyard.job AS j
JOIN switchyard.batch AS b ON b.id = j.batch_id
JOIN switchyard.batch AS o ON o.id = b.root_id
WHERE j.message_id = %(message_id)s;

-- name: hopeful_batches
-- Those of these batches that can succeed yet: of each open one in it no job was removed.
WITH RECURSIVE tree (root, id) AS (
    SELECT id, id FROM switchyard.batch WHERE id = ANY(%(ids)s::uuid[])
    UNION ALL
    SELECT t.root, c.id FROM tree AS t JOIN switchyard.batch AS c ON c.parent_id = t.id
)
SELECT t.root::text
FROM tree AS t
JOIN switchyard.batch AS b ON b.id = t.id
GROUP BY t.root
HAVING bool_and(b.succeeded_at IS NOT NULL OR b.total <= (SELECT count(*) FROM switchyard.job AS j WHERE j.batch_id = b.id));

-- name: look_at_batches
-- Which of these batches have news: the first dead job, all ended, all completed. A few index probes each while a batch is at work; its
-- jobs are counted only once none of them is. Nested batches count as the jobs they stand for. A stock group may lack children that
-- were never sent, or never will be; after an hour nobody waits for them any more. One that has none was rolled back. In a batch that has
-- not begun, jobs that wait for what it waits for are at work, too.
WITH looked AS MATERIALIZED (
    SELECT
        b.id, b.died_at, b.completed_at, b.total, b.expected, b.created_at, b.waits_for,
        EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = b.id AND j.state = 'dead')
        OR EXISTS (
            SELECT 1 FROM switchyard.batch AS c WHERE c.parent_id = b.id AND c.died_at IS NOT NULL AND c.succeeded_at IS NULL
        ) AS dead,
        EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = b.id AND j.state = 'running')
        OR EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = b.id AND j.state = 'pending')
        OR EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = b.id AND j.state = 'retrying')
        OR EXISTS (
            SELECT 1
            FROM switchyard.job AS j
            WHERE j.batch_id = b.id AND j.state = 'scheduled'
                AND (j.wait_reason IS DISTINCT FROM 'upstream' OR b.waits_for IS NOT NULL)
        )
        OR EXISTS (
            SELECT 1
            FROM switchyard.batch AS c
            WHERE c.parent_id = b.id AND c.completed_at IS NULL AND (c.waits_for IS NULL OR b.waits_for IS NOT NULL)
        ) AS active,
        EXISTS (SELECT 1 FROM switchyard.batch AS c WHERE c.parent_id = b.id AND c.succeeded_at IS NULL) AS nested
    FROM switchyard.batch AS b
    WHERE b.id = ANY(%(ids)s::uuid[])
        AND CASE WHEN b.succeeded_at IS NULL AND (b.waits_for IS NULL OR b.completed_at IS NULL) THEN true END
),
counted AS MATERIALIZED (
    SELECT
        l.*,
        NOT l.active AND CASE
            WHEN l.waits_for IS NULL OR l.total > 0 THEN true
            WHEN EXISTS (SELECT 1 FROM switchyard.batch AS c WHERE c.parent_id = l.id) THEN true
            -- It has no job that could have been cancelled. What it waits for was, or is gone, or cannot succeed any more.
            ELSE NOT EXISTS (SELECT 1 FROM switchyard.job AS u WHERE u.message_id = l.waits_for AND u.state <> 'cancelled')
                AND NOT EXISTS (
                    SELECT 1
                    FROM switchyard.batch AS u
                    WHERE u.id = l.waits_for AND (u.waits_for IS NULL OR u.completed_at IS NULL) AND CASE
                        WHEN u.completed_at IS NULL THEN true
                        ELSE NOT EXISTS (
                            WITH RECURSIVE tree (id) AS (
                                SELECT u.id
                                UNION ALL
                                SELECT c.id FROM tree AS t JOIN switchyard.batch AS c ON c.parent_id = t.id
                            )
                            SELECT 1
                            FROM tree AS t
                            JOIN switchyard.batch AS w ON w.id = t.id
                            WHERE w.succeeded_at IS NULL
                                AND w.total > (SELECT count(*) FROM switchyard.job AS j WHERE j.batch_id = w.id)
                        )
                    END
                )
        END AND (
            l.expected IS NULL
            OR (
                l.created_at < coalesce(%(now)s, clock_timestamp()) - interval '1 hour'
                AND EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = l.id)
            )
            OR l.expected <= (SELECT count(*) FROM switchyard.job AS j WHERE j.batch_id = l.id)
        ) AS ended,
        l.waits_for IS NULL AND NOT l.active AND NOT l.dead AND NOT l.nested
        AND greatest(l.total, l.expected) <= (
            SELECT count(*) FROM switchyard.job AS j WHERE j.batch_id = l.id AND j.state = 'completed'
        ) AS succeeded
    FROM looked AS l
)
SELECT id::text, dead AND died_at IS NULL AS died, ended AND completed_at IS NULL AS completed, succeeded
FROM counted
WHERE (dead AND died_at IS NULL) OR (ended AND completed_at IS NULL) OR succeeded
ORDER BY id;

-- name: lock_batches
-- Whoever ends batches holds their rows first, in the order of their ids; then it looks. A replay that waits for one of them goes on.
SELECT id FROM switchyard.batch WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE;

-- name: lock_shrinking
-- Whoever removes jobs holds the batches around them, in the same order: no replay decides to wait for one of them meanwhile.
SELECT id FROM switchyard.batch WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE;

-- name: shrink_batches
-- Stock groups whose jobs were all removed have had some: they were not rolled back, and nobody waits for the children that they lack.
UPDATE switchyard.batch AS b
SET total = greatest(b.total, b.expected), expected = NULL
WHERE b.id = ANY(%(ids)s::uuid[]) AND b.expected IS NOT NULL AND b.completed_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = b.id)
RETURNING b.id;

-- name: mark_batches
-- What was found under the lock, each for the first and only time, with what is to be sent for it.
UPDATE switchyard.batch AS b
SET died_at = CASE WHEN u.died THEN clock_timestamp() ELSE b.died_at END,
    completed_at = CASE WHEN u.completed OR u.succeeded THEN coalesce(b.completed_at, clock_timestamp()) ELSE b.completed_at END,
    succeeded_at = CASE WHEN u.succeeded THEN clock_timestamp() END
FROM unnest(%(ids)s::uuid[], %(died)s::boolean[], %(completed)s::boolean[], %(succeeded)s::boolean[])
    AS u (id, died, completed, succeeded)
WHERE b.id = u.id AND b.succeeded_at IS NULL
RETURNING
    b.id::text, b.parent_id::text, b.followed,
    CASE WHEN u.died THEN b.on_death::text END,
    CASE WHEN u.completed THEN b.on_complete::text END,
    CASE WHEN u.succeeded THEN b.on_success::text END,
    u.succeeded;

-- name: batch_results
-- What the jobs of a batch returned, in the order sent; of a chain, its last step alone.
SELECT coalesce(result::text, 'null')
FROM switchyard.job
WHERE batch_id = %(id)s AND NOT coalesce((options ->> 'followed')::boolean, false)
ORDER BY id;

-- name: size_of_results
-- How many bytes the results of a batch take, with those of the batches within it that are part of its own; commas included.
WITH RECURSIVE tree (id) AS (
    SELECT %(id)s::uuid
    UNION ALL
    SELECT b.id FROM tree AS t JOIN switchyard.batch AS b ON b.parent_id = t.id WHERE NOT b.followed
)
SELECT coalesce(sum(octet_length(coalesce(j.result::text, 'null')) + 1), 0)
FROM tree AS t
JOIN switchyard.job AS j ON j.batch_id = t.id
WHERE NOT coalesce((j.options ->> 'followed')::boolean, false);

-- name: nested_batches
-- The batches within a batch whose results are part of its own, each with the number of the jobs before it.
SELECT id::text, place FROM switchyard.batch WHERE parent_id = %(id)s AND NOT followed ORDER BY place, number;

-- name: open_batch
-- Hold a batch that jobs are to be added to; no row: there is none of that id. Why it takes none, or null.
SELECT CASE WHEN completed_at IS NOT NULL THEN 'it is complete' WHEN waits_for IS NOT NULL THEN 'it waits for a step before it' END
FROM switchyard.batch
WHERE id = %(id)s
FOR UPDATE;

-- name: grow_batch
-- Jobs were added to it.
UPDATE switchyard.batch SET total = total + %(count)s WHERE id = %(id)s RETURNING total;

-- name: set_callbacks
-- What to send when a stock group is complete; its children bring it along.
UPDATE switchyard.batch SET on_complete = %(rows)s::json WHERE id = %(id)s AND on_complete IS NULL RETURNING id;

-- name: batches_to_check
-- A page of the batches that may have news which nobody saw, by number: those that have begun, and those that may never do so.
SELECT page.number, page.id::text
FROM (
    (
        SELECT number, id
        FROM switchyard.batch
        WHERE succeeded_at IS NULL AND waits_for IS NULL AND number > %(after)s
        ORDER BY number
        LIMIT %(limit)s
    )
    UNION ALL
    (
        SELECT number, id
        FROM switchyard.batch
        WHERE waits_for IS NOT NULL AND completed_at IS NULL AND number > %(after)s
        ORDER BY number
        LIMIT %(limit)s
    )
) AS page
ORDER BY page.number
LIMIT %(limit)s;

-- name: prune_batches
-- Batches over for so long that their jobs have been removed, and stock groups that were rolled back.
DELETE FROM switchyard.batch AS b
WHERE b.id IN (
    SELECT o.id
    FROM switchyard.batch AS o
    WHERE o.number > %(after)s
        AND CASE WHEN o.expected IS NULL THEN o.completed_at ELSE o.created_at END
            < coalesce(%(now)s, clock_timestamp()) - make_interval(secs => %(keep)s)
        AND NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.batch_id = o.id)
        AND NOT EXISTS (SELECT 1 FROM switchyard.batch AS c WHERE c.parent_id = o.id)
        AND NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.upstream_id = o.id)
    ORDER BY o.number
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
RETURNING b.id;

-- name: batches
-- Batches as a reader sees them, without their counts; the conditions are the caller's to add.
SELECT
    b.id::text AS id, b.number, b.name, b.parent_id::text AS parent_id, b.sent_by::text AS sent_by, b.waits_for::text AS waits_for, b.total,
    b.expected, b.created_at, b.died_at, b.completed_at, b.succeeded_at, b.on_complete, b.on_success, b.on_death
FROM switchyard.batch AS b;

-- name: batch_states
-- How many jobs each of these batches has in each state.
SELECT batch_id::text, state, count(*)
FROM switchyard.job
WHERE batch_id = ANY(%(ids)s::uuid[])
GROUP BY batch_id, state;

-- name: batch_tree
-- A batch and all within it.
WITH RECURSIVE tree (id) AS (
    SELECT id FROM switchyard.batch WHERE id = %(id)s
    UNION ALL
    SELECT c.id FROM tree AS t JOIN switchyard.batch AS c ON c.parent_id = t.id
)
SELECT id::text FROM tree;
