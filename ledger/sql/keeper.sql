-- What must not be forgotten. SKIP LOCKED everywhere, so any number of keepers may run and none has to lead.
--
-- What is compared with an index stands as (SELECT clock_timestamp()): the bare function may answer otherwise for each row, so Postgres asks
-- it for each row, and walks over everything that is not due yet.
--
-- A row with a next_publish_at is of one of two kinds, and the index job_due begins with that:
--   0  due: published when the time has come, unasked. Scheduled and retrying rows; pending ones whose trigger is known not to be in
--      the broker (publish_count 0 or below: released, rescued, replayed, refused by the broker, put off, found lost); suspects and jobs
--      of unknown actors, which workers put off again and again.
--   1  sent: its trigger is, or was, in the broker. When the time has come the trigger is looked for (keeper/lost.py); found, the row
--      stays as it is, so that nobody writes a row to learn that a backlog is a backlog.

-- name: relay_due
-- Rows that are due: scheduled and retrying ones become pending, pending ones are offered again, each at the route of its queue (before any
-- worker declared one: at the caller's own broker). Read here and not by the caller, so that no keeper acts on a route of yesterday. The
-- next look is pushed back first (by a grace, doubling up to 15 min for those that are put off again and again; never for the Postgres
-- broker, whose row is the message); the caller publishes after the commit. Rows whose broker the caller cannot reach, or which refuses their
-- queue, stay untouched; they are walked past, so a caller that knows that it has seen all that was due more than `age` seconds ago leaves
-- that out (null: it looks at all). What is paused is parked instead, and not published: see control.sql. Beside each row: for how long the
-- last of them had been due, which is how far this look came.
WITH due AS MATERIALIZED (
    SELECT id, next_publish_at
    FROM switchyard.job AS j
    WHERE (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 0
        AND next_publish_at <= (SELECT coalesce(%(now)s, clock_timestamp()))
        AND next_publish_at >= (
            SELECT coalesce(coalesce(%(now)s, clock_timestamp()) - make_interval(secs => %(age)s::float8), '-infinity')
        )
        AND state IN ('scheduled', 'retrying', 'pending')
        AND coalesce(
            (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = j.queue),
            (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = '*'),
            %(own)s
        ) = ANY(%(reachable)s::text[])
        AND (
            cardinality(%(refused)s::text[]) = 0
            OR coalesce(
                (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = j.queue),
                (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = '*'),
                %(own)s
            ) || ' ' || j.queue <> ALL(%(refused)s::text[])
        )
    ORDER BY next_publish_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE switchyard.job AS j
SET state = 'pending',
    (broker, publish_count, wait_reason, wait_since, next_publish_at) = (
        SELECT
            goal.broker,
            CASE WHEN goal.paused THEN -abs(j.publish_count) ELSE abs(j.publish_count) + 1 END,
            CASE WHEN goal.paused THEN 'paused' ELSE j.wait_reason END,
            CASE WHEN goal.paused THEN clock_timestamp() ELSE j.wait_since END,
            CASE
                WHEN goal.paused THEN NULL
                WHEN goal.broker = ANY(%(carrying)s::text[])
                    THEN coalesce(%(now)s, clock_timestamp()) + make_interval(secs => CASE
                        WHEN j.suspect OR j.wait_reason IS NOT NULL THEN least(%(grace)s * 2 ^ least(abs(j.publish_count), 10), 900)
                        ELSE %(grace)s
                    END)
            END
        FROM (
            SELECT coalesce(
                (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = j.queue),
                (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = '*'),
                %(own)s
            ) AS broker,
            EXISTS (SELECT 1 FROM switchyard.pause) AND EXISTS (
                SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*')
            ) AS paused
        ) AS goal
    )
WHERE j.id = ANY(ARRAY(SELECT id FROM due))
RETURNING j.id, j.queue, j.actor, j.priority, j.broker, j.wait_reason IS NOT DISTINCT FROM 'paused' AS parked,
    (SELECT extract(epoch FROM coalesce(%(now)s, clock_timestamp()) - max(next_publish_at)) FROM due)::float8 AS reached;

-- name: next_due
-- When the relay has to wake up, and when a schedule of these actors is due, in seconds from now; null when nothing is.
SELECT
    extract(epoch FROM min(next_publish_at) - clock_timestamp())::float8 AS seconds,
    (
        SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8
        FROM switchyard.schedule
        WHERE due_at IS NOT NULL AND actor = ANY(%(actors)s::text[])
    ) AS tick
FROM switchyard.job
WHERE (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 0
    AND next_publish_at IS NOT NULL;

-- name: make_due
-- Triggers that did not reach the broker: the relay's turn, at once.
UPDATE switchyard.job
SET next_publish_at = clock_timestamp(), publish_count = -abs(publish_count)
WHERE id = ANY(%(ids)s::bigint[]) AND state = 'pending' AND next_publish_at IS NOT NULL;

-- name: look
-- What a sweep has to do: a probe of an index each, in one statement, so that a system at rest costs no more than that.
SELECT
    EXISTS (SELECT 1 FROM switchyard.job WHERE state = 'running' AND lease_until < (SELECT clock_timestamp())) AS lost,
    EXISTS (
        SELECT 1 FROM switchyard.job
        WHERE expires_at < (SELECT clock_timestamp()) AND state IN ('scheduled', 'pending', 'retrying')
    ) AS expired,
    EXISTS (SELECT 1 FROM switchyard.job WHERE wait_reason = 'unknown_actor') AS unknown,
    EXISTS (
        SELECT 1 FROM switchyard.job WHERE state = 'pending' AND broker = 'postgres' AND wait_reason IS DISTINCT FROM 'paused'
    ) AS waiting,
    EXISTS (SELECT 1 FROM switchyard.pause) AS paused,
    EXISTS (SELECT 1 FROM switchyard.job WHERE state = 'pending' AND wait_reason = 'paused') AS parked,
    EXISTS (SELECT 1 FROM switchyard.batch WHERE succeeded_at IS NULL AND waits_for IS NULL)
        OR EXISTS (SELECT 1 FROM switchyard.batch WHERE waits_for IS NOT NULL AND completed_at IS NULL) AS batches,
    EXISTS (SELECT 1 FROM switchyard.dead_notice) AS deaths,
    EXISTS (SELECT 1 FROM switchyard.job WHERE blocked_on > '' AND state = 'scheduled')
        OR EXISTS (SELECT 1 FROM switchyard.rule WHERE renewing) AS held,
    -- What the search for strays needs to know at every sweep.
    (SELECT coalesce(json_object_agg(queue, broker), '{}') FROM switchyard.route) AS routes;

-- name: expired_workers
-- Worker processes with claims past their lease, and whether the process is alive all the same (it gave up single jobs).
SELECT
    j.worker,
    coalesce(bool_or(w.beat_at > coalesce(%(now)s, clock_timestamp()) - make_interval(secs => w.lease_seconds)), false) AS alive
FROM switchyard.job AS j
LEFT JOIN switchyard.worker AS w ON w.id = j.worker
WHERE j.state = 'running' AND j.lease_until < (SELECT coalesce(%(now)s, clock_timestamp()))
GROUP BY j.worker;

-- name: rescue_worker
-- Take back the expired claims of one worker. Of a dead process all claims come back together, once the last lease has ended: if
-- one of them is a suspect that had started, it is held guilty and alone gains a loss; if none is, all become suspects, to be run
-- one at a time. The verdict may be wrong about a suspect that ran beside the real one, so what is known to have run with it becomes a
-- suspect too: the two never meet in one process again. A guilty job waits longer with each loss. A living process that lets go of a job
-- which had started lost hold of this very job: that is a loss at once. So it is for a job that may not be lost twice (max_lost 1) and
-- had started, whoever killed the process: it must not run again. It clears nobody else. What had not started is nobody's fault: a
-- claim, say, that was committed after its process had looked for it in vain. A job that was asked to stop has stopped: whatever the
-- verdict, it is cancelled.
WITH expired AS MATERIALIZED (
    SELECT
        j.id, coalesce(j.max_lost, %(max_lost)s) AS max_lost,
        (j.started_at IS NOT NULL AND (%(alive)s OR j.suspect)) AS culprit,
        (j.started_at IS NOT NULL AND (%(alive)s OR j.suspect OR coalesce(j.max_lost = 1, false))) AS guilty
    FROM switchyard.job AS j
    WHERE j.worker = %(worker)s AND j.state = 'running' AND j.lease_until < coalesce(%(now)s, clock_timestamp())
        AND (
            %(alive)s
            OR NOT EXISTS (
                SELECT 1
                FROM switchyard.job AS other
                WHERE other.worker = %(worker)s AND other.state = 'running'
                    AND other.lease_until >= coalesce(%(now)s, clock_timestamp())
            )
        )
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
),
verdict AS (
    SELECT id, guilty, max_lost, bool_or(culprit) OVER () AS found FROM expired
),
rescued AS (
    UPDATE switchyard.job AS j
    SET state = CASE
            WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled'
            WHEN v.guilty AND j.lost + 1 >= v.max_lost THEN 'dead'
            WHEN v.guilty THEN 'scheduled'
            ELSE 'pending'
        END,
        lost = j.lost + CASE WHEN v.guilty THEN 1 ELSE 0 END,
        suspect = CASE
            WHEN j.cancel_requested_at IS NOT NULL OR v.guilty AND j.lost + 1 >= v.max_lost THEN false
            WHEN %(alive)s THEN v.guilty OR j.suspect
            WHEN v.found THEN v.guilty OR j.suspect OR j.started_at IS NOT NULL
            ELSE true
        END,
        -- last_token says what a holder committed itself; a claim taken back was not, and its late holder has to learn that.
        token = NULL, last_token = NULL, lease_until = NULL,
        finished_at = CASE
            WHEN j.cancel_requested_at IS NOT NULL OR v.guilty AND j.lost + 1 >= v.max_lost THEN clock_timestamp()
        END,
        dead_reason = CASE
            WHEN j.cancel_requested_at IS NULL AND v.guilty AND j.lost + 1 >= v.max_lost THEN 'worker_lost'
        END,
        error_type = CASE WHEN v.guilty THEN 'WorkerLost' ELSE j.error_type END,
        error = CASE WHEN v.guilty THEN 'the worker process ' || %(worker)s || ' was lost while it ran this job' ELSE j.error END,
        run_at = CASE
            WHEN v.guilty THEN coalesce(%(now)s, clock_timestamp()) + make_interval(secs => %(backoff)s * 2 ^ j.lost)
            ELSE j.run_at
        END,
        next_publish_at = CASE
            WHEN j.cancel_requested_at IS NOT NULL OR v.guilty AND j.lost + 1 >= v.max_lost THEN NULL
            WHEN v.guilty THEN coalesce(%(now)s, clock_timestamp()) + make_interval(secs => %(backoff)s * 2 ^ j.lost)
            ELSE coalesce(%(now)s, clock_timestamp())
        END
    FROM verdict AS v
    WHERE j.id = v.id
    RETURNING j.id, j.message_id, j.generation, j.attempt, j.worker, j.started_at, j.state, j.lost, v.guilty
),
history AS (
    INSERT INTO switchyard.attempt (job_id, generation, attempt, worker, started_at, outcome, error_type, error)
    SELECT
        id, generation, attempt, worker, started_at, 'lost', 'WorkerLost',
        'the worker process ' || worker || ' was lost'
        || CASE WHEN guilty THEN '; this job was running' ELSE '; this job was held by it' END
    FROM rescued
)
SELECT id, state, lost, guilty, CASE WHEN state = 'cancelled' THEN message_id::text END AS cancelled FROM rescued;

-- name: expire
-- What waits and has outlived its max_age. A job that starts at this very moment is left to its worker, which looks as well.
UPDATE switchyard.job AS j
SET state = 'dead', dead_reason = 'expired', finished_at = clock_timestamp(), next_publish_at = NULL, suspect = false,
    wait_reason = NULL, wait_since = NULL, error_type = 'Expired',
    error = 'the job was not run within its max_age of ' || max_age / 1000 || ' s'
FROM (
    SELECT id
    FROM switchyard.job
    WHERE expires_at < (SELECT coalesce(%(now)s, clock_timestamp())) AND state IN ('scheduled', 'pending', 'retrying')
    ORDER BY expires_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) AS overdue
WHERE j.id = overdue.id
RETURNING j.id, j.actor;

-- name: rescue_lock
-- One rescuer per dead worker, so that the verdict sees all its claims.
SELECT pg_try_advisory_xact_lock(hashtext('switchyard.rescue'), hashtext(%(worker)s)) AS locked;

-- name: in_touch
-- For how many seconds the fleet's heartbeats have come without a pause (see `beat`); null: none came lately. No row: none ever did.
SELECT
    CASE
        WHEN due_at BETWEEN clock_timestamp() - make_interval(secs => %(lease)s::float8 * 0.6) AND clock_timestamp()
            THEN date_part('epoch', clock_timestamp()) - position / 1000.0
    END
FROM switchyard.duty
WHERE name = 'in touch';

-- name: settled_uptime
-- How long this Postgres has been up, in seconds: after an outage the living workers' heartbeats come first.
SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS seconds;

-- name: forget_workers
-- Rows of processes that died without a word, once nothing refers to them.
DELETE FROM switchyard.worker AS w
WHERE w.beat_at < clock_timestamp() - make_interval(secs => 10 * w.lease_seconds)
    AND NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.state = 'running' AND j.worker = w.id);

-- name: mark_unknown
-- Among the first thousand waiting rows of each queue of the Postgres broker, and the first thousand that a limit decides about: those whose
-- actor no living worker knows. A process of an older version does not say what it knows (null), so it may know any.
WITH living AS MATERIALIZED (
    SELECT queues, actors
    FROM switchyard.worker
    WHERE beat_at > clock_timestamp() - make_interval(secs => lease_seconds)
    GROUP BY queues, actors
),
strange AS MATERIALIZED (
    SELECT head.id
    FROM (SELECT DISTINCT unnest(queues) AS name FROM living) AS q
    CROSS JOIN (VALUES (false), (true)) AS l (limited)
    CROSS JOIN LATERAL (
        SELECT id, actor, wait_reason
        FROM switchyard.job
        WHERE queue = q.name AND NOT suspect AND limited = l.limited AND state = 'pending' AND broker = 'postgres'
            AND wait_reason IS DISTINCT FROM 'paused'
        ORDER BY priority, id
        LIMIT 1000
    ) AS head
    WHERE head.wait_reason IS DISTINCT FROM 'unknown_actor'
        AND NOT EXISTS (SELECT 1 FROM living AS l WHERE l.actors IS NULL OR head.actor = ANY(l.actors))
)
UPDATE switchyard.job AS j
SET wait_reason = 'unknown_actor', wait_since = clock_timestamp()
WHERE j.id = ANY(ARRAY(SELECT id FROM strange)) AND j.state = 'pending'
    AND (j.wait_reason IS NULL OR j.wait_reason IN ('rate_limit', 'concurrency'))
RETURNING j.queue, j.actor;

-- name: settle_unknown
-- Jobs that wait because nobody knew their actor, the oldest thousand. Is it known by now, they wait no longer for that, and their
-- triggers are due; were they unknown for too long, they are dead, unless there is nobody at all who could know anything.
WITH living AS MATERIALIZED (
    SELECT actors FROM switchyard.worker WHERE beat_at > clock_timestamp() - make_interval(secs => lease_seconds) GROUP BY actors
),
marked AS MATERIALIZED (
    SELECT
        m.id,
        m.wait_since < coalesce(%(now)s, clock_timestamp()) - make_interval(secs => %(after)s) AS overdue,
        EXISTS (SELECT 1 FROM living AS l WHERE l.actors IS NULL OR m.actor = ANY(l.actors)) AS known
    FROM (
        SELECT id, actor, wait_since
        FROM switchyard.job
        WHERE wait_reason = 'unknown_actor' AND state = 'pending'
        ORDER BY wait_since
        LIMIT 1000
    ) AS m
),
settled AS MATERIALIZED (
    SELECT j.id, m.known
    FROM switchyard.job AS j
    JOIN marked AS m ON m.id = j.id
    WHERE j.id = ANY(ARRAY(SELECT id FROM marked WHERE known OR (overdue AND EXISTS (SELECT 1 FROM living))))
        AND j.state = 'pending' AND j.wait_reason = 'unknown_actor'
    ORDER BY j.id
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE switchyard.job AS j
SET state = CASE WHEN s.known THEN 'pending' ELSE 'dead' END, wait_reason = NULL, wait_since = NULL,
    next_publish_at = CASE WHEN s.known AND j.next_publish_at IS NOT NULL THEN clock_timestamp() END,
    publish_count = -abs(j.publish_count),
    finished_at = CASE WHEN NOT s.known THEN clock_timestamp() END,
    dead_reason = CASE WHEN NOT s.known THEN 'unknown_actor' END,
    error_type = CASE WHEN s.known THEN j.error_type ELSE 'ActorNotFound' END,
    error = CASE WHEN s.known THEN j.error ELSE 'no worker knew the actor ' || quote_literal(j.actor) END
FROM settled AS s
WHERE j.id = ANY(ARRAY(SELECT id FROM settled)) AND j.id = s.id
RETURNING j.id, j.actor, s.known;

-- name: leave_lines
-- Turns for a slot that nobody takes, since nobody knows the actor: they hold up whoever is behind them. They leave the line, and with
-- them those of the same actors that wait there, the next thousand of each; all are found as soon as somebody knows them. Returns the
-- keys, whose waiters the caller wakes.
WITH turns AS MATERIALIZED (
    SELECT id, blocked_on, actor
    FROM switchyard.job
    WHERE state = 'pending' AND blocked_on IS NOT NULL AND wait_reason = 'unknown_actor'
    FOR UPDATE SKIP LOCKED
),
behind AS MATERIALIZED (
    SELECT w.id
    FROM (SELECT DISTINCT blocked_on, actor FROM turns) AS t
    CROSS JOIN LATERAL (
        SELECT j.id
        FROM switchyard.job AS j
        WHERE j.blocked_on = t.blocked_on AND j.state = 'scheduled' AND j.actor = t.actor
        ORDER BY j.priority, j.line, j.id
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ) AS w
),
gone AS (
    UPDATE switchyard.job AS j
    SET state = 'pending', blocked_on = NULL, line = NULL, wait_reason = 'unknown_actor',
        wait_since = CASE WHEN j.state = 'pending' THEN j.wait_since ELSE clock_timestamp() END,
        run_at = CASE WHEN j.state = 'pending' THEN j.run_at ELSE clock_timestamp() END,
        next_publish_at = CASE WHEN j.state = 'pending' THEN j.next_publish_at ELSE clock_timestamp() END
    WHERE j.id = ANY(ARRAY(SELECT id FROM turns UNION ALL SELECT id FROM behind))
    RETURNING j.id
)
SELECT DISTINCT blocked_on FROM turns ORDER BY blocked_on;
