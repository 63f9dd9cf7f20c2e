-- What every row of the ledger has to be like, whoever writes it: the one CHECK of the table job.
--
-- A function and not nine CHECKs, because Postgres reads the text of a table's CHECKs anew for each statement: they made a third of a
-- single INSERT's time (docs/adr/0018-rules-in-a-function.md). The error names the rule that is broken and shows nothing of the row.

-- name: job_is_sound
CREATE OR REPLACE FUNCTION switchyard.job_is_sound(
    state text, token uuid, lease_until timestamptz, finished_at timestamptz, dead_reason text, result json,
    next_publish_at timestamptz, broker text, wait_reason text,
    attempt integer, failures integer, lost integer, generation integer, max_attempts integer, max_lost integer,
    progress double precision
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    broken CONSTANT text := CASE
        WHEN state NOT IN ('scheduled', 'pending', 'running', 'retrying', 'completed', 'dead', 'cancelled')
            THEN 'job_state_known'
        WHEN (state = 'running') <> (token IS NOT NULL) OR (state = 'running') <> (lease_until IS NOT NULL)
            THEN 'job_running_is_claimed'
        WHEN (state IN ('completed', 'dead', 'cancelled')) <> (finished_at IS NOT NULL)
            THEN 'job_terminal_is_finished'
        WHEN (state = 'dead') <> (dead_reason IS NOT NULL)
            THEN 'job_dead_has_reason'
        WHEN next_publish_at IS NOT NULL AND state IN ('running', 'completed', 'dead', 'cancelled')
            THEN 'job_only_waiting_is_due'
        WHEN next_publish_at IS NULL AND wait_reason IS NULL AND state IN ('scheduled', 'retrying', 'pending')
            AND NOT (state = 'pending' AND broker = 'postgres')
            THEN 'job_waiting_is_reachable'
        WHEN result IS NOT NULL AND state <> 'completed'
            THEN 'job_result_is_completed'
        WHEN attempt < 0 OR failures < 0 OR lost < 0 OR generation < 1 OR max_attempts < 1 OR max_lost < 1
            THEN 'job_counters_sane'
        WHEN progress NOT BETWEEN 0 AND 100
            THEN 'job_progress_is_percent'
    END;
BEGIN
    IF broken IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION USING
        MESSAGE = 'a job in state ' || state || ' cannot look like this: it breaks the rule ' || broken,
        ERRCODE = 'check_violation', SCHEMA = 'switchyard', TABLE = 'job', CONSTRAINT = broken;
END $$;
