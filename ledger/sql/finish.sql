-- The way out of running. Every statement is guarded by id, token and state: a row not returned belongs to somebody else by now,
-- and what was to be written is dropped. last_token lets the holder recognise its own commit when the reply was lost; it is never
-- part of a guard (a repeated write would then overwrite the next attempt).
--
-- Rows are found by the array of ids, and the state stands inside a CASE, so that the planner has no other way. It would else take the
-- short index of running rows whenever the statistics say that hardly anything runs, and walk over all of it for each row of the
-- batch (measured: 400 us per job instead of 16), in the order of the leases and not of the ids.

-- name: finish_completed
-- A batch of jobs that ended well. Times are microseconds before now on the holder's monotonic clock: the database's clock is the clock.
UPDATE switchyard.job AS j
SET state = 'completed', result = f.result::json, token = NULL, last_token = j.token, lease_until = NULL, suspect = false,
    started_at = clock_timestamp() - make_interval(secs => f.started_us / 1e6),
    finished_at = clock_timestamp() - make_interval(secs => f.finished_us / 1e6),
    error_type = NULL, error = NULL, progress = CASE WHEN j.progress IS NULL THEN NULL ELSE 100 END
FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[], %(results)s::text[], %(started_us)s::bigint[], %(finished_us)s::bigint[])
    AS f (id, token, result, started_us, finished_us)
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.id = f.id AND j.token = f.token AND CASE WHEN j.state = 'running' THEN true END
RETURNING j.id;

-- name: lock_in_order
-- The rows of a batch that is written by more than one statement. They stay, so a replay that relies on one of them goes on.
SELECT id FROM switchyard.job WHERE id = ANY(%(ids)s::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: finish_otherwise
-- A batch of executions that ended in any other way: a retry, a dead letter, a cancellation, a snooze, a release. The history of
-- the execution is written with it. Whatever it was to be: if somebody asked the job to stop, it is cancelled (ADR 27). Returns the
-- outcome that was written beside the id, and of a cancelled job its message id, for what waits for it.
WITH f AS (
    SELECT *
    FROM unnest(
        %(ids)s::bigint[], %(tokens)s::uuid[], %(states)s::text[], %(outcomes)s::text[], %(delays)s::float8[],
        %(started_ages)s::float8[], %(finished_ages)s::float8[],
        %(error_types)s::text[], %(errors)s::text[], %(tracebacks)s::text[], %(dead_reasons)s::text[], %(kinds)s::text[]
    ) AS u (id, token, state, outcome, delay, started_age, finished_age, error_type, error, traceback, dead_reason, kind)
),
left_running AS (
    UPDATE switchyard.job AS j
    SET state = CASE WHEN j.cancel_requested_at IS NULL THEN f.state ELSE 'cancelled' END,
        token = NULL, last_token = j.token, lease_until = NULL, suspect = false,
        failures = j.failures + CASE WHEN f.outcome = 'failed' AND j.cancel_requested_at IS NULL THEN 1 ELSE 0 END,
        started_at = clock_timestamp() - make_interval(secs => f.started_age),
        finished_at = CASE
            WHEN f.state IN ('dead', 'cancelled') OR j.cancel_requested_at IS NOT NULL
                THEN clock_timestamp() - make_interval(secs => f.finished_age)
        END,
        run_at = CASE
            WHEN f.state IN ('retrying', 'scheduled', 'pending') AND j.cancel_requested_at IS NULL
                THEN clock_timestamp() + make_interval(secs => f.delay)
            ELSE j.run_at
        END,
        next_publish_at = CASE
            WHEN f.state IN ('retrying', 'scheduled', 'pending') AND j.cancel_requested_at IS NULL
                THEN clock_timestamp() + make_interval(secs => f.delay)
        END,
        error_type = coalesce(f.error_type, j.error_type), error = coalesce(f.error, j.error),
        dead_reason = CASE WHEN j.cancel_requested_at IS NULL THEN f.dead_reason END,
        fingerprint = CASE
            WHEN f.state = 'dead' AND j.cancel_requested_at IS NULL
                THEN switchyard.fingerprint(j.actor, f.dead_reason, f.error_type, f.kind)
        END
    FROM f
    WHERE j.id = ANY(%(ids)s::bigint[]) AND j.id = f.id AND j.token = f.token AND CASE WHEN j.state = 'running' THEN true END
    RETURNING
        j.id, j.generation, j.attempt, j.worker, j.started_at, f.finished_age, f.error_type, f.error, f.traceback,
        CASE WHEN j.cancel_requested_at IS NULL THEN f.outcome ELSE 'cancelled' END AS outcome,
        CASE WHEN j.state = 'cancelled' THEN j.message_id::text END AS cancelled
),
history AS (
    INSERT INTO switchyard.attempt (
        job_id, generation, attempt, worker, started_at, finished_at, outcome, error_type, error, traceback
    )
    SELECT
        id, generation, attempt, worker, started_at, clock_timestamp() - make_interval(secs => finished_age), outcome, error_type,
        error, traceback
    FROM left_running
)
SELECT id, outcome, cancelled FROM left_running;

-- name: release_unstarted
-- Claims that never started go back and leave no trace: not even the attempt's number is spent. Due at once, unless they were asked to
-- stop: then that is their end.
UPDATE switchyard.job AS j
SET state = CASE WHEN j.cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
    attempt = j.attempt - 1, token = NULL, last_token = j.token, lease_until = NULL, worker = NULL,
    next_publish_at = CASE WHEN j.cancel_requested_at IS NULL THEN clock_timestamp() END,
    finished_at = CASE WHEN j.cancel_requested_at IS NOT NULL THEN clock_timestamp() END
FROM unnest(%(ids)s::bigint[], %(tokens)s::uuid[]) AS f (id, token)
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.id = f.id AND j.token = f.token AND CASE WHEN j.state = 'running' THEN true END
RETURNING j.id, CASE WHEN j.state = 'cancelled' THEN j.message_id::text END AS cancelled;

-- name: own_commits
-- Of finishes that matched no row: which did we commit ourselves, before the connection was lost?
SELECT j.id
FROM switchyard.job AS j
JOIN unnest(%(ids)s::bigint[], %(tokens)s::uuid[]) AS f (id, token) ON j.id = f.id
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.last_token = f.token;
