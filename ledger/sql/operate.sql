-- What people ask for: Dramatiq's own flush, join and results. What stops or changes jobs on their way: control.sql; replays: dead.sql.

-- name: flush_queue
-- Dramatiq's flush: everything waiting in a queue is cancelled, locked in id order. Some of it may have had its turn for a slot.
WITH waiting AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE queue = ANY(%(queues)s::text[]) AND state IN ('scheduled', 'pending', 'retrying')
    ORDER BY id
    FOR UPDATE
)
UPDATE switchyard.job
SET state = 'cancelled', finished_at = clock_timestamp(), next_publish_at = NULL, wait_reason = NULL, wait_since = NULL
WHERE id = ANY(ARRAY(SELECT id FROM waiting))
RETURNING id, message_id::text, blocked_on IS NOT NULL;

-- name: active_count
-- Dramatiq's join: how much of a queue has not ended. A step that waits for another one is no part of it yet.
SELECT count(*) AS active
FROM switchyard.job
WHERE queue = %(queue)s AND state IN ('scheduled', 'pending', 'retrying', 'running') AND wait_reason IS DISTINCT FROM 'upstream';

-- name: result
-- What get_result needs to know.
SELECT state, result, error_type, error, wait_reason FROM switchyard.job WHERE message_id = %(message_id)s;
