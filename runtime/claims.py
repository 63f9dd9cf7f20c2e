"""The claims a worker process holds, from the claim's commit to the commit of how the execution ended.

    fetcher ──accept──► unstarted ──start──► running ──finish──► settling ──committed──► gone
                            └── withdraw (shutdown, waited too long) ──► released

A claim is in exactly one of the three tables, and moving it is one ``dict.pop``: whoever pops it owns the move, so a claim can never
be started and released at once. Room is what the process may still take: one budget for all its transports, the idle threads
plus what finished within the last 50 ms, or within three claims where those take longer, so that short jobs are fetched in large batches
and long ones are not hoarded. A claim that a
thread is just starting is in none of the three for a moment (for a suspect: for a whole statement), yet it occupies its thread; so what
the room is reckoned by is ``occupied``, which holds a claim from ``accept`` until its execution has ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from time import monotonic
from typing import Any, Final

from ledger.records import ClaimedJob, Finish
from runtime.interrupt import Guard
from runtime.secrets import Redactor

#: The stretch of work that may wait in the process, in seconds, where claims are quick; where they are not, this many claims' time, up to
#: a limit. Half of it has to last for a claim: were it shorter, the threads would run dry during each, finish less, and have room for less
#: still (ADR 25).
ROOM_WINDOW: Final = 0.05
ROOM_CLAIMS: Final = 3
MAX_ROOM_WINDOW: Final = 0.5
#: How much of a slow claim the next one still counts for.
_FADING: Final = 0.8
#: Most claims that may wait unstarted, however short the jobs are.
MAX_ROOM: Final = 500
#: The share of a lease after which a process that could not heartbeat starts nothing any more.
LEASE_MARGIN: Final = 0.8


class Completion(Enum):
    """Where a job is that ends in a transaction of its own (``job.transaction()``), instead of by the flusher."""

    #: The guarded finish is on its way to the commit: whether the row is still ours is for that transaction to find out.
    UNDER_WAY = "under way"
    #: The end is written, nothing more is.
    COMMITTED = "committed"


class Claim:
    """One job that this process owns until its lease ends."""

    __slots__ = (
        "cancel_requested",
        "completion",
        "deadline",
        "ending",
        "guard",
        "job",
        "log_lines",
        "lost",
        "received",
        "redactor",
        "start_recorded",
        "started",
        "time_limit",
        "token",
    )

    def __init__(self, job: ClaimedJob, token: str, requested: float, lease: float) -> None:
        self.job = job
        self.token = token
        #: Monotonic times: when the claim arrived, when its body started, until when its lease can be trusted.
        self.received = monotonic()
        self.started: float | None = None
        #: Whether the ledger knows that it started.
        self.start_recorded = False
        self.deadline = requested + LEASE_MARGIN * lease
        #: How the execution ended, as the hooks noted it; it leaves the process through ack or nack alone.
        self.ending: Finish | None = None
        #: Set by ``job.transaction()`` alone.
        self.completion: Completion | None = None
        #: Another process may own the job by now: nothing this one writes is accepted.
        self.lost = False
        #: Somebody wants the job to stop.
        self.cancel_requested = False
        #: Seconds after which the body is interrupted; None: never.
        self.time_limit: float | None = None
        self.guard: Guard | None = None
        #: Hides the job's secrets in texts; set once they are decrypted.
        self.redactor: Redactor | None = None
        self.log_lines = 0

    def redacted(self, text: str) -> str:
        """A text without the job's secrets."""
        return text if self.redactor is None else self.redactor.text(text)

    def masked(self, value: Any) -> Any:
        """A value that will be stored, without the job's secrets."""
        return value if self.redactor is None else self.redactor.value(value)


