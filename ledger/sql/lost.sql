-- Triggers that were sent and are no longer in their broker; see docs/adr/0021-lost-triggers.md. Moments are seconds since 1970.

-- name: watch
-- Look for lost triggers in a broker for the next seconds, unless another keeper does. It is only about saving work: two that look
-- at once find the same, and the row's own state decides who makes it due. A keeper that dies is replaced when its time is over.
-- With it comes what each sweep needs: the time, the queues of living workers, whether any trigger is on its way at all (a probe of the
-- index), and what is known of the broker's epochs, a row each (null where there are none).
WITH watching AS (
    INSERT INTO switchyard.watch AS w (broker, keeper, until)
    VALUES (%(broker)s, %(keeper)s, clock_timestamp() + make_interval(secs => %(seconds)s))
    ON CONFLICT (broker) DO UPDATE
    SET keeper = excluded.keeper, until = excluded.until
    WHERE w.keeper = excluded.keeper OR w.until < clock_timestamp()
    RETURNING w.broker, extract(epoch FROM clock_timestamp())::float8 AS now
)
SELECT
    w.now,
    ARRAY(
        SELECT DISTINCT q.queue
        FROM switchyard.worker AS l
        CROSS JOIN unnest(l.queues) AS q (queue)
        WHERE l.beat_at > clock_timestamp() - make_interval(secs => l.lease_seconds)
    ) AS queues,
    EXISTS (
        SELECT 1
        FROM switchyard.job
        WHERE (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 1 AND next_publish_at IS NOT NULL
    ) AS sent,
    e.queue, e.value, extract(epoch FROM e.lost_before)::float8 AS lost_before
FROM watching AS w
LEFT JOIN switchyard.epoch AS e ON e.broker = w.broker;

-- name: watching_keepers
-- Who looks for lost triggers, by broker.
SELECT broker, keeper FROM switchyard.watch WHERE until > clock_timestamp();

-- name: known_epochs
-- What the ledger knows of a broker's epochs, and since when triggers of an earlier one wait to be made due.
SELECT queue, value, extract(epoch FROM lost_before)::float8 AS lost_before FROM switchyard.epoch WHERE broker = %(broker)s;

-- name: change_epoch
-- The broker has another epoch than the ledger: know it, and that everything published until now is lost. Guarded by what the ledger
-- knew, so that of many keepers one does it. The first epoch ever tells nothing about what was before it.
INSERT INTO switchyard.epoch AS e (broker, queue, value)
VALUES (%(broker)s, %(queue)s, %(value)s)
ON CONFLICT (broker, queue) DO UPDATE
SET value = excluded.value, changed_at = clock_timestamp(), lost_before = clock_timestamp()
WHERE e.value = %(known)s
RETURNING extract(epoch FROM lost_before)::float8 AS lost_before;

-- name: epoch_due
-- Rows that were sent before their broker's present epoch: due, a chunk at a time.
UPDATE switchyard.job AS j
SET next_publish_at = clock_timestamp(), publish_count = -abs(j.publish_count)
FROM (
    SELECT id
    FROM switchyard.job
    WHERE (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 1
        AND next_publish_at < to_timestamp(%(lost_before)s) + make_interval(secs => %(grace)s)
        AND broker = %(broker)s AND (queue = %(queue)s OR %(queue)s = '')
    ORDER BY next_publish_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) AS lost
WHERE j.id = lost.id
RETURNING j.id;

-- name: epoch_done
-- All of them are due.
UPDATE switchyard.epoch
SET lost_before = NULL
WHERE broker = %(broker)s AND queue = %(queue)s AND lost_before <= to_timestamp(%(lost_before)s);

-- name: sent_rows
-- Rows that were sent and whose time has come by `upto`, in the order of that time alone: the index gives it, and with the id beside it the
-- whole backlog would be sorted for each chunk. Reads only.
SELECT id, queue, actor, priority, extract(epoch FROM next_publish_at)::float8 AS look_at
FROM switchyard.job
WHERE (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 1
    AND next_publish_at > to_timestamp(%(after)s) AND next_publish_at <= to_timestamp(%(upto)s)
    AND broker = %(broker)s
ORDER BY next_publish_at
LIMIT %(limit)s;

-- name: sent_groups
-- In which queues, and with which priorities, rows were sent whose time comes between two moments.
SELECT DISTINCT queue, priority
FROM switchyard.job
WHERE (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 1
    AND next_publish_at > to_timestamp(%(after)s) AND next_publish_at <= to_timestamp(%(upto)s) AND broker = %(broker)s;

-- name: lost_due
-- Rows whose trigger is gone: due, unless that changed since they were looked at.
UPDATE switchyard.job
SET next_publish_at = clock_timestamp(), publish_count = -abs(publish_count)
WHERE id = ANY(%(ids)s::bigint[]) AND next_publish_at <= to_timestamp(%(upto)s)
    AND (state = 'pending' AND publish_count > 0 AND NOT suspect AND wait_reason IS NULL)::int = 1
RETURNING id;

-- name: marks
-- How far the receivers of a broker's queues have come.
SELECT queue, band, extract(epoch FROM at)::float8 AS at FROM switchyard.mark WHERE broker = %(broker)s;

-- name: record_marks
-- A receiver got these marks. One from the future is forged, and taken for one of now.
INSERT INTO switchyard.mark AS m (broker, queue, band, at)
SELECT %(broker)s, u.queue, u.band, least(to_timestamp(max(u.at)), clock_timestamp())
FROM unnest(%(queues)s::text[], %(bands)s::int[], %(ats)s::float8[]) AS u (queue, band, at)
GROUP BY u.queue, u.band
ORDER BY u.queue, u.band
ON CONFLICT (broker, queue, band) DO UPDATE SET at = greatest(m.at, excluded.at);
