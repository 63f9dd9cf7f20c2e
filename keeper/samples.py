"""Samples: how full each queue is, once per SAMPLE_EVERY, for charts; a week of them is kept.

Whichever keeper comes first writes the interval's rows; the others find that it is done. What the workers did in between stands in
``activity``, written by themselves; here it is only kept from growing. A sample reads what is active, some 0.3 s per million jobs, and
nothing of what has ended.
"""

from __future__ import annotations

from typing import Final

from keeper.duty import Keeping
from ledger.database import BoundedConnection
from ledger.sql import SQL

NAME: Final = "samples"
#: How long samples and activity are kept, in seconds.
KEEP: Final = 7 * 86_400.0


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: sample, once per interval, and forget what is too old. The next turn is when the next interval begins."""
    every = keeping.settings.sample_every
    row = connection.execute(SQL["until_next_sample"], {"every": every}).fetchone()
    assert row is not None
    pause: float = row[0]
    with connection.transaction():
        if connection.execute(SQL["take_duty"], {"name": NAME}).fetchone() is not None:
            connection.execute(SQL["sample"], {"every": every})
            connection.execute(SQL["forget_samples"], {"keep": KEEP})
            connection.execute(SQL["forget_activity"], {"keep": KEEP})
            connection.execute(SQL["leave_duty"], {"name": NAME, "pause": pause, "position": 0})
    # A little later, so that it is due by the database's clock as well.
    return pause + 0.05
