"""One worker process: its claims, its queue, its flusher and heartbeat, and how it ends.

    boot       the database is checked, the first heartbeat registers the process
    shutdown   1. nothing is fetched any more; what has not started is released, spending no attempt
               2. running jobs may end within SHUTDOWN_GRACE
               3. then they get ``Shutdown``; a second later they are released by token, due at once, and the process ends

Recycling is the same on the process's own account, with an exit code that says so. Under ``switchyard worker``, where another process has
taken over, running jobs may then take as long as their time limits, until somebody tells this process to stop.

Dramatiq's own order (threads first, up to ten minutes) never gets as far as step 3 by itself, so a thread of ours keeps the time.
A second signal makes Dramatiq leave at once, stopping nothing, and only the threads keep the process alive: that is the grace's end.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Final

import psycopg
from dramatiq.middleware import Shutdown
from structlog.stdlib import get_logger

from errors import LedgerUnavailable
from ledger import write
from ledger.database import Database
from ledger.records import Finish, WorkerRow
from ledger.states import State
from runtime import process
from runtime.claims import Claim, Completion, HeldClaims
from runtime.counters import Counters
from runtime.flusher import Flusher
from runtime.heartbeat import Heartbeat
from runtime.identity import own_version, worker_id
from runtime.routes import Routes
from runtime.tally import Tally
from runtime.watchdog import Watchdog
from runtime.workqueue import WorkQueue
from settings import Settings

logger = get_logger(__name__)

#: How long a job that got ``Shutdown`` may take to clean up, in seconds.
CLEAN_UP: Final = 1.0
#: How often a process that is ending looks whether there is anything left to wait for, in seconds.
GRACE_CHECK: Final = 0.2
#: How long the last results may take to be written, in seconds.
LAST_FLUSH: Final = 5.0


class WorkerNode:
    """What one worker process holds.

    Parameters:
        queues: the queues it consumes, asked at every heartbeat.
        routes: this process's view of the routes, kept fresh by the heartbeat.
        actors: the actors it knows, asked at every heartbeat; None: it does not say.
        on_waiting: told the seconds until the soonest job that this process sent into waiting.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        threads: int,
        queues: Callable[[], list[str]],
        routes: Routes,
        actors: Callable[[], list[str] | None] = lambda: None,
        on_waiting: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.id = worker_id()
        self.settings = settings
        self.database = database
        self.counters = Counters()
        self.tally = Tally()
        self.held = HeldClaims(threads=threads, lease=settings.lease, commit_start=self._commit_start)
        self.queue = WorkQueue(self.held)
        #: Told the seconds until the soonest job that this process sent into waiting.
        self.on_waiting = on_waiting
        self.flusher = Flusher(database, self.held, self.counters, on_waiting=on_waiting)
        row = WorkerRow(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            broker=settings.broker,
            queues=queues(),
            threads=threads,
            lease=settings.lease,
            routes=routes.declared,
            version=own_version(),
        )
        self.heartbeat = Heartbeat(database, self.held, self.counters, row, queues, routes, actors, self.tally)
        self.watchdog = Watchdog(settings.watchdog, lease=settings.lease, end=self._break_off)
        self.watchdog.watch("flusher", lambda: self.flusher.alive, self.flusher.pulse)
        self.watchdog.watch("heartbeat", lambda: self.heartbeat.alive, self.heartbeat.pulse)
        #: Why the process wants to be replaced; None: it does not.
        self.recycling: str | None = None
        self._recycle_lock = threading.Lock()
        self._leave_at = inf
        self._stopped = threading.Event()
        self._grace_over = threading.Event()
        #: Set when the shutdown begins.
        self.leaving = threading.Event()

    def start(self) -> None:
        """Register the process and start its threads. Raises: LedgerUnavailable."""
        self.heartbeat.start()
        self.flusher.start()

    def finish(self, claim: Claim, finish: Finish) -> None:
        """The execution of a claim has ended; the flusher writes how, unless the job's own transaction did."""
        if not self.held.finish(claim):
            return
        self.tally.add(claim, finish)
        if claim.completion is Completion.COMMITTED:
            self.held.forget(claim)
        else:
            self.flusher.put(claim, finish)

    def give_up(self, claim: Claim, finish: Finish) -> bool:
        """The execution of a claim does not end, whatever one does: write how it ended all the same, and have the process replaced, since
        nothing ends the thread. False: it has ended, or is about to by a commit of its own."""
        if claim.completion is Completion.UNDER_WAY or not self.held.give_up(claim):
            return False
        if claim.completion is Completion.COMMITTED:
            # It is completed, and only its thread is not.
            self.tally.add(claim, claim.ending or finish)
            self.held.forget(claim)
        else:
            self.tally.add(claim, finish)
            self.flusher.put(claim, finish)
        self.recycle(f"job {claim.job.message_id} ({claim.job.actor}) does not end and keeps its thread")
        return True

    def recycle(self, reason: str) -> None:
        """End this process in order, and have another take its place. A process that is not ours is left alone."""
        with self._recycle_lock:
            if self.recycling is not None:
                return
            self.recycling = reason
        if not process.is_ours():
            logger.error("this process should be replaced", reason=reason)
            return
        logger.warning("recycling this process", reason=reason)
        process.ask_to_recycle()

    def told_to_stop(self, *, hurry: bool) -> None:
        """Somebody wants this process to end: from now on the grace counts, or is over (``hurry``)."""
        self._leave_at = min(self._leave_at, monotonic() + self.settings.shutdown_grace)
        if hurry:
            self._grace_over.set()

    def release_unstarted(self) -> None:
        """Give back what has not started. Without Postgres the leases do it later."""
        claims = self.held.withdraw()
        if not claims:
            return
        try:
            self.database.run(lambda c: write.release_unstarted(c, [(claim.job.id, claim.token) for claim in claims]))
        except (LedgerUnavailable, psycopg.Error) as error:
            logger.warning("could not release jobs, their leases will", jobs=len(claims), error=str(error).strip())
        else:
            self.counters.add("released_unstarted", len(claims))
        for claim in claims:
            self.held.forget(claim)

    def begin_shutdown(self) -> None:
        """Release what has not started, and see to it that what runs ends within the grace."""
        self.leaving.set()
        self.watchdog.relax()
        self.held.close()
        self.queue.close()
        if self.recycling is None or not process.is_supervised():
            self.told_to_stop(hurry=False)
        self.release_unstarted()
        threading.Thread(target=self._enforce_grace, name="switchyard-grace", daemon=True).start()

    def hurry(self) -> None:
        """The process was told to leave at once: what runs has no more time, is released, and the process ends."""
        self._grace_over.set()
        if not self.leaving.is_set():
            self.begin_shutdown()

    def stop(self) -> None:
        """Every thread has come to rest: write the last results and sign off."""
        self._stopped.set()
        self._grace_over.set()
        self.flusher.stop(LAST_FLUSH)
        self.heartbeat.stop()
        self.watchdog.stop()

    def _enforce_grace(self) -> None:
        ours = process.is_ours()
        while (left := self._leave_at - monotonic()) > 0 and not self._grace_over.wait(min(GRACE_CHECK, left)):
            if self.held.given_up and not self.held.running:
                # Nobody but threads that never end is left to wait for.
                break
        if self._stopped.is_set():
            return
        running = list(self.held.running)
        if running:
            logger.warning("no more time, interrupting jobs", jobs=len(running))
        for claim in running:
            if claim.guard is not None:
                claim.guard.interrupt(Shutdown)
        if running and self._stopped.wait(CLEAN_UP):
            return
        stuck = [claim for claim in self.held.withdraw_running() if claim.completion is not Completion.COMMITTED]
        for claim in stuck:
            self.held.settling[claim] = None
            self.flusher.put(claim, released(claim))
        self.flusher.stop(LAST_FLUSH)
        self.heartbeat.stop()
        if not ours:
            # A worker inside somebody's own process, such as a test's: their jobs are released, the process is theirs to end.
            logger.error("released jobs that did not end, their threads go on without effect", jobs=len(stuck))
            return
        if stuck:
            logger.warning("released jobs that did not end, leaving", jobs=len(stuck))
        for stream in (sys.stdout, sys.stderr):
            # Whoever read it may be gone, and that must not keep this process.
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(0 if self.recycling is None else process.RECYCLED)

    def _break_off(self, reason: str) -> None:
        if process.is_ours():
            process.break_off(reason)
        logger.critical("a worker in this process is out of order", reason=reason)

    def _commit_start(self, claim: Claim) -> bool:
        try:
            return self.database.run(lambda c: write.record_start(c, claim.job.id, claim.token, self.held.lease))
        except (LedgerUnavailable, psycopg.Error) as error:
            logger.warning("the start of a job could not be recorded, leaving it", job=claim.job.id, error=str(error).strip())
            return False


def released(claim: Claim) -> Finish:
    """The end of an execution that the process gave up: the job is due at once, and nothing counts as a failure."""
    now = monotonic()
    return Finish(
        id=claim.job.id,
        token=claim.token,
        state=State.PENDING,
        started=claim.started if claim.started is not None else now,
        finished=now,
        outcome="released",
    )
