"""Load tests: small scripts that answer one question each, on servers of this machine, and leave nothing behind.

    python -m loadtest.drain     how many jobs a second are sent and run, beside raw Dramatiq on Redis in the same run
    python -m loadtest.latency   how soon an idle worker starts a job, and what it costs while it waits
    python -m loadtest.keeper    what the keeper costs at rest and beside a million scheduled jobs, and how punctual the relay is

``stand`` makes the database and the names of a run and ends them; ``jobs`` and ``raw_jobs`` are the actors, ``send`` sends them from a
process of its own; ``report`` turns figures into tables. What the figures were and what they mean is in docs/performance.md.
"""
