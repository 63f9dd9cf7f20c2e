"""The one constant that has to shrink along with LEASE: how long a trigger may take before it counts as lost.

LEASE is 30 s by default and 2 s here; the repair grace goes with it, else each trigger that dies with its process would keep a scenario
waiting for half a minute. ``PUBLISH_GRACE`` in the environment overrides it (in seconds).
"""

from __future__ import annotations

import os

import ledger.write
import runtime.publisher

#: Seconds.
GRACE = 3.0


def apply() -> None:
    """Shrink it in this process."""
    grace = float(os.environ.get("PUBLISH_GRACE", GRACE))
    # Final says that the product never changes it.
    vars(ledger.write)["PUBLISH_GRACE"] = grace
    vars(runtime.publisher)["PUBLISH_GRACE"] = grace
