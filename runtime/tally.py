"""What a process's executions came to since it last said so: per queue and actor how many ended how, how long they waited and ran.

Added to by the worker threads as executions end (some 2 us each), handed to the ledger with a heartbeat. It is for charts: should the
process die, the last third of a lease is missing from them, and should a reply be lost, it is there twice.
"""

from __future__ import annotations

import threading
from typing import Final

from ledger.charts import BUCKETS, bucket
from ledger.records import Finish
from ledger.states import State
from runtime.claims import Claim

Entry = tuple[str, str, list[int], list[int], list[int]]

#: Places in the counts.
COMPLETED: Final = 0
FAILED: Final = 1
DEAD: Final = 2


class Tally:
    """Counts and histograms of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], tuple[list[int], list[int], list[int]]] = {}

    def add(self, claim: Claim, finish: Finish) -> None:
        """Count one execution; what was released, snoozed or skipped does not count."""
        if finish.state is not State.COMPLETED and finish.outcome != "failed":
            return
        job = claim.job
        wait = bucket(job.claimed_ms - job.due_ms + (finish.started - claim.received) * 1000)
        run = bucket((finish.finished - finish.started) * 1000)
        with self._lock:
            counts, waits, runs = self._entry(job.queue, job.actor)
            if finish.state is State.COMPLETED:
                counts[COMPLETED] += 1
            else:
                counts[FAILED] += 1
                counts[DEAD] += finish.state is State.DEAD
            waits[wait] += 1
            runs[run] += 1

    def take(self) -> list[Entry]:
        """Everything counted since the last call."""
        with self._lock:
            entries, self._entries = self._entries, {}
        return [(*key, *values) for key, values in entries.items()]

    def put_back(self, entries: list[Entry]) -> None:
        """What could not be handed over counts again."""
        with self._lock:
            for queue, actor, *values in entries:
                for mine, other in zip(self._entry(queue, actor), values, strict=True):
                    mine[:] = [x + y for x, y in zip(mine, other, strict=True)]

    def _entry(self, queue: str, actor: str) -> tuple[list[int], list[int], list[int]]:
        entry = self._entries.get((queue, actor))
        if entry is None:
            entry = self._entries[queue, actor] = ([0] * 3, [0] * BUCKETS, [0] * BUCKETS)
        return entry
