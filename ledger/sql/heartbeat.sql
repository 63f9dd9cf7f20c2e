-- What a living worker says every third of a lease. Why the ids stand there twice and the state in a CASE: see finish.sql.

-- name: beat
-- The process is alive. And so is the fleet: the row "in touch" of the table duty says when somebody beat last (due_at; not more often than
-- somebody needs it), and since when, in milliseconds since 1970, no pause between two beats was as long as it takes a lease to end unseen
-- (position). That is two thirds of one at the least, since each beat renews leases a third of one apart.
-- The process's version goes with what it counts, as "version": it is no column, so that it needs no migration; who reads takes it out.
WITH touched AS (
    INSERT INTO switchyard.duty AS d (name, due_at, position)
    VALUES ('in touch', clock_timestamp(), floor(date_part('epoch', clock_timestamp()) * 1000)::bigint)
    ON CONFLICT (name) DO UPDATE
    SET position = CASE
            WHEN d.due_at BETWEEN clock_timestamp() - make_interval(secs => %(lease)s::float8 * 0.6) AND clock_timestamp() THEN d.position
            ELSE excluded.position
        END,
        due_at = clock_timestamp()
    WHERE d.due_at NOT BETWEEN clock_timestamp() - make_interval(secs => %(lease)s::float8 / 12) AND clock_timestamp()
)
INSERT INTO switchyard.worker (id, host, pid, broker, queues, threads, running, counters, lease_seconds, actors, routes, consumes)
VALUES (
    %(id)s, %(host)s, %(pid)s, %(broker)s, %(queues)s, %(threads)s, %(running)s,
    %(counters)s::jsonb || jsonb_strip_nulls(jsonb_build_object('version', %(version)s::text)), %(lease)s, %(actors)s, %(routes)s, %(consumes)s
)
ON CONFLICT (id) DO UPDATE
SET beat_at = clock_timestamp(), queues = excluded.queues, running = excluded.running, counters = excluded.counters,
    actors = excluded.actors, consumes = excluded.consumes;

-- name: extend_leases
-- Its claims live on, and the rows learn when their execution started. Rows locked by another statement are skipped.
WITH held AS MATERIALIZED (
    SELECT j.id, f.started_age
    FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[], %(started_ages)s::float8[]) AS f (id, token, started_age)
    JOIN switchyard.job AS j ON j.id = f.id AND j.token = f.token
    WHERE j.id = ANY(%(ids)s::bigint[]) AND CASE WHEN j.state = 'running' THEN true END
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE switchyard.job AS j
SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
    started_at = CASE WHEN held.started_age IS NULL THEN j.started_at ELSE clock_timestamp() - make_interval(secs => held.started_age) END
FROM held
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.id = held.id
RETURNING j.id;

-- name: still_held
-- Of the claims whose lease was not extended: which are ours all the same (their row was locked for a moment)?
SELECT j.id
FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[]) AS f (id, token)
JOIN switchyard.job AS j ON j.id = f.id AND j.token = f.token
WHERE j.id = ANY(%(ids)s::bigint[]) AND CASE WHEN j.state = 'running' THEN true END;

-- name: retire_worker
-- The process left in good order.
DELETE FROM switchyard.worker WHERE id = %(id)s;

-- name: record_progress
-- Where a running job is; only its holder may say.
UPDATE switchyard.job
SET progress = %(progress)s, stage = %(stage)s
WHERE id = %(id)s AND token = %(token)s AND state = 'running'
RETURNING id;

-- name: append_log
-- Lines of a running job's log; only its holder may write.
INSERT INTO switchyard.job_log (job_id, generation, attempt, at, line)
SELECT j.id, j.generation, j.attempt, clock_timestamp() - make_interval(secs => u.age), u.line
FROM switchyard.job AS j
CROSS JOIN unnest(%(lines)s::text[], %(ages)s::float8[]) WITH ORDINALITY AS u (line, age, position)
WHERE j.id = %(id)s AND j.token = %(token)s AND j.state = 'running'
ORDER BY u.position
RETURNING id;
