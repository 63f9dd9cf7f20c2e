-- Keys that make two sends one job: a sender's (idempotency_key) and an actor's (unique_key). Whoever inserts the key first has it; the
-- second waits for that transaction, and asks in a statement of its own, whose snapshot shows the first one's row or that it is gone.

-- name: take_keys
-- Keys that are free, in the order of the index, so that two batches wait for each other in one direction only.
INSERT INTO switchyard.idempotency (kind, scope, key, fingerprint, message_id, expires_at)
SELECT k.kind, k.scope, k.key, k.fingerprint, k.message_id, clock_timestamp() + make_interval(secs => k.ttl)
FROM json_to_recordset(%(keys)s::json) AS k (kind text, scope text, key text, fingerprint text, message_id uuid, ttl float8)
ORDER BY k.kind, k.scope, k.key
ON CONFLICT DO NOTHING
RETURNING scope, key;

-- name: keys_taken
-- What keys stand for. One past its time stands for nothing, also before a keeper removes it.
SELECT
    i.scope, i.key, i.fingerprint, i.message_id::text, i.expires_at <= clock_timestamp() AS expired,
    j.id, j.queue, j.state, j.payload::text, j.options::text, (date_part('epoch', j.created_at) * 1000)::bigint AS created_ms,
    j.limited
FROM json_to_recordset(%(keys)s::json) AS k (scope text, key text)
JOIN switchyard.idempotency AS i ON i.kind = %(kind)s AND i.scope = k.scope AND i.key = k.key
LEFT JOIN switchyard.job AS j ON j.message_id = i.message_id;

-- name: drop_expired_keys
-- So that the next insert finds them free. One that somebody has taken anew meanwhile is not expired any more.
DELETE FROM switchyard.idempotency AS i
USING json_to_recordset(%(keys)s::json) AS k (scope text, key text)
WHERE i.kind = %(kind)s AND i.scope = k.scope AND i.key = k.key AND i.expires_at <= clock_timestamp()
RETURNING i.key;

-- name: bind_key
-- A sender's key was free, but its job is one that an actor's key led to: that is the job it stands for.
UPDATE switchyard.idempotency
SET message_id = %(to)s
WHERE kind = 'idempotency' AND scope = %(scope)s AND key = %(key)s AND message_id = %(message_id)s
RETURNING key;

-- name: holders_of_keys
-- The active jobs that have these keys of their actors.
SELECT
    j.actor, j.unique_key, NULL, j.message_id::text, false,
    j.id, j.queue, j.state, j.payload::text, j.options::text, (date_part('epoch', j.created_at) * 1000)::bigint AS created_ms,
    j.limited
FROM json_to_recordset(%(keys)s::json) AS k (scope text, key text)
JOIN switchyard.job AS j
    ON j.actor = k.scope AND j.unique_key = k.key AND j.state IN ('scheduled', 'pending', 'retrying', 'running');

-- name: debounce
-- The latest payload wins while the job waits. With a delay it is due later, but no later than max_wait after it was sent, and no earlier
-- than it was; one that waits for something else than its time goes on doing so. A trigger that is out is refused by the claim. A turn for a
-- slot is given up by one that is put off, or it would be woken for it before its time. What limits concern is changed by whoever has
-- locked it and written what it counts as (rekey), and says so (limited).
WITH waiting AS MATERIALIZED (
    SELECT
        id, wait_reason, run_at,
        CASE
            WHEN %(delay)s::float8 > 0 THEN least(
                clock_timestamp() + make_interval(secs => %(delay)s::float8),
                created_at + make_interval(secs => %(max_wait)s::float8)
            )
        END AS later
    FROM switchyard.job
    WHERE id = %(id)s AND unique_key = %(key)s AND state IN ('scheduled', 'pending', 'retrying') AND (%(limited)s OR NOT limited)
    FOR UPDATE
),
due AS MATERIALIZED (
    SELECT id, CASE WHEN later > greatest(run_at, clock_timestamp()) AND wait_reason IS NULL THEN later END AS at FROM waiting
)
UPDATE switchyard.job AS j
SET payload = %(payload)s::json,
    options = coalesce(%(options)s::json, j.options),
    state = CASE WHEN due.at IS NULL THEN j.state ELSE 'scheduled' END,
    run_at = coalesce(due.at, j.run_at),
    next_publish_at = coalesce(due.at, j.next_publish_at),
    publish_count = CASE WHEN due.at IS NULL THEN j.publish_count ELSE 0 END,
    blocked_on = CASE WHEN due.at IS NULL THEN j.blocked_on END,
    line = CASE WHEN due.at IS NULL THEN j.line END
