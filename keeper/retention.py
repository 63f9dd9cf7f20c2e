"""Retention: jobs that ended long ago go, their attempts and logs with them. Nothing else is ever removed: the database refuses it.

One keeper at a time walks over the jobs by id, from the oldest to the first one younger than the shortest retention, a page a turn and at
most five hundred removals, with a pause after each; so it needs no index of its own, which every job would pay for when it ends, and no
scan. How far the walk got is stored, so that whichever keeper has the next turn goes on there. When it is over, the next one begins after
an hour, sooner where jobs are kept for less than a day.

A replay never sees half of a workflow. What is to go is held first, with the outermost batch around it, and looked at once more, so that
whoever replays something that relies on it comes before that and keeps it, or is refused (``ledger.batches.wait_again``). What is left of
a workflow that did not succeed, once retention has begun with it, is not replayed any more (``batch.pruned_at``).

If the process dies in a turn, the turn is rolled back, and another keeper does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from psycopg import Connection
from structlog.stdlib import get_logger

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL
from settings import Settings

logger = get_logger(__name__)

NAME: Final = "retention"
#: Rows that one turn looks at, and how many of them it removes at most.
PAGE: Final = 2_500
LIMIT: Final = 500
#: Seconds between two turns of a walk: the disk has others to serve.
PAUSE: Final = 0.1
#: Longest time from the end of a walk to the beginning of the next, in seconds.
REST: Final = 3_600.0
#: A job outlives its retention by at most this share, if that is more often.
SLACK: Final = 1 / 24
#: How often a keeper asks whether there is a turn to take, in seconds.
ASK: Final = 60.0


def period(settings: Settings) -> float:
    """Seconds between two questions whether there is something to do."""
    return min(ASK, rest(settings))


def rest(settings: Settings) -> float:
    """Seconds from the end of a walk to the beginning of the next."""
    return min(REST, max(1.0, SLACK * min(seconds for *_, seconds in rules(settings))))


def rules(settings: Settings) -> Iterator[tuple[str, str, str, float]]:
    """How long jobs are kept: state, ``all``, ``queue`` or ``actor``, its name, and seconds."""
    yield "completed", "all", "", settings.retain_completed
    yield "dead", "all", "", settings.retain_dead
    yield "cancelled", "all", "", settings.retain_cancelled
    for key, seconds in settings.retain_overrides.items():
        state, kind, name = key.split(":")
        yield state, kind, name, seconds


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: one page, if no other keeper is at it."""
    with connection.transaction():
        row = connection.execute(SQL["take_duty"], {"name": NAME}).fetchone()
        if row is None:
            return None
        removed, position, over = prune(connection, keeping.settings, after=row[0])
        pause = rest(keeping.settings) if over else PAUSE
        connection.execute(SQL["leave_duty"], {"name": NAME, "pause": pause, "position": 0 if over else position})
    if removed:
        keeping.node.counters.add("pruned", removed)
        logger.debug("removed jobs that ended long ago", jobs=removed)
    return None if over else PAUSE


def prune(connection: Connection[Any], settings: Settings, *, after: int = 0, now: object = None) -> tuple[int, int, bool]:
    """Remove what is too old among the jobs of one page. Returns how many, the id to go on after, and whether the walk is over.

    Parameters:
        after: the page begins with the next id.
        now: a ``datetime`` instead of the database's clock, for tests.
    """
    states, kinds, names, seconds = map(list, zip(*rules(settings), strict=True))
    parameters: dict[str, Any] = {
        "states": states,
        "kinds": kinds,
        "names": names,
        "seconds": seconds,
        "after": after,
        "upto": None,
        "page": PAGE,
        "limit": LIMIT,
        "now": now,
    }
    with connection.transaction():
        found, position, over = _look(connection, parameters)
        held = _hold(connection, found)
        if held:
            # Once more, in a snapshot taken when the rows were held: a replay that was committed in between is seen, and none can be now.
            again, *_ = _look(connection, parameters | {"upto": max(held)})
            held = {id_: root for id_, root in again.items() if id_ in held}
        if held:
            if roots := sorted({root for root in held.values() if root}):
                connection.execute(SQL["mark_pruned"], {"ids": roots})
            connection.execute(SQL["prune"], {"ids": list(held)}).fetchall()
    return len(held), position, over


def _look(connection: Connection[Any], parameters: dict[str, Any]) -> tuple[dict[int, str], int, bool]:
    """What of a page may go, each with the outermost batch around it (or an empty text); the id to go on after, and whether it is over."""
    row = connection.execute(SQL["prunable"], parameters).fetchone()
    assert row is not None
    return dict(zip(row[0], row[1], strict=True)), row[2] or 0, row[3]


def _hold(connection: Connection[Any], found: dict[int, str]) -> dict[int, str]:
    """Those of the jobs that can be held now, with the workflows that they are in; what others have in hand has the next walk."""
    if roots := sorted({root for root in found.values() if root}):
        free = {row[0] for row in connection.execute(SQL["hold_workflows"], {"ids": roots}).fetchall()}
        found = {id_: root for id_, root in found.items() if not root or root in free}
    if not found:
        return {}
    ids = {row[0] for row in connection.execute(SQL["hold_prunable"], {"ids": list(found)}).fetchall()}
    return {id_: root for id_, root in found.items() if id_ in ids}
