"""The functions of limits as of migration 0009; ledger/sql/limits.sql has the living ones, and a test compares the two."""

from __future__ import annotations

ADMIT = """
-- Look at the first limited jobs of a queue, by priority and age, and decide about each: it runs (for `idle` threads), it is promised a
-- slot of time, or it joins a line. What may run and finds no thread stays as it is, and so does everything behind it under the same limit.
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
    slot_left boolean[];
    queue_at integer;
    blocked_ids bigint[] := '{}';
    blocked_keys text[] := '{}';
    promised_ids bigint[] := '{}';
    promised_slots double precision[] := '{}';
    promised_places double precision[] := '{}';
    promised_versions bigint[] := '{}';
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
            ) OR EXISTS (
                SELECT 1
                FROM switchyard.job AS j
                WHERE j.blocked_on = g.key AND j.state = 'pending' AND j.wait_reason IS DISTINCT FROM 'paused' AND j.suspect = suspects
                    AND NOT (j.id = ANY(jobs))
            )
            ORDER BY g.key
        ),
        array_agg(false ORDER BY g.key)
    INTO slot_limit, used, lined, slot_left
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
        -- A slot is taken before a rate. Where there is a line, only who was woken from it comes before its end.
        blocked := CASE
            WHEN used[s] >= slot_limit[s] OR (lined[s] AND slot_limit[s] > 0 AND job_line[i] IS DISTINCT FROM slots[s]) THEN s
            WHEN used[queue_at] >= queue_limit OR (lined[queue_at] AND job_line[i] IS DISTINCT FROM queue_key) THEN queue_at
        END;
        IF blocked IS NOT NULL THEN
            blocked_ids := blocked_ids || jobs[i];
            blocked_keys := blocked_keys || slots[blocked];
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
                ELSE n.first + sum(CASE WHEN n.back THEN 0 ELSE 1 / n.weight END) OVER (PARTITION BY n.key, n.flow ORDER BY n.place)
            END AS tag
        FROM (
            SELECT
                u.id, u.key, u.place, w.line, coalesce(w.fair_key, '') AS flow, coalesce(w.fair_weight, 1) AS weight,
                coalesce(w.blocked_on = u.key, false) AS back,
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
END $$
"""

WAKE_WAITERS = """
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
END $$
"""

FREE_SLOTS = """
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
END $$
"""
