-- Jobs with encrypted arguments, for whoever changes the key.

-- name: sealed_jobs
-- One page of a walk over the jobs by id: those that may run yet, or again, and hold something encrypted. For an operator, so no index.
SELECT id, state, payload::text, options::text
FROM switchyard.job
WHERE id > %(after)s AND state NOT IN ('completed', 'running')
    AND (strpos(payload::text, '"$secret"') > 0 OR strpos(options::text, '"$secret"') > 0)
ORDER BY id
LIMIT %(limit)s;

-- name: reseal_jobs
-- The same values under another key, unless the row was changed or claimed since it was read.
UPDATE switchyard.job AS j
SET payload = u.payload::json, options = u.options::json
FROM unnest(%(ids)s::bigint[], %(payloads)s::text[], %(options)s::text[], %(read)s::text[]) AS u (id, payload, options, read)
WHERE j.id = u.id AND j.id = ANY(%(ids)s::bigint[]) AND j.state NOT IN ('completed', 'running') AND j.payload::text = u.read
RETURNING j.id;

-- name: sealed_and_running
-- Those that run meanwhile, and may wait again.
SELECT payload::text, options::text
FROM switchyard.job
WHERE state = 'running' AND (strpos(payload::text, '"$secret"') > 0 OR strpos(options::text, '"$secret"') > 0);