class HeldClaims:
    """The three tables, the room, and the one place for a suspect.

    Parameters:
        threads: worker threads of the process.
        lease: seconds a claim stays valid without a heartbeat.
        commit_start: commits that a suspect, or a job that may not be lost twice, starts; False means its claim is lost.
    """

    def __init__(self, *, threads: int, lease: float, commit_start: Callable[[Claim], bool]) -> None:
        self.threads = threads
        self.lease = lease
        self.unstarted: dict[Claim, None] = {}
        self.running: dict[Claim, None] = {}
        self.settling: dict[Claim, None] = {}
        self.distrusted: dict[Claim, None] = {}
        #: What is paused, as this process last heard: pairs of queue and actor. The ledger refuses claims by itself; this is for those
        #: that were under way when the pause began.
        self.paused: Sequence[tuple[str, str]] = ()
        #: Everything unstarted, starting or running.
        self.occupied: dict[Claim, None] = {}
        self.finished = 0
        #: How many claims were ever taken in hand, so that a fetcher learns what another one took while it waited for its broker.
        self.accepted = 0
        #: Executions that never ended; their threads are lost to the process.
        self.given_up = 0
        #: Held while limited jobs are claimed, for idle threads alone.
        self.admitting = threading.Lock()
        self._commit_start = commit_start
        self._suspect: Claim | None = None
        self._samples: deque[tuple[float, int]] = deque([(monotonic(), 0)])
        self._window = ROOM_WINDOW
        self._closed = False
        self._wake_at = 0
        self._room_wanted = False
        self._room_freed = threading.Event()

    def room(self) -> int:
        """How many more jobs may be claimed now (0: none)."""
        waiting = len(self.unstarted)
        # Not by counting who runs and who waits: whoever moved between the two looks would be missed, and one job too many claimed.
        budget = min(MAX_ROOM, max(0, self.threads + self._recent() - len(self.occupied) + waiting))
        # Fill up at half: claiming one by one as each job ends would cost a statement per job.
        self._wake_at = budget // 2
        return max(0, budget - waiting) if waiting <= self._wake_at and not self._closed else 0

    def _recent(self) -> int:
        """How many executions ended within the window."""
        now, finished, window = monotonic(), self.finished, self._window
        samples = self._samples
        while len(samples) > 1 and samples[1][0] < now - window:
            samples.popleft()
        since, before = samples[0]
        recent = (finished - before) * min(1.0, window / max(now - since, 1e-6))
        if now - samples[-1][0] > window / 10:
            samples.append((now, finished))
        return int(recent)

    def wait_for_room(self, timeout: float) -> int:
        """Block until there is room, for at most ``timeout`` seconds or until ``close``. Returns the room."""
        deadline = monotonic() + timeout
        while True:
            self._room_freed.clear()
            self._room_wanted = True
            room = self.room()
            left = deadline - monotonic()
            if room > 0 or left <= 0 or self._closed:
                self._room_wanted = False
                return room
            self._room_freed.wait(left)

    def idle(self) -> int:
        """How many threads have nothing to do, and nothing that waits for them."""
        return 0 if self._closed else max(0, self.threads - len(self.occupied))

    def wait_for_idle(self, timeout: float) -> int:
        """Block until a thread is idle, for at most ``timeout`` seconds or until ``close``. Returns how many are."""
        deadline = monotonic() + timeout
        while True:
            self._room_freed.clear()
            self._room_wanted = True
            # Each end counts, however much waits.
            self._wake_at = MAX_ROOM
            idle = self.idle()
            left = deadline - monotonic()
            if idle > 0 or left <= 0 or self._closed:
                self._room_wanted = False
                return idle
            self._room_freed.wait(left)

    def close(self) -> None:
        """Take no more: there is no room from now on, and nobody waits for it."""
        self._closed = True
        self._room_freed.set()

    def accept(self, claims: Iterable[Claim], took: float = 0.0) -> None:
        """Claims that were committed, and how long that took, in seconds."""
        self._window = min(MAX_ROOM_WINDOW, max(ROOM_WINDOW, ROOM_CLAIMS * took, _FADING * self._window))
        for claim in claims:
            if claim.job.suspect:
                self._suspect = claim
            self.occupied[claim] = None
            self.unstarted[claim] = None
            self.accepted += 1

    def start(self, claim: Claim) -> bool:
        """Whether this thread may run the claim now. False: it was released or lost meanwhile, or the process is ending."""
        if self._closed:
            # Left where it is: the shutdown releases what has not started, also what was claimed while it began.
            return False
        if self._taken(self.unstarted, claim):
            if claim.lost:
                self._vacate(claim)
                self.forget(claim)
                return False
            if claim.cancel_requested or (self.paused and self.is_paused(claim.job)):
                self._vacate(claim)
                self.distrusted[claim] = None
                return False
            told = claim.job.suspect or claim.job.max_lost == 1
            if monotonic() > claim.deadline or (told and not self._commit_start(claim)):
                # Not to be trusted, yet perhaps still ours: the heartbeat gives it back by its token once Postgres answers.
                self._vacate(claim)
                self.distrusted[claim] = None
                return False
            claim.started = monotonic()
            self.running[claim] = None
            return True
        return False

    def finish(self, claim: Claim) -> bool:
        """The execution is over, its end on the way into the ledger. False: it was given up before (a release at the grace's end)."""
        if not self._taken(self.running, claim):
            return False
        self.settling[claim] = None
        self._vacate(claim)
        self.finished += 1
        if self._room_wanted and len(self.unstarted) <= self._wake_at:
            self._room_freed.set()
        return True

    def give_up(self, claim: Claim) -> bool:
        """The execution does not end: its end is written without it, and its thread is lost. False: it has ended after all."""
        if not self._taken(self.running, claim):
            return False
        claim.lost = True
        self.settling[claim] = None
        self._vacate(claim)
        self.given_up += 1
        self.threads -= 1
        return True

    def forget(self, claim: Claim) -> None:
        """The claim has left the process for good."""
        self.settling.pop(claim, None)
        if self._suspect is claim:
            self._suspect = None
        if self._room_wanted:
            self._room_freed.set()

    def withdraw(self, older_than: float = 0.0) -> list[Claim]:
        """Take back what has not started (and has waited for ``older_than`` seconds) or may not start, to be released."""
        horizon = monotonic() - older_than
        waited = [c for c in list(self.unstarted) if c.received <= horizon and self._taken(self.unstarted, c)]
        for claim in waited:
            self._vacate(claim)
        return waited + [claim for claim in list(self.distrusted) if self._taken(self.distrusted, claim)]

    def refuse(self, claims: Iterable[Claim]) -> None:
        """Of these, what has not started may not start, and is withdrawn next time."""
        for claim in claims:
            if self._taken(self.unstarted, claim):
                self._vacate(claim)
                self.distrusted[claim] = None

    def is_paused(self, job: ClaimedJob) -> bool:
        """Whether a job is of a queue or an actor that was paused when this process last looked."""
        return any(queue in (job.queue, "*") and actor in (job.actor, "*") for queue, actor in self.paused)

    def distrust(self, claims: Iterable[Claim]) -> None:
        """Withdrawn claims whose release failed: they may not start, and are withdrawn again."""
        for claim in claims:
            self.distrusted[claim] = None

    def withdraw_running(self) -> list[Claim]:
        """Take back what is running: the process is about to end, and nothing these threads do counts any more."""
        taken = [claim for claim in list(self.running) if self._taken(self.running, claim)]
        for claim in taken:
            self._vacate(claim)
        return taken

    def all(self) -> list[Claim]:
        """Everything whose lease has to be extended."""
        return list({**self.occupied, **self.settling})

    @property
    def suspect_held(self) -> bool:
        """Whether a suspect is held: a process holds one at a time, so that a death tells which one was guilty."""
        return self._suspect is not None

    def suspect_pause(self) -> float:
        """How long to wait, in seconds, before asking again whether the next suspect may run: a fifth of the age of the one in hand."""
        suspect = self._suspect
        return 0.01 if suspect is None else min(1.0, max(0.01, (monotonic() - suspect.received) / 5))

    def _vacate(self, claim: Claim) -> None:
        self.occupied.pop(claim, None)

    @staticmethod
    def _taken(table: dict[Claim, Any], claim: Claim) -> bool:
        return table.pop(claim, claim) is None
