-- Limits: how often jobs may start (rate), and how many may run at once (slots, of an actor's key or of a queue). See
-- docs/adr/0026-limits.md. A job that a limit counts is `limited`; so is every job of a queue that has one. The plain claims pass those by,
-- and `admit` decides about them, in one step inside the server, so that no client ever holds a gate while it hangs.
--
--   rule   what is allowed: what the code declares, and what an operator made of it. The version tells old reservations from new ones
--   gate   one row per key that was asked for: whoever decides about a key holds its row
--            kind rate   tat: when the bucket is full again, after all that was admitted. tail: the same after all that was promised a
--                        slot besides. shift: by how many seconds all of these come later than they were promised, since somebody was late
--            kind slot   clock: the tag of the waiter that was woken last
--   line   a waiter's tag: they are woken in this order, the best priority first. Tags of one flow (fair_key) are 1/weight apart
--
-- Locks are taken in one order: rows of jobs, then gates of rates, then gates of slots, each kind by key. Nobody who holds a gate waits for
-- a row of a job.

-- name: admit_function
-- Look at the first limited jobs of a queue, by priority and age, and decide about each: it runs (for `idle` threads), it is promised a
-- slot of time, or it joins a line. What may run and finds no thread stays as it is, and so does everything behind it under the same limit.
-- A turn for a slot whose holder has to wait for something else is passed on at once.
-- more: something was left that may run. soonest: seconds until the first slot that was promised.
CREATE OR REPLACE FUNCTION switchyard.admit(
    of_queue text, known text[], by_worker text, by_token uuid, lease double precision, suspects boolean, idle integer,
    examine integer, at timestamptz, OUT ids bigint[], OUT more boolean, OUT soonest double precision
) LANGUAGE plpgsql AS $$
DECLARE
    queue_key CONSTANT text := 'queue:' || of_queue;
    queue_limit integer;
    moment timestamptz;
    jobs bigint[];
    -- Of each job: where its gates are, its cost, what it waited for, under which version it was promised a slot, and for when.
    job_rate integer[];
    job_slot integer[];
    job_cost integer[];
    job_line text[];
    job_promise bigint[];
    job_place double precision[];
    rates text[];
    spacing double precision[];
    bursts integer[];
    versions bigint[];
    fulls double precision[];
    tails double precision[];
    shifts double precision[];
    rate_left boolean[];
    slots text[];
    slot_limit integer[];
    used integer[];
    lined boolean[];
    turned boolean[];
    slot_left boolean[];
    queue_at integer;
    blocked_ids bigint[] := '{}';
    blocked_keys text[] := '{}';
    promised_ids bigint[] := '{}';
    promised_slots double precision[] := '{}';
    promised_places double precision[] := '{}';
    promised_versions bigint[] := '{}';
    passed_on text[] := '{}';
    r integer;
    s integer;
    blocked integer;
    cost double precision;
    base double precision;
    late double precision;
    promised boolean;
    slot double precision;
BEGIN
    ids := '{}';
    more := false;
    SELECT l.amount INTO queue_limit FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = of_queue;
    IF queue_limit IS NULL THEN
        jobs := ARRAY(
            SELECT j.id
            FROM switchyard.job AS j
            WHERE j.queue = of_queue AND j.suspect = suspects AND j.state = 'pending' AND j.limited AND j.actor = ANY(known)
                AND j.wait_reason IS DISTINCT FROM 'paused'
                AND (
                    NOT EXISTS (SELECT 1 FROM switchyard.pause)
                    OR NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
                )
            ORDER BY j.priority, j.id
            LIMIT examine
            FOR UPDATE SKIP LOCKED
        );
    ELSE
        jobs := ARRAY(
            SELECT j.id
            FROM switchyard.job AS j
            WHERE j.state = 'pending' AND j.suspect = suspects AND j.actor = ANY(known) AND j.wait_reason IS DISTINCT FROM 'paused'
                AND NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
                AND j.id = ANY(ARRAY(
                (
                    SELECT k.id FROM switchyard.job AS k
                    WHERE k.queue = of_queue AND k.suspect = suspects AND k.state = 'pending' AND k.limited
                        AND k.wait_reason IS DISTINCT FROM 'paused'
                    ORDER BY k.priority, k.id LIMIT examine
                )
                UNION ALL
                (
                    SELECT k.id FROM switchyard.job AS k
                    WHERE k.queue = of_queue AND k.suspect = suspects AND k.state = 'pending' AND k.broker = 'postgres' AND NOT k.limited
                        AND k.wait_reason IS DISTINCT FROM 'paused'
                    ORDER BY k.priority, k.id LIMIT examine
                )
                UNION ALL
                (
                    SELECT k.id FROM switchyard.job AS k
                    WHERE k.queue = of_queue AND k.state = 'pending' AND k.broker <> 'postgres' AND NOT k.limited AND k.suspect = suspects
                        AND k.wait_reason IS DISTINCT FROM 'paused'
                    ORDER BY k.priority, k.id LIMIT examine
                )
            ))
            ORDER BY j.priority, j.id
            LIMIT examine
            FOR UPDATE SKIP LOCKED
        );
    END IF;
    IF jobs = '{}' THEN
        RETURN;
    END IF;

    LOOP
        INSERT INTO switchyard.gate (kind, key, name)
        SELECT DISTINCT ON (g.kind, g.key) g.kind, g.key, g.name
        FROM switchyard.job AS j
        CROSS JOIN LATERAL (
            VALUES ('rate', j.rate_key, j.actor), ('slot', j.concurrency_key, j.actor),
                ('slot', CASE WHEN queue_limit IS NOT NULL THEN queue_key END, of_queue)
        ) AS g (kind, key, name)
        WHERE j.id = ANY(jobs) AND g.key IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM switchyard.gate AS known_gate WHERE known_gate.kind = g.kind AND known_gate.key = g.key)
        ORDER BY g.kind, g.key
        ON CONFLICT DO NOTHING;
        rates := ARRAY(
            SELECT g.key
            FROM switchyard.gate AS g
            WHERE g.kind = 'rate' AND g.key = ANY(ARRAY(SELECT DISTINCT j.rate_key FROM switchyard.job AS j WHERE j.id = ANY(jobs)))
            ORDER BY g.key
            FOR UPDATE
        );
        slots := ARRAY(
            SELECT g.key
            FROM switchyard.gate AS g
            WHERE g.kind = 'slot' AND g.key = ANY(
                ARRAY(SELECT DISTINCT j.concurrency_key FROM switchyard.job AS j WHERE j.id = ANY(jobs))
                || CASE WHEN queue_limit IS NOT NULL THEN queue_key END
            )
            ORDER BY g.key
            FOR UPDATE
        );
        -- One that was forgotten just now is made anew.
        EXIT WHEN NOT EXISTS (
            SELECT 1
            FROM switchyard.job AS j
            WHERE j.id = ANY(jobs) AND (
                (j.rate_key IS NOT NULL AND NOT (j.rate_key = ANY(rates)))
                OR (j.concurrency_key IS NOT NULL AND NOT (j.concurrency_key = ANY(slots)))
            )
        ) AND (queue_limit IS NULL OR queue_key = ANY(slots));
    END LOOP;
    -- Only now: whoever had the gates before has written by an earlier clock.
    moment := coalesce(at, clock_timestamp());

    -- Times are seconds from this moment on. A rule that changed voids what was promised, and what the old one made the bucket wait.
    SELECT
        array_agg(l.period / l.amount ORDER BY g.key), array_agg(l.burst ORDER BY g.key), array_agg(l.version ORDER BY g.key),
        array_agg(CASE WHEN g.version = l.version THEN x.tat ELSE least(x.tat, l.burst * l.period / l.amount) END ORDER BY g.key),
        array_agg(CASE WHEN g.version = l.version THEN x.tail ELSE 0 END ORDER BY g.key),
        array_agg(CASE WHEN g.version = l.version THEN g.shift ELSE 0 END ORDER BY g.key),
        array_agg(false ORDER BY g.key)
    INTO spacing, bursts, versions, fulls, tails, shifts, rate_left
    FROM switchyard.gate AS g
    LEFT JOIN switchyard.rule AS l ON l.kind = 'rate' AND l.name = g.name
    CROSS JOIN LATERAL (
        SELECT
            coalesce(extract(epoch FROM g.tat - moment)::double precision, 0) AS tat,
            coalesce(extract(epoch FROM g.tail - moment)::double precision, 0) AS tail
    ) AS x
    WHERE g.kind = 'rate' AND g.key = ANY(rates);
    SELECT
        array_agg(CASE WHEN g.key = queue_key THEN queue_limit ELSE l.amount END ORDER BY g.key),
        array_agg(
            CASE
                WHEN g.key = queue_key
                    THEN (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.queue = of_queue)
                ELSE (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.concurrency_key = g.key)
            END
            ORDER BY g.key
        ),
        array_agg(
            EXISTS (
                SELECT 1
                FROM switchyard.job AS j
                WHERE j.blocked_on = g.key AND j.state = 'scheduled'
            )
            ORDER BY g.key
        ),
        array_agg(
            EXISTS (
                SELECT 1
                FROM switchyard.job AS j
                WHERE j.blocked_on = g.key AND j.state = 'pending' AND j.wait_reason IS DISTINCT FROM 'paused' AND j.suspect = suspects
                    AND NOT (j.id = ANY(jobs))
            )
            ORDER BY g.key
        ),
        array_agg(false ORDER BY g.key)
    INTO slot_limit, used, lined, turned, slot_left
    FROM switchyard.gate AS g
    LEFT JOIN switchyard.rule AS l ON l.kind = 'concurrency' AND l.name = g.name
    WHERE g.kind = 'slot' AND g.key = ANY(slots);
    queue_at := CASE WHEN queue_limit IS NOT NULL THEN array_position(slots, queue_key) END;

    -- Who was promised something comes before who has just arrived.
    SELECT array_agg(c.id), array_agg(c.rate), array_agg(c.slot), array_agg(c.cost), array_agg(c.blocked_on), array_agg(c.promise),
        array_agg(c.place)
    INTO jobs, job_rate, job_slot, job_cost, job_line, job_promise, job_place
    FROM (
        SELECT
            j.id, array_position(rates, j.rate_key) AS rate, array_position(slots, j.concurrency_key) AS slot,
            coalesce(j.rate_cost, 1) AS cost, j.blocked_on, j.reserved_version AS promise,
            extract(epoch FROM j.reserved_at - moment)::double precision AS place
        FROM switchyard.job AS j
        WHERE j.id = ANY(jobs)
        ORDER BY j.priority, j.blocked_on IS NULL AND j.reserved_at IS NULL, j.reserved_at, j.line, j.id
    ) AS c;

    FOR i IN 1 .. cardinality(jobs) LOOP
        r := job_rate[i];
        s := job_slot[i];
        IF coalesce(rate_left[r], false) OR coalesce(slot_left[s], false) OR coalesce(slot_left[queue_at], false) THEN
            CONTINUE;
        END IF;
        -- A slot is taken before a rate. Where there is a line, only who was woken from it comes before its end,
        -- and who was promised a time, which he was before it formed; nobody comes before a turn that is out.
        blocked := CASE
            WHEN used[s] >= slot_limit[s] OR (
                slot_limit[s] > 0 AND job_line[i] IS DISTINCT FROM slots[s]
                AND (turned[s] OR (lined[s] AND job_promise[i] IS NULL))
            ) THEN s
            WHEN used[queue_at] >= queue_limit OR (
                job_line[i] IS DISTINCT FROM queue_key
                AND (turned[queue_at] OR (lined[queue_at] AND job_promise[i] IS NULL))
            ) THEN queue_at
        END;
        IF blocked IS NOT NULL THEN
            blocked_ids := blocked_ids || jobs[i];
            blocked_keys := blocked_keys || slots[blocked];
            IF job_line[i] <> slots[blocked] THEN
                passed_on := passed_on || job_line[i];
            END IF;
            lined[blocked] := true;
            CONTINUE;
        END IF;
        IF spacing[r] IS NOT NULL THEN
            cost := job_cost[i] * spacing[r];
            promised := coalesce(job_promise[i] = versions[r], false);
            base := greatest(fulls[r], CASE WHEN promised THEN job_place[i] + shifts[r] ELSE tails[r] END);
            -- What costs more than the bucket holds needs a full one. Clocks count in microseconds, hence the last term.
            slot := base - (bursts[r] - least(bursts[r], job_cost[i])) * spacing[r] - 0.000002;
            IF slot > 0 THEN
                promised_ids := promised_ids || jobs[i];
                promised_slots := promised_slots || slot;
                promised_versions := promised_versions || versions[r];
                -- Its place stays the same, however often all are shifted: the order is that of the promises.
                promised_places := promised_places || CASE WHEN promised THEN job_place[i] ELSE base - shifts[r] END;
                IF NOT promised THEN
                    tails[r] := base + cost;
                END IF;
                soonest := least(soonest, slot);
                IF job_line[i] IS NOT NULL THEN
                    passed_on := passed_on || job_line[i];
                END IF;
                CONTINUE;
            END IF;
        END IF;
        IF idle <= 0 THEN
            more := true;
            IF r IS NOT NULL THEN
                rate_left[r] := true;
            END IF;
            IF s IS NOT NULL THEN
                slot_left[s] := true;
            END IF;
            IF queue_at IS NOT NULL THEN
                slot_left[queue_at] := true;
            END IF;
            CONTINUE;
        END IF;
        idle := idle - 1;
        ids := ids || jobs[i];
        IF s IS NOT NULL THEN
            used[s] := used[s] + 1;
        END IF;
        IF queue_at IS NOT NULL THEN
            used[queue_at] := used[queue_at] + 1;
        END IF;
        IF spacing[r] IS NOT NULL THEN
            -- Without a burst a start that comes a little late takes nothing from the next.
            late := CASE WHEN bursts[r] = 1 THEN -least(0.05, spacing[r] / 10) ELSE 0 END;
            IF NOT promised THEN
                tails[r] := greatest(tails[r], fulls[r], late) + cost;
            ELSIF late > job_place[i] + shifts[r] THEN
                tails[r] := tails[r] + late - job_place[i] - shifts[r];
                shifts[r] := late - job_place[i];
            END IF;
            fulls[r] := greatest(fulls[r], late) + cost;
        END IF;
    END LOOP;
    more := more OR cardinality(jobs) = examine;

    UPDATE switchyard.job AS j
    SET state = 'running', attempt = j.attempt + 1, token = by_token, worker = by_worker,
        lease_until = clock_timestamp() + make_interval(secs => lease), next_publish_at = NULL, publish_count = 0, started_at = NULL,
        wait_reason = NULL, wait_since = NULL, reserved_at = NULL, reserved_version = NULL, blocked_on = NULL, line = NULL
    WHERE j.id = ANY(ids);
    UPDATE switchyard.job AS j
    SET state = 'scheduled', run_at = moment + make_interval(secs => p.slot), next_publish_at = moment + make_interval(secs => p.slot),
        publish_count = 0, wait_reason = 'rate_limit', wait_since = moment,
        reserved_at = moment + make_interval(secs => p.place), reserved_version = p.version, blocked_on = NULL, line = NULL
    FROM unnest(promised_ids, promised_slots, promised_places, promised_versions) AS p (id, slot, place, version)
    WHERE j.id = ANY(promised_ids) AND j.id = p.id;
    UPDATE switchyard.job AS j
    SET state = 'scheduled', run_at = 'infinity', next_publish_at = NULL, publish_count = 0, wait_reason = 'concurrency',
        wait_since = CASE WHEN j.wait_reason = 'concurrency' THEN j.wait_since ELSE moment END, blocked_on = b.key, line = b.tag
    FROM (
        SELECT
            n.id, n.key,
            CASE
                WHEN n.back THEN n.line
                -- Who has had his turn is the first, when his time comes while all slots are taken.
                WHEN n.promised THEN n.clock
                ELSE n.first + sum(CASE WHEN n.back OR n.promised THEN 0 ELSE 1 / n.weight END)
                    OVER (PARTITION BY n.key, n.flow ORDER BY n.place)
            END AS tag
        FROM (
            SELECT
                u.id, u.key, u.place, w.line, coalesce(w.fair_key, '') AS flow, coalesce(w.fair_weight, 1) AS weight,
                coalesce(w.blocked_on = u.key, false) AS back, w.reserved_version IS NOT NULL AS promised, g.clock,
                greatest(g.clock, (
                    SELECT max(o.line)
                    FROM switchyard.job AS o
                    WHERE o.blocked_on = u.key AND o.state = 'scheduled' AND coalesce(o.fair_key, '') = coalesce(w.fair_key, '')
                )) AS first
            FROM unnest(blocked_ids, blocked_keys) WITH ORDINALITY AS u (id, key, place)
            JOIN switchyard.job AS w ON w.id = u.id
            JOIN switchyard.gate AS g ON g.kind = 'slot' AND g.key = u.key
            WHERE w.id = ANY(blocked_ids)
        ) AS n
    ) AS b
    WHERE j.id = ANY(blocked_ids) AND j.id = b.id;
    UPDATE switchyard.gate AS g
    SET tat = moment + make_interval(secs => u.tat), tail = moment + make_interval(secs => u.tail),
        shift = u.shift, version = u.version, used_at = moment
    FROM unnest(rates, fulls, tails, shifts, versions) AS u (key, tat, tail, shift, version)
    WHERE g.kind = 'rate' AND g.key = u.key AND u.version IS NOT NULL;
    UPDATE switchyard.gate AS g
    SET used_at = moment
    WHERE g.kind = 'slot' AND g.key = ANY(slots) AND g.used_at < moment - interval '10 minutes';
    -- Of those alone whose gates are held, by the order of locks; those of a limit that is gone a keeper finds.
    passed_on := ARRAY(SELECT DISTINCT p.key FROM unnest(passed_on) AS p (key) WHERE p.key = ANY(slots));
    IF passed_on <> '{}' THEN
        more := switchyard.wake_waiters(passed_on) > 0 OR more;
    END IF;
