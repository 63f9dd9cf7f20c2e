"""The ledger's side of limits: what is allowed, who is admitted, and whose turn it is; see docs/adr/0026-limits.md.

Every function is one statement on the connection it is given and safe to repeat. What decides runs inside the server
(``ledger/sql/limits.sql``), so that a process that dies or hangs never holds up a key. Postgres away: nobody is admitted, and nothing that
was promised is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from psycopg import Connection

from ledger.arrays import plain
from ledger.records import ClaimedJob
from ledger.sql import SQL

Conn = Connection[Any]

Kind = Literal["rate", "concurrency", "queue"]

#: Most jobs that one step looks at: it holds its keys for a millisecond per ten of them.
EXAMINE: Final = 250
#: Keys whose lines one turn of the keeper walks, and promises that it makes anew.
PAGE: Final = 1_000
#: Largest numbers of a rule: what fits the column, and a year.
MAX_AMOUNT: Final = 1_000_000_000
MAX_PERIOD: Final = 366 * 86_400.0

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_WORDS: Final = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0}
_RATE: Final = re.compile(r"\s*(\d+)\s*/\s*(?:(second|minute|hour|day)s?|(\d+(?:\.\d+)?)?\s*(s|m|h|d))\s*")


class Rule(NamedTuple):
    """A limit: so many in a period of so many seconds (``rate``), or so many at once (``concurrency`` of an actor, ``queue``)."""

    kind: Kind
    #: The actor or the queue.
    name: str
    amount: int
    period: float | None = None
    #: How many may start together.
    burst: int | None = None

    def __str__(self) -> str:
        if self.period is None:
            return f"{self.amount} at once"
        return f"{rate_text(self.amount, self.period)}, burst {self.burst}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit as it stands: what is in force, what the code declares, and what it holds back."""

    #: rate, concurrency or queue; the actor's name, or the queue's.
    kind: Kind
    name: str
    in_force: Rule
    #: What the code or the settings say; None: an operator alone wants it.
    declared: Rule | None
    #: Whether an operator decided otherwise than the code, until it is reset.
    overridden: bool
    #: Raised with each change.
    version: int
    changed_at: datetime
    #: How many keys were asked for lately. Of several, what follows is about the fullest one.
    keys: int
    #: Of a rate: how much of its burst is used up; else how many run.
    used: int
    #: Jobs that wait because of it, over all keys.
    waiting: int
    #: Of a rate: when a job that is sent now may run.
    next_free_at: datetime | None


class Admitted(NamedTuple):
    """What became of the first limited jobs of a queue."""

    #: Those that run now.
    jobs: list[ClaimedJob]
    #: Whether something was left that may run as soon as a thread is idle, or that was not looked at.
    more: bool
    #: Seconds until the first slot that was promised; None: none was.
    soonest: float | None


def parse_rate(text: str) -> tuple[int, float]:
    """Read ``100/minute``, ``100/m`` or ``5/30s``: how many in how many seconds.

    Raises:
        ValueError: it is no rate; the text says how one is written.
    """
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r:.50} is no rate; write a number and a period, such as 100/minute, 10/second or 5/30s")
    amount = int(match[1])
    period = _WORDS[match[2]] if match[2] else float(match[3] or 1) * _UNITS[match[4]]
    if not 1 <= amount <= MAX_AMOUNT:
        raise ValueError(f"{text!r:.50} allows {amount}; write a number from 1 to {MAX_AMOUNT:,}")
    if not 0 < period <= MAX_PERIOD:
        raise ValueError(f"{text!r:.50} has a period of {period:g} s; write more than nothing and at most a year")
    return amount, period


def rate_text(amount: int, period: float) -> str:
    """A rate as people write it."""
    for word, seconds in _WORDS.items():
        if period == seconds:
            return f"{amount}/{word}"
    letter, unit = next((entry for entry in reversed(_UNITS.items()) if period % entry[1] == 0), ("s", 1.0))
    return f"{amount}/{period / unit:g}{letter}"


def default_burst(amount: int, period: float) -> int:
    """How many may start together unless the code says so: what one second brings, and at least one."""
    return max(1, math.ceil(amount / period))


def admit(
    connection: Conn,
    queue: str,
    *,
    actors: Sequence[str],
    worker: str,
    token: str,
    lease: float,
    idle: int,
    suspects: bool = False,
    examine: int = EXAMINE,
    now: object = None,
) -> Admitted:
    """Decide about the first limited jobs of a queue, and claim up to ``idle`` of them.

    Parameters:
        examine: how many to look at.
        now: a ``datetime`` instead of the database's clock, for tests.
    """
    parameters = {
        "queue": queue,
        "actors": list(actors),
        "worker": worker,
        "token": token,
        "lease": lease,
        "idle": idle,
        "suspects": suspects,
        "examine": examine,
        "now": now,
    }
    row = connection.execute(SQL["admit"], parameters).fetchone()
    assert row is not None
    ids, more, soonest = row
    jobs = connection.execute(SQL["admitted"], {"ids": plain(ids), "token": token}).fetchall() if ids else []
    return Admitted([ClaimedJob(*job) for job in jobs], more, soonest)


