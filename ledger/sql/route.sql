-- Which broker the triggers of each queue go to. Processes declare what their settings say, and the value that entered last is the route:
--
--   entered      a starting process declares a value that no living process declares
--   alive        declared within a lease; what is not alive counts for nothing
--   route        of the values alive the one that entered last
--
-- So a switch wins with its first process, the processes of the old fleet change nothing however often they say what they say, and once
-- nobody declares the new value for a lease the old one is the route again. Every statement may be repeated, by any number at once.

-- name: declare_routes
-- What a process has in its settings. entering: it has just started; whoever only goes on after an outage of Postgres enters nothing.
-- Within the first sixth of a lease there is nothing to write.
INSERT INTO switchyard.declaration AS d (queue, broker, entered_at, until)
SELECT
    u.queue, u.broker,
    -- Later than all before it, also on the clock of another server after a failover.
    greatest(t.now, (SELECT max(e.entered_at) + interval '1 us' FROM switchyard.declaration AS e WHERE e.queue = u.queue)),
    t.now + make_interval(secs => %(lease)s)
FROM unnest(%(queues)s::text[], %(brokers)s::text[]) AS u (queue, broker)
CROSS JOIN (SELECT coalesce(%(now)s, clock_timestamp())) AS t (now)
ORDER BY u.queue
ON CONFLICT (queue, broker) DO UPDATE
SET entered_at = CASE
        WHEN %(entering)s AND d.until < coalesce(%(now)s, clock_timestamp()) THEN excluded.entered_at
        ELSE d.entered_at
    END,
    until = greatest(d.until, excluded.until)
WHERE d.until < coalesce(%(now)s, clock_timestamp()) + make_interval(secs => %(lease)s * 5 / 6);

-- name: settle_routes
-- Let the value that entered last be the route. Taking the place of one that entered later, because nobody declares that any more, is for
-- processes alone that have been connected for a lease (settled): after an outage nobody seems alive but who comes first. The version
-- guards against a rival's decision in between. While an operator's decision stands, what it went against does not count; once a living
-- process declares what was decided for, it is a route like any other.
WITH winner AS (
    SELECT DISTINCT ON (d.queue) d.queue, d.broker, d.entered_at
    FROM switchyard.declaration AS d
    LEFT JOIN switchyard.route AS r ON r.queue = d.queue
    WHERE d.until >= coalesce(%(now)s, clock_timestamp()) AND NOT (d.broker = ANY(coalesce(r.overruled, '{}')))
    ORDER BY d.queue, d.entered_at DESC, d.broker
)
INSERT INTO switchyard.route AS r (queue, broker, version, changed_at)
SELECT w.queue, w.broker, coalesce(now.version, 0) + 1, coalesce(%(now)s, clock_timestamp())
FROM winner AS w
LEFT JOIN switchyard.route AS now ON now.queue = w.queue
LEFT JOIN switchyard.declaration AS present ON present.queue = now.queue AND present.broker = now.broker
WHERE now.queue IS NULL OR (now.broker = w.broker AND now.overruled <> '{}')
    OR (now.broker <> w.broker AND (%(settled)s OR present.entered_at IS NULL OR w.entered_at > present.entered_at))
ORDER BY w.queue
ON CONFLICT (queue) DO UPDATE
SET broker = excluded.broker, version = excluded.version, overruled = '{}',
    changed_at = CASE WHEN r.broker = excluded.broker THEN r.changed_at ELSE excluded.changed_at END
WHERE r.version = excluded.version - 1
RETURNING queue, broker;

-- name: expire_routes
-- A queue that no living process names any more has the broker of the rest again. For settled processes alone, as above.
DELETE FROM switchyard.route AS r
WHERE r.queue <> '*' AND r.overruled = '{}'
    AND NOT EXISTS (
        SELECT 1 FROM switchyard.declaration AS d WHERE d.queue = r.queue AND d.until >= coalesce(%(now)s, clock_timestamp())
    )
RETURNING queue, broker;

-- name: forget_declarations
-- What was declared long ago, by processes whose order of coming nobody will ask for again.
DELETE FROM switchyard.declaration WHERE until < clock_timestamp() - interval '1 day';

-- name: routes
-- The routes there are.
SELECT queue, broker, version, overruled, changed_at FROM switchyard.route ORDER BY queue;

-- name: decide_route
-- An operator's word: from now on the queue's broker is this one. What it was, and whatever else living processes declare, is overruled.
-- The version is the one that was seen: whoever changed the route in between is not overwritten (no row back).
INSERT INTO switchyard.route AS r (queue, broker, version, overruled)
SELECT
    %(queue)s, %(broker)s, %(version)s + 1,
    ARRAY(
        SELECT other
        FROM (
            SELECT %(old)s::text AS other
            UNION
            SELECT d.broker FROM switchyard.declaration AS d WHERE d.queue = %(queue)s AND d.until >= clock_timestamp()
        ) AS others
        WHERE other <> %(broker)s
        ORDER BY other
    )
ON CONFLICT (queue) DO UPDATE
SET broker = excluded.broker, version = excluded.version, overruled = excluded.overruled, changed_at = clock_timestamp()
WHERE r.version = %(version)s
RETURNING queue;

