"""Fault injection: real servers, real processes, real kills, and a checker that believes only what stands outside the system.

    servers     the private servers of a run
    rig         worker and producer processes, one database and one prefix per scenario
    proxy       TCP between a process and a server: pass, delay, drop a reply, blackhole, reset, cut
    failpoints  ends, delays or breaks a process at a named line of the protocol, without a line in the product
    mutations   takes one guard out of a worker, to see that the checker notices
    recorder    what producers and actors did, in one file that they append to
    jobs        the actors; producer: the process that sends them
    checker     the invariants, from the recorder's file, the effects' table and the log of transitions
    scenarios   what is done to the system
    report      the cumulative count, and the table in docs/reliability.md

``python -m tests.faults`` (``make faults``) runs all of it for an hour; the tests beside it run a small seed of each scenario.
"""
