"""What may be how much: the limits that a soak is judged by. docs/reliability.md repeats them.

A limit is absolute: so much more per hour, and at least so much more at all (see ``judge``). They are judgements, not measurements: small
beside what a leak of 10 kB per job comes to at the soak's rate (some 150 MB an hour and worker). A short run sees only what exceeds the
slack within it.
"""

from __future__ import annotations

from tests.soak.judge import Limit

#: By the last word of a measure's name.
LIMITS: dict[str, Limit] = {
    # Of a process: MB resident, open files, threads.
    "rss": Limit(per_hour=20, slack=4),
    "files": Limit(per_hour=12, slack=6),
    "threads": Limit(per_hour=6, slack=3),
    "processes": Limit(per_hour=6, slack=2),
    # Of a server: clients and what they hold open.
    "connections": Limit(per_hour=24, slack=8),
    "channels": Limit(per_hour=24, slack=8),
    "queues": Limit(per_hour=6, slack=2),
    "keys": Limit(per_hour=20, slack=10),
    "depth": Limit(per_hour=600, slack=100),
    # Of dead letters, for whoever watches the broker: the latest 10,000 are kept, and every thirtieth job of the soak is one.
    "copies": Limit(per_hour=3_000, slack=300),
    # MB: of a server's processes, of Redis' data, of RabbitMQ's node.
    "private": Limit(per_hour=60, slack=15),
    "memory": Limit(per_hour=60, slack=30),
    "data": Limit(per_hour=6, slack=1),
    # Of a table of the ledger: rows, dead tuples, MB of the table and of its indexes.
    "rows": Limit(per_hour=3_000, slack=500),
    "dead": Limit(per_hour=20_000, slack=8_000),
    "table": Limit(per_hour=10, slack=3),
    "indexes": Limit(per_hour=10, slack=3),
    # Seconds of the oldest transaction.
    "transaction": Limit(per_hour=60, slack=5),
}


#: Latency in the end against the beginning: so many times, and so many seconds on top.
LATENCY_RATIO, LATENCY_SLACK = 2.0, 0.5
#: The rate in the end against the beginning: at least this share.
RATE_SHARE = 0.7

#: Rows that may be left in tables of the ledger when all is drained and every process has ended: those whose number does not depend on
#: how many jobs there were. ``job`` and all that hangs on it has to be empty.
EMPTY = ("job", "attempt", "job_log", "job_step", "dead_notice")
#: The same, but looked for once a minute.
EMPTY_LATER = ("batch", "idempotency")
#: Keys that may be left in Redis: the epoch, and the marks of its keepers.
KEYS_LEFT = 8
#: Queues that may be left in RabbitMQ beside those of actors: the dead letters', and the marks of its keepers.
QUEUES_LEFT = 4


def limit_of(measure: str, leeway: float = 1.0) -> Limit:
    """The limit of a measure, by the last word of its name; ``leeway``: so many times its slack."""
    usual = LIMITS[measure.rsplit(" ", 1)[-1]]
    return Limit(per_hour=usual.per_hour, slack=usual.slack * leeway)