def limited_queues(connection: Conn, queues: Sequence[str], actors: Sequence[str]) -> list[tuple[str, bool]]:
    """The queues that hold something a limit decides about, each with whether it is a suspect."""
    rows = connection.execute(SQL["limited_queues"], {"queues": list(queues), "actors": list(actors)}).fetchall()
    return [(row[0], row[1]) for row in rows]


def postpone_limited(connection: Conn, ids: Sequence[int], delay: float) -> None:
    """Let nobody look for the triggers of limited jobs that still wait, for ``delay`` seconds: they are found without."""
    connection.execute(SQL["postpone_limited"], {"ids": plain(sorted(ids)), "delay": delay})


def free_slots(connection: Conn, ids: Iterable[int]) -> None:
    """These jobs have left their slots, or their turn for one: wake who is next, in the same transaction."""
    connection.execute(SQL["free_slots"], {"ids": plain(sorted(ids))})


def wake_missed(connection: Conn, after: str = "", limit: int = PAGE) -> tuple[int, str | None]:
    """Wake whoever waits for a slot that is free, along the lines of up to ``limit`` keys. Returns how many, and where to go on (None:
    that was all)."""
    row = connection.execute(SQL["wake_missed"], {"after": after, "limit": limit}).fetchone()
    assert row is not None
    return row[0], row[1]


def leave_lines(connection: Conn) -> None:
    """Have those give up their turn whose actor nobody knows, and wake who is behind them."""
    with connection.transaction():
        if keys := [row[0] for row in connection.execute(SQL["leave_lines"]).fetchall()]:
            connection.execute(SQL["wake_waiters"], {"keys": keys})


def renew_promises(connection: Conn, limit: int = PAGE) -> bool:
    """Where a rate changed: have those come that were promised a slot under the old one. Returns whether some are left."""
    left = False
    for name, version in connection.execute(SQL["renewing"]).fetchall():
        moved = connection.execute(SQL["promise_anew"], {"actor": name, "limit": limit}).rowcount
        if moved == limit:
            left = True
        else:
            connection.execute(SQL["promised_anew"], {"actor": name, "version": version})
    return left


def forget_gates(connection: Conn) -> int:
    """Remove keys that nobody asks for any more. Returns how many, a thousand at the most."""
    return connection.execute(SQL["forget_gates"]).rowcount


def declare_rules(connection: Conn, rules: Sequence[Rule]) -> None:
    """Say what the code and the settings of a process allow."""
    if rules:
        kinds, names, amounts, periods, bursts = (list(column) for column in zip(*rules, strict=True))
        parameters = {"kinds": kinds, "names": names, "amounts": amounts, "periods": periods, "bursts": bursts}
        connection.execute(SQL["declare_rules"], parameters)


def retract_rules(connection: Conn, rules: Sequence[Rule], *, actors: Sequence[str], queues: Sequence[str]) -> None:
    """Remove limits that these actors and queues had once and that are not among the rules any more."""
    kept = [f"{rule.kind} {rule.name}" for rule in rules]
    gone = connection.execute(SQL["retract_rules"], {"kept": kept, "actors": list(actors), "queues": list(queues)}).fetchall()
    offer_again(connection, [name for kind, name in gone if kind == "queue"])


def offer_again(connection: Conn, queues: Sequence[str]) -> None:
    """Have triggers published for the jobs of queues whose limit is gone, which were found without any while it was there."""
    while queues and connection.execute(SQL["offer_again"], {"queues": list(queues), "limit": PAGE}).rowcount == PAGE:
        pass


def set_rule(connection: Conn, rule: Rule) -> bool:
    """Put a limit in force, whatever the code declares. False: it is an actor's, and nobody has declared such a limit for it, so that its
    jobs have no key to be counted by."""
    return connection.execute(SQL["set_rule"], rule._asdict()).fetchone() is not None


def reset_rule(connection: Conn, kind: Kind, name: str) -> bool:
    """Put in force again what the code declares. False: nothing else was."""
    return connection.execute(SQL["reset_rule"], {"kind": kind, "name": name}).fetchone() is not None


def limits(connection: Conn) -> list[Limit]:
    """Every limit, by name."""
    found = []
    for row in connection.execute(SQL["rules"]).fetchall():
        kind, name, amount, period, burst, declared_amount, declared_period, declared_burst = row[:8]
        overridden, version, changed_at, keys, used, waiting, next_free_at = row[8:]
        found.append(
            Limit(
                kind=kind,
                name=name,
                in_force=Rule(kind, name, amount, period, burst),
                declared=None if declared_amount is None else Rule(kind, name, declared_amount, declared_period, declared_burst),
                overridden=overridden,
                version=version,
                changed_at=changed_at,
                keys=keys,
                used=used,
                waiting=waiting,
                next_free_at=next_free_at,
            )
        )
    return found
