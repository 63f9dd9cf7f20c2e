"""What a worker process is told from outside: stop these jobs, start nothing of what is paused.

    cancel(), pause() ──commit──► the rows say it ──NOTIFY──► the heartbeat's thread wakes and looks
                                                               unstarted claims go back, and the ledger says what becomes of them
                                                               running bodies get ``Cancelled``, once, by their guard

A notification only says "look", so a lost one costs time alone: every beat looks as well, and so does the process that has lost its
connection, once it is back. One look is repeated half a second later: a claim whose reply is still on its way is not in hand at the first.
Behind PgBouncer nothing can be heard; there a process that holds claims looks every second. An idle process asks nothing.
"""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Iterable
from time import monotonic
from typing import Final

from structlog.stdlib import get_logger

from errors import Cancelled
from ledger import control
from ledger.control import CONTROL_CHANNEL, EVERYBODY
from ledger.database import BoundedConnection
from runtime.claims import Claim, Completion, HeldClaims

logger = get_logger(__name__)

#: When a look is repeated after a notification, in seconds.
AGAIN: Final = 0.5
#: How often a process looks that cannot hear, in seconds.
DEAF_LOOK: Final = 1.0


class Orders:
    """Takes orders for the claims of one process. All but ``stop`` is for the heartbeat's thread.

    Parameters:
        worker: the process's name in the ledger.
        deaf: nothing can be heard here, because of PgBouncer.
    """

    def __init__(self, held: HeldClaims, worker: str, *, deaf: bool) -> None:
        self._held = held
        self._worker = worker
        self._deaf = deaf
        self._lock = threading.Lock()
        self._pipe: tuple[int, int] | None = None
        self._stopped = threading.Event()
        self._look_at = [0.0 if deaf else math.inf]
        #: Claims whose jobs are to stop and have not ended yet.
        self._stopping: dict[Claim, None] = {}

    def open(self) -> None:
        """Make the pipe by which ``stop`` is heard, in the process that waits."""
        self._pipe = os.pipe()

    def stop(self) -> None:
        """End every ``wait``."""
        self._stopped.set()
        with self._lock:
            if self._pipe is not None:
                os.write(self._pipe[1], b"!")

    def close(self) -> None:
        """Close the pipe; nobody waits any more."""
        with self._lock:
            pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)

    def listen(self, connection: BoundedConnection) -> None:
        """Hear what is decided about this process on a connection."""
        if not self._deaf:
            connection.add_notify_handler(lambda note: self._hear(note.payload))
            connection.execute(f"LISTEN {CONTROL_CHANNEL}".encode())

    def wait(self, seconds: float, connection: BoundedConnection | None) -> bool:
        """Wait for at most ``seconds``, or until there is something to look at. True: ``stop`` was called.

        Raises:
            psycopg.OperationalError: the connection broke.
        """
        if self._pipe is None:
            return self._stopped.wait(seconds)
        until = monotonic() + seconds
        listening = connection if connection is not None and not connection.closed and not self._deaf else None
        poll = select.poll()
        poll.register(self._pipe[0], select.POLLIN)
        if listening is not None:
            poll.register(listening.fileno(), select.POLLIN)
        while not self._stopped.is_set():
            left = min(until, *self._look_at) - monotonic()
            if left <= 0:
                break
            readable = {descriptor for descriptor, _ in poll.poll(math.ceil(left * 1000))}
            if readable and self._pipe[0] not in readable and listening is not None:
                raw = listening.pgconn
                raw.consume_input()
                while (note := raw.notifies()) is not None:
                    self._hear(note.extra.decode())
        return self._stopped.is_set()

    def follow(self, connection: BoundedConnection, *, now: bool = False) -> None:
        """Look, if there is reason to (or ``now``), and interrupt what is to stop and can be interrupted by now.

        Raises:
            psycopg.Error: Postgres is away; the next beat looks again.
        """
        moment = monotonic()
        called = moment >= min(self._look_at)
        if called:
            self._look_at = [at for at in self._look_at if at > moment] if not self._deaf else [moment + DEAF_LOOK]
        if (called and not self._deaf) or ((called or now) and (self._held.occupied or self._held.paused)):
            self._look(connection)
        for claim in list(self._stopping):
            self._interrupt(claim)

    def _hear(self, payload: str) -> None:
        if payload in (EVERYBODY, self._worker):
            now = monotonic()
            self._look_at = [math.inf, now, now + AGAIN]

    def _look(self, connection: BoundedConnection) -> None:
        held = list(self._held.occupied)
        found = control.orders(connection, self._worker, [claim.job.id for claim in held])
        self._held.paused = found.paused
        stop = [claim for claim in held if claim.job.id in found.stop]
        for claim in stop:
            if not claim.cancel_requested:
                # Every later look finds the job again until it has ended, and must not interrupt the body while it cleans up.
                claim.cancel_requested = True
                self._stopping[claim] = None
        self._held.refuse([*stop, *self._paused(held)])

    def _paused(self, held: Iterable[Claim]) -> Iterable[Claim]:
        return [claim for claim in held if self._held.is_paused(claim.job)] if self._held.paused else ()

    def _interrupt(self, claim: Claim) -> None:
        if claim not in self._held.running or claim.completion is Completion.COMMITTED:
            # It has ended, or never started; a thread that is just starting it looks at the claim itself.
            if claim not in self._held.occupied or claim.completion is Completion.COMMITTED:
                self._stopping.pop(claim, None)
        elif claim.guard is not None and claim.guard.interrupt(Cancelled):
            self._stopping.pop(claim, None)
            logger.info("stopping a job, as asked", job_id=claim.job.message_id, actor=claim.job.actor)
