-- What people ask for: replay, and Dramatiq's own flush, join and results. What stops or changes jobs on their way: control.sql.

-- name: replay
-- A dead or cancelled job begins a new generation: same id, counters at zero, history kept. Due at once.
UPDATE switchyard.job
SET state = 'pending', generation = generation + 1, attempt = 0, failures = 0, lost = 0, suspect = false,
    finished_at = NULL, started_at = NULL, dead_reason = NULL, worker = NULL, progress = NULL, stage = NULL,
    cancel_requested_at = NULL, wait_reason = NULL, wait_since = NULL, publish_count = 0, run_at = clock_timestamp(), next_publish_at = clock_timestamp(),
    expires_at = clock_timestamp() + make_interval(secs => max_age / 1000)
WHERE message_id = %(message_id)s AND state IN ('dead', 'cancelled')
RETURNING id;

-- name: flush_queue
-- Dramatiq's flush: everything waiting in a queue is cancelled.
UPDATE switchyard.job
SET state = 'cancelled', finished_at = clock_timestamp(), next_publish_at = NULL, wait_reason = NULL, wait_since = NULL
WHERE queue = ANY(%(queues)s::text[]) AND state IN ('scheduled', 'pending', 'retrying');

-- name: active_count
-- Dramatiq's join: how much of a queue has not ended. A step that waits for another one is no part of it yet.
SELECT count(*) AS active
FROM switchyard.job
WHERE queue = %(queue)s AND state IN ('scheduled', 'pending', 'retrying', 'running') AND wait_reason IS DISTINCT FROM 'upstream';

-- name: result
-- What get_result needs to know.
SELECT state, result, error_type, error, wait_reason FROM switchyard.job WHERE message_id = %(message_id)s;
