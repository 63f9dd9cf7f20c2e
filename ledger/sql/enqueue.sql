-- The way in. A row is committed here before anything is published; everything that may fail afterwards is repaired by the
-- relay, because next_publish_at is set from the start.
--
-- next_publish_at is
--   the due time                of a job that waits for its time (state scheduled);
--   now + the repair grace      of a job whose trigger is about to be published (a grace of 0: the transport is known to be down);
--   null                        of a job of the Postgres broker: the row itself is the message.
--
-- publish_count is 1 of a job whose trigger is about to be published, as if it were out already: when next_publish_at has passed, its
-- trigger is looked for first (see keeper.sql). What is due, now or later, has 0 and is published unasked.

-- name: enqueue
-- One row for one send, on a connection that commits by itself: there a message id that exists already may be an error, and ON CONFLICT
-- would cost every send a tenth of its time.
INSERT INTO switchyard.job (
    message_id, queue, actor, priority, payload, options, max_attempts, parent_id, tags, broker, max_age, max_lost,
    state, run_at, next_publish_at, expires_at, publish_count
)
VALUES (
    %(message_id)s, %(queue)s, %(actor)s, %(priority)s, %(payload)s, %(options)s, %(max_attempts)s, %(parent_id)s, %(tags)s,
    %(broker)s, %(max_age)s, %(max_lost)s,
    CASE WHEN %(delay)s::float8 > 0 THEN 'scheduled' ELSE 'pending' END,
    clock_timestamp() + make_interval(secs => greatest(%(delay)s::float8, 0)),
    CASE
        WHEN %(delay)s::float8 > 0 THEN clock_timestamp() + make_interval(secs => %(delay)s::float8)
        ELSE clock_timestamp() + make_interval(secs => %(grace)s::float8)
    END,
    clock_timestamp() + make_interval(secs => %(max_age)s::float8 / 1000),
    CASE WHEN %(grace)s::float8 > 0 AND NOT %(delay)s::float8 > 0 THEN 1 ELSE 0 END
)
RETURNING id;

-- name: enqueue_many
-- A thousand rows at a time for enqueue_many, of no batch or all of the same; ids that exist already return no row.
INSERT INTO switchyard.job (
    message_id, queue, actor, priority, payload, options, max_attempts, parent_id, tags, broker, max_age, max_lost,
    state, run_at, next_publish_at, expires_at, publish_count, batch_id
)
SELECT
    u.message_id, u.queue, u.actor, u.priority, u.payload::json, u.options::json, u.max_attempts, u.parent_id, u.tags::text[], u.broker,
    u.max_age, u.max_lost,
    CASE WHEN u.delay > 0 THEN 'scheduled' ELSE 'pending' END,
    clock_timestamp() + make_interval(secs => greatest(u.delay, 0)),
    CASE
        WHEN u.delay > 0 THEN clock_timestamp() + make_interval(secs => u.delay)
        ELSE clock_timestamp() + make_interval(secs => u.grace)
    END,
    clock_timestamp() + make_interval(secs => u.max_age / 1000),
    CASE WHEN u.grace > 0 AND NOT u.delay > 0 THEN 1 ELSE 0 END,
    %(batch_id)s
FROM unnest(
    %(message_ids)s::uuid[], %(queues)s::text[], %(actors)s::text[], %(priorities)s::int[], %(payloads)s::text[], %(options)s::text[],
    %(max_attempts)s::int[], %(parent_ids)s::uuid[], %(tags)s::text[], %(brokers)s::text[], %(delays)s::float8[], %(graces)s::float8[],
    %(max_ages)s::float8[], %(max_losts)s::int[]
) AS u (message_id, queue, actor, priority, payload, options, max_attempts, parent_id, tags, broker, delay, grace, max_age, max_lost)
ON CONFLICT (message_id) DO NOTHING
RETURNING id, message_id::text;

-- name: enqueue_controlled
-- Rows with keys, limits, or a place in a workflow: as enqueue_many, as one JSON array, since what is rare need not be cheap. A job with
-- a wait_reason waits for something else than a time: whoever takes the reason away makes it due.
-- Keys are taken in the same statement: the row is written if all of them were free, and none is taken for an id that exists already.
WITH taken AS (
    INSERT INTO switchyard.idempotency (kind, scope, key, fingerprint, message_id, expires_at)
    SELECT k.kind, k.scope, k.key, k.fingerprint, k.message_id, clock_timestamp() + make_interval(secs => k.ttl)
    FROM json_to_recordset(%(keys)s::json)
        AS k (kind text, scope text, key text, fingerprint text, message_id uuid, ttl float8)
    WHERE NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.message_id = k.message_id)
    ORDER BY k.kind, k.scope, k.key
    ON CONFLICT DO NOTHING
    RETURNING key
)
INSERT INTO switchyard.job (
    message_id, queue, actor, priority, payload, options, max_attempts, parent_id, tags, broker, max_age, max_lost,
    state, run_at, next_publish_at, expires_at, publish_count, wait_reason, wait_since,
    idempotency_key, unique_key, rate_key, rate_cost, concurrency_key, fair_key, fair_weight, batch_id, upstream_id, schedule, tick_at,
    limited
)
SELECT
    u.message_id, u.queue, u.actor, u.priority, u.payload::json, u.options::json, u.max_attempts, u.parent_id, u.tags, u.broker,
    u.max_age, u.max_lost,
    CASE WHEN u.delay > 0 OR u.wait_reason IS NOT NULL THEN 'scheduled' ELSE 'pending' END,
    CASE WHEN u.wait_reason IS NOT NULL THEN 'infinity' ELSE clock_timestamp() + make_interval(secs => greatest(u.delay, 0)) END,
    CASE
        WHEN u.wait_reason IS NOT NULL THEN NULL
        WHEN u.delay > 0 THEN clock_timestamp() + make_interval(secs => u.delay)
        ELSE clock_timestamp() + make_interval(secs => u.grace)
    END,
    -- Of a step that waits for another it counts from that one's end.
    CASE WHEN u.upstream_id IS NULL THEN clock_timestamp() + make_interval(secs => u.max_age / 1000) END,
    CASE WHEN u.grace > 0 AND NOT u.delay > 0 AND u.wait_reason IS NULL THEN 1 ELSE 0 END,
    u.wait_reason, CASE WHEN u.wait_reason IS NOT NULL THEN clock_timestamp() END,
    u.idempotency_key, u.unique_key, u.rate_key, u.rate_cost, u.concurrency_key, u.fair_key, u.fair_weight, u.batch_id, u.upstream_id,
    u.schedule, u.tick_at, u.rate_key IS NOT NULL OR u.concurrency_key IS NOT NULL
FROM json_to_recordset(%(rows)s::json) AS u (
    message_id uuid, queue text, actor text, priority int, payload text, options text, max_attempts int, parent_id uuid, tags text[],
    broker text, max_age float8, max_lost int, delay float8, grace float8, wait_reason text,
    idempotency_key text, unique_key text, rate_key text, rate_cost int, concurrency_key text, fair_key text, fair_weight float8,
    batch_id uuid, upstream_id uuid, schedule text, tick_at timestamptz
)
WHERE (SELECT count(*) FROM taken) = json_array_length(%(keys)s::json)
-- Whichever id or key is in the way.
ON CONFLICT DO NOTHING
RETURNING id, message_id::text;

-- name: existing_jobs
-- What is stored under ids that an enqueue found taken, to tell a repeated send from another job.
SELECT id, message_id::text, queue, actor, state, payload::text AS payload
FROM switchyard.job
WHERE message_id = ANY(%(message_ids)s::uuid[]);
