-- Schedules: jobs that come by the clock.
--
--   schedule               what comes when; next_tick_at is the first tick that nobody has dealt with, due_at when its job is made
--   tick                   the ticks that were dealt with: written in the same transaction as the job, under a key of its own, so that a tick
--                          makes one job however many processes are at it, and none again after the job is pruned
--   schedule_declaration   the schedules that stand in code, as living processes declare them. Which of them counts follows the rule of
--                          route.sql: of those alive the one that entered last. Processes of an old version change nothing by saying
--                          what they say, and when nobody declares a schedule any more it retires.
--
-- When a tick is cannot be said in SQL, so what depends on it is read, worked out, and written guarded by the version that was read.

-- name: due_schedules
-- Schedules whose tick is due and whose actor the caller knows; the rows stay locked until what follows from it is written.
SELECT
    name, actor, queue, payload, options, expression, timezone, catch_up, window_seconds, jitter_seconds, next_tick_at,
    coalesce(%(now)s, clock_timestamp())
FROM switchyard.schedule
WHERE due_at <= coalesce(%(now)s, clock_timestamp()) AND actor = ANY(%(actors)s::text[])
ORDER BY due_at
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: take_tick
-- The right to make a tick's job. No row: somebody else did, or is about to commit that they did.
INSERT INTO switchyard.tick (tick_at, schedule, message_id)
VALUES (%(tick_at)s, %(schedule)s, %(message_id)s)
ON CONFLICT (tick_at, schedule) DO NOTHING
RETURNING message_id;

-- name: note_tick
-- What became of a tick that was taken: the job that stands for it, or why there is none.
UPDATE switchyard.tick SET message_id = %(message_id)s, error = %(error)s
WHERE tick_at = %(tick_at)s AND schedule = %(schedule)s
RETURNING message_id;

-- name: tick_job
-- Which job a tick has.
SELECT message_id::text FROM switchyard.tick WHERE tick_at = %(tick_at)s AND schedule = %(schedule)s;

-- name: pass_schedules
-- What was due was dealt with; the rows are locked.
UPDATE switchyard.schedule AS s
SET last_tick_at = coalesce(u.last_tick_at, s.last_tick_at), next_tick_at = u.next_tick_at, due_at = u.due_at, error = u.error
FROM unnest(
    %(names)s::text[], %(lasts)s::timestamptz[], %(nexts)s::timestamptz[], %(dues)s::timestamptz[], %(errors)s::text[]
) AS u (name, last_tick_at, next_tick_at, due_at, error)
WHERE s.name = u.name;

-- name: until_next_tick
-- Seconds until a schedule of these actors is due; null: none is.
SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8
FROM switchyard.schedule
WHERE due_at IS NOT NULL AND actor = ANY(%(actors)s::text[]);

-- name: forget_ticks
-- Ticks of long ago. None of them comes again: a schedule only goes forward.
DELETE FROM switchyard.tick AS t
WHERE (t.tick_at, t.schedule) IN (
    SELECT tick_at, schedule
    FROM switchyard.tick
    WHERE tick_at < (SELECT coalesce(%(now)s, clock_timestamp()) - make_interval(secs => %(keep)s))
    ORDER BY tick_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
);

-- name: declare_schedules
-- What a process has in its code; see declare_routes.
INSERT INTO switchyard.schedule_declaration AS d (name, digest, definition, entered_at, until)
SELECT
    u.name, u.digest, u.definition::json,
    greatest(t.now, (SELECT max(e.entered_at) + interval '1 us' FROM switchyard.schedule_declaration AS e WHERE e.name = u.name)),
    t.now + make_interval(secs => %(lease)s)
FROM unnest(%(names)s::text[], %(digests)s::text[], %(definitions)s::text[]) AS u (name, digest, definition)
CROSS JOIN (SELECT coalesce(%(now)s, clock_timestamp())) AS t (now)
ORDER BY u.name
ON CONFLICT (name, digest) DO UPDATE
SET entered_at = CASE
        WHEN %(entering)s AND d.until < coalesce(%(now)s, clock_timestamp()) THEN excluded.entered_at
        ELSE d.entered_at
    END,
    until = greatest(d.until, excluded.until)
WHERE d.until < coalesce(%(now)s, clock_timestamp()) + make_interval(secs => %(lease)s * 5 / 6);

-- name: unsettled_schedules
-- Declarations that count and that their schedules do not follow yet; see settle_routes.
WITH winner AS (
    SELECT DISTINCT ON (d.name) d.name, d.digest, d.definition, d.entered_at
    FROM switchyard.schedule_declaration AS d
    WHERE d.until >= coalesce(%(now)s, clock_timestamp())
    ORDER BY d.name, d.entered_at DESC, d.digest
)
SELECT
    w.name, w.digest, w.definition, s.source, s.version, s.expression, s.timezone, s.jitter_seconds, s.next_tick_at, s.last_tick_at,
    s.paused_at IS NOT NULL, coalesce(%(now)s, clock_timestamp())
FROM winner AS w
LEFT JOIN switchyard.schedule AS s ON s.name = w.name
LEFT JOIN switchyard.schedule_declaration AS present ON present.name = s.name AND present.digest = s.digest
WHERE s.name IS NULL OR s.source <> 'declared' OR s.retired_at IS NOT NULL
    OR (s.digest <> w.digest AND (%(settled)s OR present.entered_at IS NULL OR w.entered_at > present.entered_at))
