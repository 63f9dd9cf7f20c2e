"""What a process's executions came to since it last said so: per queue and actor how many ended how, how long they waited and ran.

Added to by the worker threads as executions end (a microsecond each), handed to the ledger with a heartbeat. It is for charts: should the
process die, the last third of a lease is missing from them, and should a reply be lost, it is there twice.
"""

from __future__ import annotations

import threading
from typing import Final

from ledger.charts import BUCKETS
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
        # By what was the same of many executions, so that counting one is a single look-up: their queue, actor and end, and the bits of
        # their milliseconds of waiting and running.
        self._counted: dict[tuple[str, str, int, int, int], int] = {}
        #: What could not be handed over.
        self._kept: list[Entry] = []

    def add(self, claim: Claim, finish: Finish) -> None:
        """Count one execution; what was released, snoozed or skipped does not count."""
        if finish.state is State.COMPLETED:
            end = COMPLETED
        elif finish.outcome == "failed":
            end = DEAD if finish.state is State.DEAD else FAILED
        else:
            return
        job = claim.job
        wait = int(job.claimed_ms - job.due_ms + (finish.started - claim.received) * 1000)
        run = int((finish.finished - finish.started) * 1000)
        kind = (job.queue, job.actor, end, wait.bit_length() if wait > 0 else 0, run.bit_length() if run > 0 else 0)
        with self._lock:
            self._counted[kind] = self._counted.get(kind, 0) + 1

    def take(self) -> list[Entry]:
        """Everything counted since the last call."""
        with self._lock:
            counted, self._counted = self._counted, {}
            kept, self._kept = self._kept, []
        entries = {(queue, actor): (counts, waits, runs) for queue, actor, counts, waits, runs in kept}
        for (queue, actor, end, wait, run), count in counted.items():
            entry = entries.get((queue, actor))
            if entry is None:
                entry = entries[queue, actor] = ([0] * 3, [0] * BUCKETS, [0] * BUCKETS)
            counts, waits, runs = entry
            counts[end] += count
            if end == DEAD:
                counts[FAILED] += count
            waits[min(wait, BUCKETS - 1)] += count
            runs[min(run, BUCKETS - 1)] += count
        return [(*key, *values) for key, values in entries.items()]

    def put_back(self, entries: list[Entry]) -> None:
        """What was taken last and could not be handed over counts again."""
        with self._lock:
            self._kept = entries
