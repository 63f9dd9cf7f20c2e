"""Soak: real traffic for a long time, and the proof that nothing grows, drifts or leaks.

    jobs        the actors, and tables in which triggers keep what retention removes
    worker      what the worker processes import; leaks: a leak put into them on purpose
    sender      the process that sends every kind of job at a steady rate, below what the workers can do
    stand       the servers and three fleets: one left alone, one recycled by --max-jobs, one stopped and started again and again
    probe       what processes and servers hold at one moment
    witness     every job has ended exactly once, by tests.faults' checker, retention notwithstanding; what is left once all is drained
    judge       does a series grow: robust against noise and against a saw-tooth
    limits      what may be how much
    soak        one broker's run, from its first sample to its verdict
    report      the JSON lines in var/soak, and the table in docs/reliability.md

``python -m tests.soak`` (``make soak``) runs for half an hour; the tests beside it run some twenty seconds on each broker.
"""
