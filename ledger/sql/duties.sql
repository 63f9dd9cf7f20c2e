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

-- name: prune
-- One page of a walk over the jobs by id, oldest first: those of the page that ended too long ago go, at most a limit. Ids grow with the
-- time of creation and nothing ends before it is created, so the walk is over where the page reaches jobs younger than the shortest time.
-- A replay between the look and the lock has another finished_at, or none.
WITH rule AS MATERIALIZED (
    SELECT *
    FROM unnest(%(states)s::text[], %(kinds)s::text[], %(names)s::text[], %(seconds)s::float8[]) AS u (state, kind, name, seconds)
),
page AS MATERIALIZED (
    SELECT id, state, queue, actor, created_at, finished_at FROM switchyard.job WHERE id > %(after)s ORDER BY id LIMIT %(page)s
),
old AS MATERIALIZED (
    SELECT p.id, p.finished_at
    FROM page AS p
    WHERE p.finished_at < coalesce(%(now)s, clock_timestamp()) - make_interval(secs => coalesce(
        (SELECT r.seconds FROM rule AS r WHERE r.state = p.state AND r.kind = 'actor' AND r.name = p.actor),
        (SELECT r.seconds FROM rule AS r WHERE r.state = p.state AND r.kind = 'queue' AND r.name = p.queue),
        (SELECT r.seconds FROM rule AS r WHERE r.state = p.state AND r.kind = 'all')
    ))
    ORDER BY p.id
    LIMIT %(limit)s
),
free AS MATERIALIZED (
    SELECT j.id
    FROM switchyard.job AS j
    JOIN old AS o ON o.id = j.id AND o.finished_at = j.finished_at
    WHERE j.id = ANY(ARRAY(SELECT id FROM old))
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
),
removed AS (
    DELETE FROM switchyard.job AS j WHERE j.id = ANY(ARRAY(SELECT id FROM free)) RETURNING j.id
)
SELECT
    (SELECT count(*) FROM removed) AS removed,
    CASE WHEN (SELECT count(*) FROM old) = %(limit)s THEN (SELECT max(id) FROM old) ELSE (SELECT max(id) FROM page) END AS position,
    (SELECT count(*) FROM old) < %(limit)s AND (
        (SELECT count(*) FROM page) < %(page)s
        OR (SELECT max(created_at) FROM page)
            > coalesce(%(now)s, clock_timestamp()) - make_interval(secs => (SELECT min(seconds) FROM rule))
    ) AS over;
