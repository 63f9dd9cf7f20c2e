"""What names stand for: ids by their first characters, and which queues and actors the ledger has heard of.

People copy eight characters of an id, and mistype a queue's name, which no check can refuse: it may be meant for a worker that starts
tomorrow. Both are answered from indexes and from the latest rows, in the same time for any size of the ledger.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from ledger.sql import SQL

Conn = Connection[Any]

#: Fewer characters of an id than its first group are no name for it.
SHORTEST: Final = 8
#: So many of the latest jobs, samples and minutes are looked through for names.
RECENT: Final = 10_000

_DIGITS: Final = re.compile(r"[0-9a-f]+")
_ALL: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A job or a batch whose id begins so."""

    id: str
    #: What tells it from others: a job's actor and state, a batch's name.
    what: str


def id_range(text: str) -> tuple[UUID, UUID] | None:
    """The first and the last id that begin with a text, hyphens aside; None: no id does, or it is too short to mean one."""
    digits = text.strip().lower().replace("-", "")
    if not (SHORTEST <= len(digits) <= _ALL and _DIGITS.fullmatch(digits)):
        return None
    return UUID(digits.ljust(_ALL, "0")), UUID(digits.ljust(_ALL, "f"))


def jobs_beginning(connection: Conn, text: str, limit: int = 6) -> list[Found]:
    """The jobs whose ids begin with a text, up to ``limit``."""
    return [Found(id=id_, what=f"{actor}, {state}") for id_, state, actor in _within(connection, "jobs_beginning", text, limit)]


def batches_beginning(connection: Conn, text: str, limit: int = 6) -> list[Found]:
    """The batches whose ids begin with a text, up to ``limit``."""
    return [Found(id=id_, what=name or "") for id_, name in _within(connection, "batches_beginning", text, limit)]


def known_queues(connection: Conn) -> list[str]:
    """The queues that any process consumes or names, that a limit or a schedule is about, or that were in use lately."""
    return [row[0] for row in connection.execute(SQL["known_queues"], {"recent": RECENT}).fetchall()]


def declared_queues(connection: Conn) -> list[str]:
    """The queues that any worker consumes, or that a limit or a schedule in code is about; jobs alone make no queue one of these."""
    return [row[0] for row in connection.execute(SQL["declared_queues"]).fetchall()]


def known_actors(connection: Conn) -> list[str]:
    """The actors that any worker knows, that a limit or a schedule in code is about, or that were in use lately."""
    return [row[0] for row in connection.execute(SQL["known_actors"], {"recent": RECENT}).fetchall()]


def known_tags(connection: Conn) -> list[str]:
    """The tags of jobs that were sent lately."""
    return [row[0] for row in connection.execute(SQL["known_tags"], {"recent": RECENT}).fetchall()]


def known_error_types(connection: Conn) -> list[str]:
    """The types of error of the latest dead letters."""
    return [row[0] for row in connection.execute(SQL["known_error_types"], {"recent": RECENT}).fetchall()]


def known_fingerprints(connection: Conn) -> list[str]:
    """The groups that the latest dead letters are of."""
    return [row[0] for row in connection.execute(SQL["known_fingerprints"], {"recent": RECENT}).fetchall()]


def known_reasons(connection: Conn) -> list[str]:
    """Why the latest dead letters are dead."""
    return [row[0] for row in connection.execute(SQL["known_reasons"], {"recent": RECENT}).fetchall()]


def _within(connection: Conn, statement: str, text: str, limit: int) -> list[tuple[Any, ...]]:
    ends = id_range(text)
    if ends is None:
        return []
    return connection.execute(SQL[statement], {"first": ends[0], "last": ends[1], "limit": limit}).fetchall()