FROM due
WHERE j.id = due.id
RETURNING j.id;

-- name: ring_due
-- What was due at another time may be due now: keepers look at the commit, and not at their next poll.
SELECT pg_notify('switchyard_due', '');

-- name: let_go_of_key
-- A job that runs cannot take the latest payload any more, so the next send makes a new one.
UPDATE switchyard.job SET unique_key = NULL WHERE id = %(id)s AND unique_key = %(key)s AND state = 'running' RETURNING id;

-- name: transaction_isolation
-- Above READ COMMITTED the second statement would not see what the first one waited for.
SELECT current_setting('transaction_isolation');

-- name: prune_keys
-- Keys past their time, for whoever else's they may become.
DELETE FROM switchyard.idempotency
WHERE (kind, scope, key) IN (
    SELECT kind, scope, key
    FROM switchyard.idempotency
    WHERE expires_at <= (SELECT coalesce(%(now)s, clock_timestamp()))
    ORDER BY expires_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
RETURNING key;

-- name: find_key
-- What one key of an actor stands for: a sender's, an actor's for a period, an actor's while the job is active.
SELECT i.kind, i.message_id::text, i.fingerprint, i.created_at, i.expires_at, j.state
FROM switchyard.idempotency AS i
LEFT JOIN switchyard.job AS j ON j.message_id = i.message_id
WHERE i.kind = %(kind)s AND i.scope = %(actor)s AND i.key = %(key)s AND i.expires_at > clock_timestamp()
UNION ALL
SELECT 'unique', message_id::text, NULL, created_at, NULL, state
FROM switchyard.job
WHERE %(kind)s = 'unique' AND actor = %(actor)s AND unique_key = %(key)s
    AND state IN ('scheduled', 'pending', 'retrying', 'running');

-- name: forget_key
-- The next send with it makes a new job.
DELETE FROM switchyard.idempotency WHERE kind = %(kind)s AND scope = %(actor)s AND key = %(key)s
RETURNING key, expires_at <= clock_timestamp() AS expired;

-- name: release_unique_key
-- The same for a key that an active job has; the job goes on without it.
UPDATE switchyard.job
SET unique_key = NULL
WHERE actor = %(actor)s AND unique_key = %(key)s AND state IN ('scheduled', 'pending', 'retrying', 'running')
RETURNING id, false;

-- name: period_key
-- The key of its actor's that a job has for a period; that of an actor's other jobs is among as many.
SELECT key
FROM switchyard.idempotency
WHERE kind = 'unique' AND scope = %(actor)s AND message_id = %(message_id)s AND expires_at > clock_timestamp();

-- name: move_key
-- It goes over to another key, until the same time; one that is taken is a violation of the primary key.
UPDATE switchyard.idempotency
SET key = %(to)s
WHERE kind = 'unique' AND scope = %(actor)s AND key = %(key)s AND message_id = %(message_id)s
RETURNING key;

-- name: free_key
-- It is nobody's from now on.
DELETE FROM switchyard.idempotency
WHERE kind = 'unique' AND scope = %(actor)s AND key = %(key)s AND message_id = %(message_id)s
RETURNING key;
