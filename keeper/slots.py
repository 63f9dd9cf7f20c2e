"""Slots: whoever waits for one that is free is woken, should the end that freed it not have done so.

Every end of a job wakes who is next in its own transaction (``ledger.limits.free_slots``). What is left for this duty is what no end
tells: a limit that was raised or taken away, a queue that has one since its jobs began, a key whose newcomers lined up behind a turn that
nobody took.
After a rate changed it also has those come that were promised a slot under the old one.
"""

from __future__ import annotations

from keeper.duty import Keeping
from ledger import limits
from ledger.database import BoundedConnection
from ledger.sql import SQL

NAME = "slots"
#: Seconds until the next turn while there is more.
SOON = 0.05


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: wake who waits in vain, if no other keeper is at it."""
    if not keeping.seen.held:
        return None
    with connection.transaction():
        if connection.execute(SQL["take_duty"], {"name": NAME}).fetchone() is None:
            return None
        # Keys are texts and the position of a duty is a number, so a walk over many keys is this process's own.
        woken, after = limits.wake_missed(connection, keeping.memory.get(NAME, ""))
        keeping.memory[NAME] = after or ""
        more = limits.renew_promises(connection)
        connection.execute(SQL["leave_duty"], {"name": NAME, "pause": 0.0, "position": 0})
    if woken:
        keeping.node.counters.add("woken", woken)
    return SOON if more or after else None


def forget(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: remove keys that nobody asks for any more."""
    return SOON if limits.forget_gates(connection) == limits.PAGE else None
