-- Sends that belong to somebody else's transaction, and a job that ends in a transaction of its own.

-- name: which_database
-- What tells one database of one running server from every other, also from a copy of it: asked on the ledger's connection and on
-- the caller's. A restart changes it on both.
SELECT extract(epoch FROM pg_postmaster_start_time())::text, (SELECT oid::text FROM pg_database WHERE datname = current_database());

-- name: ring_at_commit
-- Delivered when the transaction is committed, and never if it is rolled back. Postgres sends equal ones of a transaction once.
SELECT pg_notify(%(channel)s, %(payload)s);

-- name: bound_idleness
-- From the guarded finish to the commit takes one message; a client that is silent for longer is gone, and its lock on the job's row must
-- not outlive it: heartbeat, relay and rescue pass locked rows by.
SELECT set_config('idle_in_transaction_session_timeout', %(milliseconds)s, true);

-- name: how_claim_ended
-- A commit's reply was lost: was it committed? The row lock waits for a commit that is still under way over there.
SELECT
    coalesce(last_token = %(token)s AND state = 'completed', false) AS completed,
    coalesce(token = %(token)s, false) AS held
FROM switchyard.job
WHERE id = %(id)s
FOR UPDATE;