END $$;

-- name: wake_waiters_function
-- Hand the free slots of some keys to those who wait for them: due now, in the order of the line. Being woken gives nothing but a turn: the
-- claim counts again. Who decides about a key at this moment is waited for, so that nobody joins a line that was just left alone.
CREATE OR REPLACE FUNCTION switchyard.wake_waiters(keys text[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    gate record;
    most integer;
    room integer;
    woken integer;
    tag double precision;
    total integer := 0;
BEGIN
    FOR gate IN
        SELECT g.key, g.name, g.key = 'queue:' || g.name AS of_queue
        FROM switchyard.gate AS g
        WHERE g.kind = 'slot' AND g.key = ANY(keys)
        ORDER BY g.key
        FOR UPDATE
    LOOP
        SELECT l.amount INTO most
        FROM switchyard.rule AS l
        WHERE l.kind = CASE WHEN gate.of_queue THEN 'queue' ELSE 'concurrency' END AND l.name = gate.name;
        -- Suspects take their turn one at a time, and what is paused takes none: they keep nobody from his.
        room := coalesce(most, 1000000) - (
            SELECT count(*)
            FROM switchyard.job AS j
            WHERE j.blocked_on = gate.key AND j.state = 'pending' AND j.wait_reason IS DISTINCT FROM 'paused' AND NOT j.suspect
        );
        IF most IS NULL THEN
            room := least(room, 1000);
        ELSIF gate.of_queue THEN
            room := room - (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.queue = gate.name);
        ELSE
            room := room - (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.concurrency_key = gate.key);
        END IF;
        CONTINUE WHEN room <= 0;
        WITH first AS MATERIALIZED (
            SELECT j.id
            FROM switchyard.job AS j
            WHERE j.blocked_on = gate.key AND j.state = 'scheduled'
                AND NOT EXISTS (SELECT 1 FROM switchyard.pause AS p WHERE p.queue IN (j.queue, '*') AND p.actor IN (j.actor, '*'))
            ORDER BY j.priority, j.line, j.id
            LIMIT room
            FOR UPDATE SKIP LOCKED
        ),
        due AS (
            UPDATE switchyard.job AS j
            SET state = 'pending', run_at = clock_timestamp(), next_publish_at = clock_timestamp(), publish_count = 0
            WHERE j.id = ANY(ARRAY(SELECT f.id FROM first AS f))
            RETURNING j.line
        )
        SELECT count(*), max(d.line) INTO woken, tag FROM due AS d;
        IF woken > 0 THEN
            UPDATE switchyard.gate AS g
            SET clock = greatest(g.clock, tag), used_at = clock_timestamp()
            WHERE g.kind = 'slot' AND g.key = gate.key;
            total := total + woken;
        END IF;
    END LOOP;
    IF total > 0 THEN
        -- The channel on which keepers learn that something is due.
        PERFORM pg_notify('switchyard_due', '');
    END IF;
    RETURN total;
END $$;

-- name: free_slots_function
-- Some jobs have left their slots, or their turn for one: whoever waits for these is next. A job that was given back unfinished keeps its
-- turn.
CREATE OR REPLACE FUNCTION switchyard.free_slots(left_by bigint[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    keys CONSTANT text[] := ARRAY(
        SELECT DISTINCT g.key
        FROM switchyard.job AS j
        CROSS JOIN LATERAL (VALUES (j.concurrency_key), ('queue:' || j.queue)) AS k (key)
        JOIN switchyard.gate AS g ON g.kind = 'slot' AND g.key = k.key
        WHERE j.id = ANY(left_by)
    );
BEGIN
    IF keys = '{}' THEN
        RETURN 0;
    END IF;
    UPDATE switchyard.job AS j
    SET blocked_on = g.key, line = g.clock
    FROM switchyard.gate AS g
    WHERE j.id = ANY(left_by) AND j.state = 'pending' AND j.blocked_on IS NULL AND g.kind = 'slot' AND g.key = j.concurrency_key;
    RETURN switchyard.wake_waiters(keys);
END $$;

-- name: admit
-- Decide about limited jobs of a queue; what is to run is read by the ids.
SELECT ids, more, soonest
FROM switchyard.admit(
    %(queue)s, %(actors)s, %(worker)s, %(token)s, %(lease)s, %(suspects)s, %(idle)s, %(examine)s, %(now)s
);

-- name: admitted
-- What was admitted, as a claim returns it.
SELECT id, message_id::text, queue, actor, payload, options, generation, attempt, failures, max_attempts, suspect,
    (date_part('epoch', created_at) * 1000)::bigint AS created_ms,
    (date_part('epoch', clock_timestamp()) * 1000)::bigint AS claimed_ms, parent_id::text, tags,
    (date_part('epoch', expires_at) * 1000)::bigint AS expires_ms, max_lost,
    (date_part('epoch', run_at) * 1000)::bigint AS due_ms, batch_id::text, true AS limited
FROM switchyard.job
WHERE id = ANY(%(ids)s::bigint[]) AND token = %(token)s AND CASE WHEN state = 'running' THEN true END
ORDER BY priority, id;

-- name: limited_queues
-- Which of these queues hold something that a limit decides about, and whether it is a suspect: a probe of an index or two each.
SELECT q.queue, s.suspect
FROM unnest(%(queues)s::text[]) AS q (queue)
CROSS JOIN (VALUES (false), (true)) AS s (suspect)
WHERE EXISTS (
    SELECT 1
    FROM switchyard.job AS j
    WHERE j.queue = q.queue AND j.suspect = s.suspect AND j.state = 'pending' AND j.limited AND j.actor = ANY(%(actors)s::text[])
        AND j.wait_reason IS DISTINCT FROM 'paused'
) OR (
    EXISTS (SELECT 1 FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = q.queue)
    AND (
        EXISTS (
            SELECT 1
            FROM switchyard.job AS j
            WHERE j.queue = q.queue AND j.suspect = s.suspect AND j.state = 'pending' AND j.broker = 'postgres'
                AND j.wait_reason IS DISTINCT FROM 'paused' AND j.actor = ANY(%(actors)s::text[])
        ) OR EXISTS (
            SELECT 1
            FROM switchyard.job AS j
            WHERE j.queue = q.queue AND j.suspect = s.suspect AND j.state = 'pending' AND j.broker <> 'postgres'
                AND j.wait_reason IS DISTINCT FROM 'paused' AND j.actor = ANY(%(actors)s::text[])
        )
    )
);

-- name: postpone_limited
-- Limited jobs whose triggers have done their part: they are found in the ledger as soon as a thread is idle, so nobody need look for
-- their triggers. Should all of this be forgotten, the relay offers them again.
UPDATE switchyard.job
SET next_publish_at = clock_timestamp() + make_interval(secs => %(delay)s), publish_count = -abs(publish_count)
WHERE id = ANY(%(ids)s::bigint[]) AND state = 'pending' AND next_publish_at IS NOT NULL AND wait_reason IS DISTINCT FROM 'paused'
    AND (limited OR EXISTS (SELECT 1 FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = job.queue));

-- name: offer_again
-- A queue's limit is gone: those of its jobs that nothing else limits are found by their triggers again, which were used up. Due, a chunk
-- at a time.
WITH used_up AS MATERIALIZED (
    SELECT id
    FROM switchyard.job
    WHERE state = 'pending' AND broker <> 'postgres' AND queue = ANY(%(queues)s::text[]) AND wait_reason IS DISTINCT FROM 'paused'
        AND NOT limited AND publish_count < 0 AND next_publish_at > clock_timestamp()
        AND NOT EXISTS (SELECT 1 FROM switchyard.rule AS l WHERE l.kind = 'queue' AND l.name = job.queue)
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE switchyard.job SET next_publish_at = clock_timestamp() WHERE id = ANY(ARRAY(SELECT id FROM used_up)) RETURNING id;

-- name: free_slots
-- Jobs have left their slots.
SELECT switchyard.free_slots(%(ids)s::bigint[]);

-- name: wake_waiters
-- Nobody is in the way of those who wait for these keys any more.
SELECT switchyard.wake_waiters(%(keys)s::text[]);

-- name: wake_missed
-- Keys with waiters and, as it seems, a free slot: whoever should have been woken and was not. The lines are walked key by key, each once.
WITH RECURSIVE line AS (
    (
        SELECT blocked_on AS key
        FROM switchyard.job
        WHERE blocked_on > %(after)s AND state = 'scheduled'
        ORDER BY blocked_on
        LIMIT 1
    )
    UNION ALL
    SELECT following.key
    FROM line AS l
    CROSS JOIN LATERAL (
        SELECT j.blocked_on AS key
        FROM switchyard.job AS j
        WHERE j.blocked_on > l.key AND j.state = 'scheduled'
        ORDER BY j.blocked_on
        LIMIT 1
    ) AS following
),
page AS MATERIALIZED (
    SELECT key FROM line LIMIT %(limit)s
),
roomy AS MATERIALIZED (
    SELECT p.key
    FROM page AS p
    JOIN switchyard.gate AS g ON g.kind = 'slot' AND g.key = p.key
    LEFT JOIN switchyard.rule AS l
        ON l.kind = CASE WHEN g.key = 'queue:' || g.name THEN 'queue' ELSE 'concurrency' END AND l.name = g.name
    WHERE l.amount IS NULL OR l.amount > (
        SELECT count(*)
        FROM switchyard.job AS j
        WHERE j.blocked_on = p.key AND j.state = 'pending' AND j.wait_reason IS DISTINCT FROM 'paused' AND NOT j.suspect
    ) + CASE
        WHEN l.kind = 'queue' THEN (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.queue = g.name)
        ELSE (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.concurrency_key = p.key)
    END
)
SELECT
    switchyard.wake_waiters(ARRAY(SELECT key FROM roomy)) AS woken,
    CASE WHEN (SELECT count(*) FROM page) = %(limit)s THEN (SELECT max(key) FROM page) END AS after;

-- name: promise_anew
-- The rule of an actor's rate changed: who was promised a slot under the old one comes now, a thousand at a time, the next first.
WITH void AS MATERIALIZED (
    SELECT j.id
    FROM switchyard.job AS j
    JOIN switchyard.rule AS l ON l.kind = 'rate' AND l.name = j.actor
    WHERE (j.state = 'pending' AND j.publish_count > 0 AND NOT j.suspect AND j.wait_reason IS NULL)::int = 0
        AND j.next_publish_at > clock_timestamp() AND j.state = 'scheduled' AND j.wait_reason = 'rate_limit'
        AND j.actor = %(actor)s AND j.reserved_version <> l.version
    ORDER BY j.next_publish_at
    LIMIT %(limit)s
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE switchyard.job AS j
SET state = 'pending', run_at = clock_timestamp(), next_publish_at = clock_timestamp(), publish_count = 0
WHERE j.id = ANY(ARRAY(SELECT id FROM void))
RETURNING j.id;

-- name: promised_anew
-- All of them came.
UPDATE switchyard.rule SET renewing = false WHERE kind = 'rate' AND name = %(actor)s AND version = %(version)s;

-- name: renewing
-- Rates whose promises are still to be made anew.
SELECT name, version FROM switchyard.rule WHERE renewing ORDER BY name;

-- name: forget_gates
-- Keys that nobody asked for in an hour and that hold nothing back.
DELETE FROM switchyard.gate AS g
WHERE (g.kind, g.key) IN (
    SELECT old.kind, old.key
    FROM switchyard.gate AS old
    WHERE old.used_at < clock_timestamp() - interval '1 hour' AND coalesce(greatest(old.tat, old.tail), '-infinity') < clock_timestamp()
        AND NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.blocked_on = old.key AND j.state IN ('scheduled', 'pending'))
        AND NOT EXISTS (SELECT 1 FROM switchyard.job AS j WHERE j.concurrency_key = old.key AND j.state = 'running')
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
);

-- name: declare_rules
-- What a process has in its code and settings. What an operator set stays in force beside it.
INSERT INTO switchyard.rule AS l (kind, name, amount, period, burst, declared_amount, declared_period, declared_burst)
SELECT u.kind, u.name, u.amount, u.period, u.burst, u.amount, u.period, u.burst
FROM unnest(%(kinds)s::text[], %(names)s::text[], %(amounts)s::int[], %(periods)s::float8[], %(bursts)s::int[])
    AS u (kind, name, amount, period, burst)
ORDER BY u.kind, u.name
ON CONFLICT (kind, name) DO UPDATE
SET declared_amount = excluded.amount, declared_period = excluded.period, declared_burst = excluded.burst,
    amount = CASE WHEN l.overridden THEN l.amount ELSE excluded.amount END,
    period = CASE WHEN l.overridden THEN l.period ELSE excluded.period END,
    burst = CASE WHEN l.overridden THEN l.burst ELSE excluded.burst END,
    version = l.version + CASE WHEN l.overridden THEN 0 ELSE 1 END,
    renewing = l.renewing OR (l.kind = 'rate' AND NOT l.overridden),
    changed_at = clock_timestamp()
WHERE (l.declared_amount, l.declared_period, l.declared_burst)
    IS DISTINCT FROM (excluded.declared_amount, excluded.declared_period, excluded.declared_burst);

-- name: retract_rules
-- Limits that the code of these actors, and the settings for these queues, have no more. What an operator set stays. Returns those that are gone.
WITH gone AS (
    SELECT l.kind, l.name
    FROM switchyard.rule AS l
    WHERE l.declared_amount IS NOT NULL
        AND l.name = ANY(CASE WHEN l.kind = 'queue' THEN %(queues)s::text[] ELSE %(actors)s::text[] END)
        AND NOT ((l.kind || ' ' || l.name) = ANY(%(kept)s::text[]))
),
kept AS (
    UPDATE switchyard.rule AS l
    SET declared_amount = NULL, declared_period = NULL, declared_burst = NULL
    FROM gone AS g
    WHERE l.kind = g.kind AND l.name = g.name AND l.overridden
)
DELETE FROM switchyard.rule AS l USING gone AS g WHERE l.kind = g.kind AND l.name = g.name AND NOT l.overridden
RETURNING l.kind, l.name;

-- name: set_rule
-- An operator's word, in force until it is reset, whatever processes declare. No row: it is of an actor whose jobs nobody counts.
INSERT INTO switchyard.rule AS l (kind, name, amount, period, burst, overridden)
SELECT %(kind)s::text, %(name)s::text, %(amount)s::int, %(period)s::float8, %(burst)s::int, true
WHERE %(kind)s::text = 'queue' OR EXISTS (SELECT 1 FROM switchyard.rule AS o WHERE o.kind = %(kind)s AND o.name = %(name)s)
ON CONFLICT (kind, name) DO UPDATE
SET amount = excluded.amount, period = excluded.period, burst = excluded.burst, overridden = true, version = l.version + 1,
    renewing = l.kind = 'rate', changed_at = clock_timestamp()
RETURNING l.version;

-- name: reset_rule
-- What the code or the settings declare is in force again; where they declare nothing, nothing is.
WITH removed AS (
    DELETE FROM switchyard.rule WHERE kind = %(kind)s AND name = %(name)s AND overridden AND declared_amount IS NULL RETURNING name
),
changed AS (
    UPDATE switchyard.rule
    SET amount = declared_amount, period = declared_period, burst = declared_burst, overridden = false, version = version + 1,
        renewing = kind = 'rate', changed_at = clock_timestamp()
    WHERE kind = %(kind)s AND name = %(name)s AND overridden AND declared_amount IS NOT NULL
    RETURNING name
)
SELECT name FROM removed UNION ALL SELECT name FROM changed;

-- name: rules
-- Every limit, what it holds now, and when the next job may start. Of a limit with keys: of the fullest one.
SELECT
    l.kind, l.name, l.amount, l.period, l.burst, l.declared_amount, l.declared_period, l.declared_burst, l.overridden, l.version, l.changed_at,
    (
        SELECT count(*)
        FROM switchyard.gate AS g
        WHERE g.name = l.name AND g.kind = CASE WHEN l.kind = 'rate' THEN 'rate' ELSE 'slot' END
            AND (g.key = 'queue:' || l.name) = (l.kind = 'queue')
    ) AS keys,
    CASE
        WHEN l.kind = 'queue' THEN (SELECT count(*) FROM switchyard.job AS j WHERE j.state = 'running' AND j.queue = l.name)
        WHEN l.kind = 'concurrency' THEN (
            SELECT coalesce(max(n.count), 0)
            FROM (
                SELECT count(*) AS count FROM switchyard.job AS j
                WHERE j.state = 'running' AND j.concurrency_key IS NOT NULL AND j.actor = l.name
                GROUP BY j.concurrency_key
            ) AS n
        )
        ELSE coalesce(ceil(b.full_at * l.amount / l.period), 0)::bigint
    END AS used,
    (
        SELECT count(*)
        FROM switchyard.job AS j
        WHERE CASE WHEN l.kind = 'queue' THEN j.blocked_on = 'queue:' || l.name ELSE j.actor = l.name AND j.blocked_on = j.concurrency_key END
            AND l.kind <> 'rate' AND j.state = 'scheduled'
    ) + (
        SELECT count(*)
        FROM switchyard.job AS j
        WHERE (j.state = 'pending' AND j.publish_count > 0 AND NOT j.suspect AND j.wait_reason IS NULL)::int = 0
            AND j.next_publish_at IS NOT NULL AND j.wait_reason = 'rate_limit' AND l.kind = 'rate' AND j.actor = l.name
    ) AS waiting,
    CASE
        WHEN l.kind = 'rate'
            THEN clock_timestamp() + make_interval(secs => greatest(coalesce(b.promised, 0) - (l.burst - 1) * l.period / l.amount, 0))
    END AS next_free_at
FROM switchyard.rule AS l
LEFT JOIN LATERAL (
    SELECT
        max(greatest(extract(epoch FROM g.tat - clock_timestamp()), 0))::float8 AS full_at,
        max(extract(epoch FROM greatest(g.tat, CASE WHEN g.version = l.version THEN g.tail END) - clock_timestamp()))::float8
            AS promised
    FROM switchyard.gate AS g
    WHERE l.kind = 'rate' AND g.kind = 'rate' AND g.name = l.name
) AS b ON true
ORDER BY l.name, l.kind;
