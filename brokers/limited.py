"""What a limit decides about, claimed for idle threads alone, in turns with everything else.

Whether such a job may run is decided in the ledger (``ledger.limits.admit``), whatever broker carries its trigger: the trigger only says
that there is something in its queue. So a process need not keep the triggers of jobs for which it has no thread, and whoever has one finds
the first of them. While some may wait here, they and the plain jobs take turns: neither is prefetched past the other for ever (ADR 26).

    trigger, ring, look ──► queues that may hold some ──► an idle thread ──► admit ──► hand over
                                      ▲                                        │
                                      └──────────── some were left ────────────┘

The brokers' own state is not asked: with the broker away, the look finds what waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final

from ledger import limits
from ledger.database import BoundedConnection
from ledger.records import ClaimedJob
from runtime.node import WorkerNode

#: How often to look for limited jobs that nobody spoke of, in seconds, while there were some lately. Else it is the sweep.
LOOK: Final = 1.0
#: How long lately is, in seconds.
LATELY: Final = 30.0
#: How long nobody need look for the trigger of a limited job that was seen here, in seconds: it needs none to be found.
POSTPONED: Final = 900.0

Claiming = Callable[[Callable[[BoundedConnection, str], list[ClaimedJob]]], list[ClaimedJob]]


class LimitedJobs:
    """The limited jobs of one fetcher's queues.

    Parameters:
        claim: runs a claim and takes its jobs in hand, as the fetcher does.
        queues, actors: what the process takes in, asked anew each time.
        declared: the queues in which the code or the settings have limits.
    """

    def __init__(
        self,
        node: WorkerNode,
        claim: Claiming,
        *,
        queues: Callable[[], list[str]],
        actors: Callable[[], list[str]],
        declared: Callable[[], Iterable[str]],
    ) -> None:
        self._node = node
        self._claim = claim
        self._queues = queues
        self._actors = actors
        self._declared = declared
        # Queues that may hold some, ordinary ones and suspects, in the order of their turns.
        self._waiting: dict[str, None] = {}
        self._suspects: dict[str, None] = {}
        self._seen: set[str] = set()
        self._seen_at = -LATELY
        self._look_at = 0.0
        self._next = True

    def patience(self, longest: float) -> float:
        """How long to wait for something else, ``longest`` seconds at the most: not at all while some may wait for a thread, and about
        until the suspect in hand has ended while another one may."""
        if self._waiting:
            return 0.0
        return min(longest, self._node.held.suspect_pause()) if self._suspects else longest

    def heard(self, queue: str, *, suspect: bool = False) -> None:
        """There is a limited job in this queue."""
        self._seen.add(queue)
        self._seen_at = monotonic()
        if not self._waiting:
            self._next = True
        (self._suspects if suspect else self._waiting)[queue] = None

    def rang(self, queues: Iterable[str]) -> None:
        """There is something in these queues; where limited jobs are known to come, it may be one."""
        known = self._seen.union(self._declared())
        for queue in queues:
            if queue in known:
                self.heard(queue)

    def look(self, connected: Callable[[], BoundedConnection]) -> None:
        """Ask the ledger for some that nobody spoke of, when it is time to."""
        now = monotonic()
        if now < self._look_at:
            return
        for queue, suspect in limits.limited_queues(connected(), self._queues(), self._actors()):
            self.heard(queue, suspect=suspect)
        self._look_at = now + (LOOK if now - self._seen_at < LATELY else self._node.settings.sweep)

    def take_turn(self, timeout: float) -> None:
        """Claim some, if it is their turn, waiting up to ``timeout`` seconds for an idle thread."""
        if not self._waiting and not self._suspects:
            return
        self._next = not self._next
        if not self._next:
            self.take(self._node.held.wait_for_idle(timeout) if self._waiting else self._node.held.idle())

    def take(self, idle: int) -> None:
        """Claim some for so many idle threads."""
        held = self._node.held
        # Two fetchers of one process must not both fill the same thread.
        if idle <= 0 or not held.admitting.acquire(blocking=False):
            return
        try:
            for queue in list(self._suspects):
                # One suspect at a time: were there two, a death would not tell which one was guilty.
                if held.suspect_held or held.idle() <= 0:
                    break
                del self._suspects[queue]
                if self._admit(queue, 1, suspects=True):
                    self._suspects[queue] = None
            for queue in list(self._waiting):
                idle = held.idle()
                if idle <= 0:
                    break
                del self._waiting[queue]
                if self._admit(queue, idle, suspects=False):
                    # The others come first.
                    self._waiting[queue] = None
        finally:
            held.admitting.release()

    def clear(self) -> None:
        """Forget what was heard; the look finds it again."""
        self._waiting.clear()
        self._suspects.clear()

    def _admit(self, queue: str, idle: int, *, suspects: bool) -> bool:
        """Returns whether some are left that may run."""
        node, actors = self._node, self._actors()
        decided: list[limits.Admitted] = []

        def admit(connection: BoundedConnection, token: str) -> list[ClaimedJob]:
            admitted = limits.admit(
                connection, queue, actors=actors, worker=node.id, token=token, lease=node.held.lease, idle=idle, suspects=suspects
            )
            decided.append(admitted)
            return admitted.jobs

        self._claim(admit)
        # Nothing decided: its reply was lost, and what it took was read back.
        more = not decided or decided[0].more
        if decided and decided[0].soonest is not None:
            node.on_waiting(decided[0].soonest)
        return more


def postpone(connection: BoundedConnection, ids: Sequence[int]) -> None:
    """Those of the jobs that still wait need no trigger any more to be found."""
    limits.postpone_limited(connection, ids, POSTPONED)
