-- What names stand for: ids by their beginnings, and which queues and actors there are. All of it bounded, however large the ledger is.

-- name: jobs_beginning
-- The jobs whose ids lie in a range, as those with the same first characters do.
SELECT message_id::text AS id, state, actor
FROM switchyard.job
WHERE message_id BETWEEN %(first)s AND %(last)s
ORDER BY message_id
LIMIT %(limit)s;

-- name: batches_beginning
-- The batches whose ids lie in a range.
SELECT id::text AS id, name FROM switchyard.batch WHERE id BETWEEN %(first)s AND %(last)s ORDER BY id LIMIT %(limit)s;

-- name: known_queues
-- Queues that processes consume or name, that limits and schedules are about, and that were in use lately: a queue's name costs nothing, so
-- the absence from all of these is the one sign that it was mistyped.
SELECT queue
FROM (
    SELECT unnest(queues) AS queue FROM switchyard.worker
    UNION
    SELECT queue FROM switchyard.route
    UNION
    SELECT queue FROM switchyard.declaration
    UNION
    SELECT name FROM switchyard.rule WHERE kind = 'queue' AND declared_amount IS NOT NULL
    UNION
    SELECT queue FROM switchyard.schedule WHERE source = 'declared' AND queue IS NOT NULL
    UNION
    SELECT queue FROM (SELECT queue FROM switchyard.sample ORDER BY at DESC LIMIT %(recent)s) AS sampled
    UNION
    SELECT queue FROM (SELECT queue FROM switchyard.activity ORDER BY at DESC LIMIT %(recent)s) AS busy
    UNION
    SELECT queue FROM (SELECT queue FROM switchyard.job ORDER BY id DESC LIMIT %(recent)s) AS sent
    UNION
    SELECT queue
    FROM (SELECT queue FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at DESC LIMIT %(recent)s) AS buried
) AS known
WHERE queue <> '*'
ORDER BY queue;

-- name: declared_queues
-- Queues that workers consume, or that code names: jobs, routes (an operator decides them for any name) and pauses are no sign of an actor.
SELECT queue
FROM (
    SELECT unnest(queues) AS queue FROM switchyard.worker
    UNION
    SELECT name FROM switchyard.rule WHERE kind = 'queue' AND declared_amount IS NOT NULL
    UNION
    SELECT queue FROM switchyard.schedule WHERE source = 'declared' AND queue IS NOT NULL
) AS declared
ORDER BY queue;

-- name: known_actors
-- The same of actors.
SELECT actor
FROM (
    SELECT unnest(actors) AS actor FROM switchyard.worker
    UNION
    SELECT name FROM switchyard.rule WHERE kind <> 'queue' AND declared_amount IS NOT NULL
    UNION
    SELECT actor FROM switchyard.schedule WHERE source = 'declared'
    UNION
    SELECT actor FROM (SELECT actor FROM switchyard.activity ORDER BY at DESC LIMIT %(recent)s) AS busy
    UNION
    SELECT actor FROM (SELECT actor FROM switchyard.job ORDER BY id DESC LIMIT %(recent)s) AS sent
    UNION
    SELECT actor
    FROM (SELECT actor FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at DESC LIMIT %(recent)s) AS buried
) AS known
ORDER BY actor;

-- name: known_tags
-- The tags of the latest jobs.
SELECT DISTINCT tag
FROM (SELECT tags FROM switchyard.job ORDER BY id DESC LIMIT %(recent)s) AS sent, unnest(sent.tags) AS tag
ORDER BY tag;

-- name: known_error_types
-- The types of error of the latest dead letters.
SELECT DISTINCT error_type
FROM (SELECT error_type FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at DESC LIMIT %(recent)s) AS buried
WHERE error_type IS NOT NULL
ORDER BY error_type;

-- name: known_fingerprints
-- The groups that the latest dead letters are of.
SELECT DISTINCT fingerprint
FROM (SELECT fingerprint FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at DESC LIMIT %(recent)s) AS buried
WHERE fingerprint IS NOT NULL
ORDER BY fingerprint;

-- name: known_reasons
-- Why the latest dead letters are dead.
SELECT DISTINCT dead_reason
FROM (SELECT dead_reason FROM switchyard.job WHERE state = 'dead' ORDER BY finished_at DESC LIMIT %(recent)s) AS buried
ORDER BY dead_reason;