-- name: enter_decided
-- With it, what was decided for counts as the last that entered, so that it holds when processes declare it, now or later. What was said
-- for it before counts no more: those who live say it again within a lease, and those who have just ended would otherwise make of the
-- decision a route like any other, which ends with what is left of their lease.
INSERT INTO switchyard.declaration AS d (queue, broker, entered_at, until)
SELECT
    %(queue)s, %(broker)s,
    greatest(
        clock_timestamp(), (SELECT max(e.entered_at) + interval '1 us' FROM switchyard.declaration AS e WHERE e.queue = %(queue)s)
    ),
    clock_timestamp() - interval '1 s'
ON CONFLICT (queue, broker) DO UPDATE SET entered_at = excluded.entered_at, until = least(d.until, excluded.until);

-- name: pending_places
-- Which queues have pending rows last published to which broker: one index probe for each pair, however many rows there are. What is
-- parked lies nowhere.
WITH RECURSIVE carried AS (
    (
        SELECT broker, queue
        FROM switchyard.job
        WHERE state = 'pending' AND broker <> 'postgres' AND wait_reason IS DISTINCT FROM 'paused'
        ORDER BY broker, queue
        LIMIT 1
    )
    UNION ALL
    SELECT following.broker, following.queue
    FROM carried AS c
    CROSS JOIN LATERAL (
        SELECT j.broker, j.queue
        FROM switchyard.job AS j
        WHERE j.state = 'pending' AND j.broker <> 'postgres' AND j.wait_reason IS DISTINCT FROM 'paused'
            AND (j.broker, j.queue) > (c.broker, c.queue)
        ORDER BY j.broker, j.queue
        LIMIT 1
    ) AS following
),
kept AS (
    (
        SELECT queue
        FROM switchyard.job
        WHERE state = 'pending' AND broker = 'postgres' AND wait_reason IS DISTINCT FROM 'paused'
        ORDER BY queue
        LIMIT 1
    )
    UNION ALL
    SELECT following.queue
    FROM kept AS k
    CROSS JOIN LATERAL (
        SELECT j.queue
        FROM switchyard.job AS j
        WHERE j.state = 'pending' AND j.broker = 'postgres' AND j.wait_reason IS DISTINCT FROM 'paused' AND j.queue > k.queue
        ORDER BY j.queue
        LIMIT 1
    ) AS following
)
SELECT broker, queue FROM carried UNION ALL SELECT 'postgres', queue FROM kept;

-- name: move_pending
-- Pending rows of one queue, last published to one broker, go to the queue's route, if that is still what the caller takes it for. The
-- caller publishes after the commit; should it die in between, the trigger is found missing after the grace. The triggers they leave behind are
-- harmless: the claim refuses what is not pending. Rows locked by another statement are skipped.
WITH kept AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE state = 'pending' AND broker = 'postgres' AND %(broker)s = 'postgres' AND queue = %(queue)s
        AND wait_reason IS DISTINCT FROM 'paused'
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
),
carried AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE state = 'pending' AND broker <> 'postgres' AND broker = %(broker)s AND queue = %(queue)s
        AND wait_reason IS DISTINCT FROM 'paused'
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE switchyard.job AS j
SET broker = %(to)s, publish_count = 1,
    next_publish_at = CASE WHEN %(carries)s THEN clock_timestamp() + make_interval(secs => %(grace)s) END
WHERE j.id = ANY(ARRAY(SELECT id FROM kept UNION ALL SELECT id FROM carried))
    AND %(to)s = coalesce(
        (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = %(queue)s),
        (SELECT r.broker FROM switchyard.route AS r WHERE r.queue = '*')
    )
RETURNING j.id, j.queue, j.actor, j.priority, j.broker;

-- name: reroute
-- Rows that a sender has just written for a broker that is their queue's no more, as move_pending.
UPDATE switchyard.job AS j
SET broker = %(to)s, publish_count = 1,
    next_publish_at = CASE WHEN %(carries)s THEN clock_timestamp() + make_interval(secs => %(grace)s) END
WHERE j.id = ANY(%(ids)s::bigint[]) AND j.state = 'pending' AND j.broker <> %(to)s AND j.wait_reason IS DISTINCT FROM 'paused'
RETURNING j.id, j.queue, j.actor, j.priority, j.broker;

-- name: pending_by_broker
-- Per broker: how many pending rows were last published to it, and for how many seconds the oldest of them could have run. The two
-- halves are what the partial indexes hold.
SELECT broker, count(*), extract(epoch FROM clock_timestamp() - min(run_at))::float8
FROM (
    SELECT broker, run_at FROM switchyard.job WHERE state = 'pending' AND broker <> 'postgres' AND wait_reason IS DISTINCT FROM 'paused'
    UNION ALL
    SELECT broker, run_at FROM switchyard.job WHERE state = 'pending' AND broker = 'postgres' AND wait_reason IS DISTINCT FROM 'paused'
) AS waiting
GROUP BY broker;

-- name: pending_at
-- How many pending rows of some queues were last published to one broker.
SELECT count(*)
FROM switchyard.job
WHERE state = 'pending' AND queue = ANY(%(queues)s::text[]) AND broker = %(broker)s AND wait_reason IS DISTINCT FROM 'paused';

-- name: broker_users
-- What the living workers declare and consume.
SELECT queues, routes, consumes
FROM switchyard.worker
WHERE beat_at > clock_timestamp() - make_interval(secs => lease_seconds);

-- name: epochs
-- Which life of each broker, or of each of its queues, the ledger's rows were published to.
SELECT broker, queue, value FROM switchyard.epoch ORDER BY broker, queue;
