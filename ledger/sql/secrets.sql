-- What is encrypted, and what is made with a key, for whoever changes the key.

-- name: sealed_batches
-- One page of a walk over the batches by number: those with callbacks that hold something encrypted, in a text within the JSON.
SELECT number, id::text, on_complete::text, on_success::text, on_death::text
FROM switchyard.batch
WHERE number > %(after)s
    AND (strpos(on_complete::text, '$secret') > 0 OR strpos(on_success::text, '$secret') > 0 OR strpos(on_death::text, '$secret') > 0)
ORDER BY number
LIMIT %(limit)s;

-- name: reseal_batches
-- The same callbacks under another key. Whoever ends the batch has its row before, and what it sends is there for the walk over the jobs;
-- or comes after, and sends this.
UPDATE switchyard.batch AS b
SET on_complete = u.on_complete::json, on_success = u.on_success::json, on_death = u.on_death::json
FROM unnest(
    %(ids)s::uuid[], %(on_complete)s::text[], %(on_success)s::text[], %(on_death)s::text[],
    %(complete_read)s::text[], %(success_read)s::text[], %(death_read)s::text[]
) AS u (id, on_complete, on_success, on_death, complete_read, success_read, death_read)
WHERE b.id = u.id AND b.on_complete::text IS NOT DISTINCT FROM u.complete_read
    AND b.on_success::text IS NOT DISTINCT FROM u.success_read AND b.on_death::text IS NOT DISTINCT FROM u.death_read
RETURNING b.id;

-- name: sealed_jobs
-- One page of a walk over the jobs by id: those that may run yet, or again, and hold something encrypted, and all with an encrypted result.
-- For an operator, so no index.
SELECT
    id, state, CASE WHEN state <> 'completed' THEN payload::text END, CASE WHEN state <> 'completed' THEN options::text END, result::text
FROM switchyard.job
WHERE id > %(after)s AND (state <> 'running' OR %(running)s) AND (
    (state <> 'completed' AND (strpos(payload::text, '"$secret"') > 0 OR strpos(options::text, '"$secret"') > 0))
    OR strpos(result::text, '"$secret"') > 0
)
ORDER BY id
LIMIT %(limit)s;

-- name: reseal_jobs
-- The same values under another key, unless the row was changed or claimed since it was read.
UPDATE switchyard.job AS j
SET payload = coalesce(u.payload::json, j.payload), options = coalesce(u.options::json, j.options), result = u.result::json
FROM unnest(
    %(ids)s::bigint[], %(payloads)s::text[], %(options)s::text[], %(results)s::text[],
    %(payload_read)s::text[], %(options_read)s::text[], %(result_read)s::text[]
) AS u (id, payload, options, result, payload_read, options_read, result_read)
WHERE j.id = u.id AND j.id = ANY(%(ids)s::bigint[]) AND j.state <> 'running'
    AND CASE WHEN u.payload_read IS NULL THEN true ELSE j.payload::text = u.payload_read END
    AND CASE WHEN u.options_read IS NULL THEN true ELSE j.options::text = u.options_read END
    AND j.result::text IS NOT DISTINCT FROM u.result_read
RETURNING j.id;

-- name: fingerprinted_keys
-- A page of the keys of sends that have not expired, each with what was sent; null: the job is gone.
SELECT i.scope, i.key, i.fingerprint, j.payload::text, j.options::text
FROM switchyard.idempotency AS i
LEFT JOIN switchyard.job AS j ON j.message_id = i.message_id
WHERE i.kind = 'idempotency' AND (i.scope, i.key) > (%(scope)s, %(key)s) AND i.fingerprint IS NOT NULL AND i.expires_at > clock_timestamp()
ORDER BY i.scope, i.key
LIMIT %(limit)s;

-- name: renew_fingerprints
-- The same sends, called by another key. One that was taken anew meanwhile has another fingerprint.
UPDATE switchyard.idempotency AS i
SET fingerprint = u.new
FROM unnest(%(scopes)s::text[], %(keys)s::text[], %(read)s::text[], %(new)s::text[]) AS u (scope, key, read, new)
WHERE i.kind = 'idempotency' AND i.scope = u.scope AND i.key = u.key AND i.fingerprint = u.read
RETURNING i.key;
