-- What an actor remembers from one execution to the next.

-- name: job_steps
-- Everything that a job remembers.
SELECT name, result::text FROM switchyard.job_step WHERE job_id = %(id)s;

-- name: remember_step
-- A step is done. Only the job's holder may say so: a rescue that is under way is waited for, and then it is not the holder any more. Of two
-- threads of one execution that did the same step, the first one counts.
INSERT INTO switchyard.job_step AS s (job_id, name, generation, attempt, result)
SELECT held.id, %(name)s, held.generation, held.attempt, %(result)s::json
FROM (
    SELECT j.id, j.generation, j.attempt
    FROM switchyard.job AS j
    WHERE j.id = %(id)s AND j.token = %(token)s AND j.state = 'running'
    FOR NO KEY UPDATE
) AS held
ON CONFLICT (job_id, name) DO UPDATE SET name = s.name
RETURNING result::text;