ORDER BY w.name;

-- name: settle_schedule
-- A schedule becomes what its declaration says, unless somebody was faster.
INSERT INTO switchyard.schedule AS s (
    name, actor, payload, expression, timezone, catch_up, window_seconds, jitter_seconds, source, digest, version, next_tick_at, due_at
)
VALUES (
    %(name)s, %(actor)s, %(payload)s, %(expression)s, %(timezone)s, %(catch_up)s, %(window)s, %(jitter)s, 'declared', %(digest)s,
    %(version)s + 1, %(next_tick_at)s, %(due_at)s
)
ON CONFLICT (name) DO UPDATE
SET actor = excluded.actor, payload = excluded.payload, expression = excluded.expression, timezone = excluded.timezone,
    catch_up = excluded.catch_up, window_seconds = excluded.window_seconds, jitter_seconds = excluded.jitter_seconds,
    digest = excluded.digest, version = excluded.version, next_tick_at = excluded.next_tick_at, due_at = excluded.due_at,
    retired_at = NULL, changed_at = clock_timestamp()
WHERE s.version = excluded.version - 1 AND s.source = 'declared'
RETURNING name;

-- name: retire_schedules
-- What no living process declares any more; for settled processes alone, as expire_routes.
UPDATE switchyard.schedule AS s
SET retired_at = coalesce(%(now)s, clock_timestamp()), due_at = NULL, version = version + 1
WHERE s.source = 'declared' AND s.retired_at IS NULL
    AND NOT EXISTS (
        SELECT 1 FROM switchyard.schedule_declaration AS d WHERE d.name = s.name AND d.until >= coalesce(%(now)s, clock_timestamp())
    )
RETURNING name;

-- name: forget_schedules
-- What retired long ago, and declarations whose order nobody will ask for again.
WITH declarations AS (
    DELETE FROM switchyard.schedule_declaration WHERE until < clock_timestamp() - make_interval(secs => %(keep)s)
)
DELETE FROM switchyard.schedule WHERE retired_at < clock_timestamp() - make_interval(secs => %(keep)s);

-- name: read_schedules
-- Schedules by name: all of them, or one.
SELECT
    name, actor, queue, payload, options, expression, timezone, catch_up, window_seconds, jitter_seconds, source, version, paused_at,
    retired_at, last_tick_at, next_tick_at, due_at, error, created_at, changed_at, clock_timestamp()
FROM switchyard.schedule
WHERE %(name)s::text IS NULL OR name = %(name)s
ORDER BY name;

-- name: read_ticks
-- The latest ticks of a schedule, with what became of their jobs; of a job that was pruned only its id is left.
SELECT t.tick_at, t.made_at, t.message_id::text, t.error, j.state
FROM switchyard.tick AS t
LEFT JOIN switchyard.job AS j ON j.message_id = t.message_id
WHERE t.schedule = %(name)s
ORDER BY t.tick_at DESC
LIMIT %(limit)s;

-- name: schedule_clock
-- The clock by which ticks come.
SELECT clock_timestamp();

-- name: create_schedule
-- A schedule that somebody makes; no row: there is one of this name.
INSERT INTO switchyard.schedule (
    name, actor, queue, payload, options, expression, timezone, catch_up, window_seconds, jitter_seconds, source, next_tick_at, due_at
)
VALUES (
    %(name)s, %(actor)s, %(queue)s, %(payload)s, %(options)s, %(expression)s, %(timezone)s, %(catch_up)s, %(window)s, %(jitter)s, 'created',
    %(next_tick_at)s, %(due_at)s
)
ON CONFLICT (name) DO NOTHING
RETURNING name;

-- name: update_schedule
-- A schedule that somebody made becomes another one, if it is still what it was.
UPDATE switchyard.schedule
SET actor = %(actor)s, queue = %(queue)s, payload = %(payload)s, options = %(options)s, expression = %(expression)s,
    timezone = %(timezone)s, catch_up = %(catch_up)s, window_seconds = %(window)s, jitter_seconds = %(jitter)s,
    next_tick_at = %(next_tick_at)s, due_at = CASE WHEN paused_at IS NULL THEN %(due_at)s::timestamptz END, error = NULL,
    version = version + 1, changed_at = clock_timestamp()
WHERE name = %(name)s AND version = %(version)s AND source = 'created'
RETURNING name;

-- name: delete_schedule
-- What somebody made, somebody may remove, and what nobody declares any more. Its ticks stay for a while, so that none of them is made
-- twice under the same name.
DELETE FROM switchyard.schedule WHERE name = %(name)s AND (source = 'created' OR retired_at IS NOT NULL) RETURNING name;

-- name: pause_schedule
-- Nothing comes of it until it is resumed.
UPDATE switchyard.schedule
SET paused_at = clock_timestamp(), due_at = NULL, version = version + 1, changed_at = clock_timestamp()
WHERE name = %(name)s AND paused_at IS NULL
RETURNING name;

-- name: resume_schedule
-- It goes on with the first tick from now on, if it is still what it was.
UPDATE switchyard.schedule
SET paused_at = NULL, next_tick_at = %(next_tick_at)s, due_at = CASE WHEN retired_at IS NULL THEN %(due_at)s::timestamptz END,
    error = NULL, version = version + 1, changed_at = clock_timestamp()
WHERE name = %(name)s AND version = %(version)s AND paused_at IS NOT NULL
RETURNING name;
