"""Fetchers: one thread per transport and worker process that turns triggers, or the ledger's own rows, into claims in hand.

    limited jobs       an idle thread ─► admit (one statement per queue) ─► hand over; in turns with the others: see ``limited``
    carried triggers   room ─► fetch ─► claim (one statement) ─► settle ─► hand over
    Postgres           room ─► claim (one statement per queue) ─► hand over; nothing there: wait for the doorbell, then look

A trigger whose row was not claimed is looked into once: unknown and stale ones are counted and dropped, a suspect is kept in mind until
the suspect in hand has ended, one of an unknown actor is offered again later, what is paused is parked. Marks are noted in the ledger once
everything before them is claimed. Postgres away: triggers in hand are kept and claimed when it is back; a claim whose reply was lost is
read back by its token. The broker away: the fetcher tries again, backing off to 2 s.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import psycopg
from structlog.stdlib import get_logger

from brokers.limited import LimitedJobs, postpone
from brokers.message import ClaimedMessage
from brokers.transport import ANY_QUEUE, Fetched, Mark, Transport, TransportDown, Trigger
from errors import LedgerUnavailable
from ledger import control, sent, write
from ledger.database import BoundedConnection, is_outage
from ledger.records import ClaimedJob
from ledger.states import State
from runtime.claims import Claim
from runtime.node import WorkerNode
from runtime.outage import Outage
from runtime.watchdog import Pulse

logger = get_logger(__name__)

#: How long one blocking fetch or wait takes at most, in seconds; a shutdown waits for it.
BLOCK: Final = 1.0
#: Pauses between tries while something is down, in seconds.
RETRY_MIN: Final = 0.1
RETRY_MAX: Final = 2.0
#: How often the Postgres fetcher looks into every queue even when none rang, in seconds: polling is the fall-back.
POLL: Final = 1.0


@dataclass(frozen=True, slots=True)
class Intake:
    """What a process takes in, as it is at the moment: every round of a fetcher asks anew."""

    #: The queues to serve; while there are none a fetcher rests.
    queues: Callable[[], list[str]]
    #: The actors that the process knows.
    actors: Callable[[], list[str]]
    #: Whether Dramatiq's ``Worker.pause()`` is in force.
    paused: Callable[[], bool]
    #: The queues in which the code or the settings have limits.
    limited: Callable[[], set[str]] = set


class Fetcher(ABC):
    """A thread that claims jobs for one worker process until it is stopped."""

    def __init__(self, transport: Transport, node: WorkerNode, intake: Intake) -> None:
        self._transport = transport
        self._node = node
        self._queues = intake.queues
        self._actors = intake.actors
        self._paused = intake.paused
        self._limited = LimitedJobs(node, self._claim, queues=intake.queues, actors=intake.actors, declared=intake.limited)
        self.pulse = Pulse()
        self._stop = threading.Event()
        self._connection: BoundedConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"switchyard-fetcher-{transport.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def name(self) -> str:
        """What the fetcher is called in log lines."""
        return f"{self._transport.name} fetcher"

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Fetch nothing more; returns at once."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, for at most ``timeout`` seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = RETRY_MIN
        outage = Outage(f"fetcher {self._transport.name}")
        while not self._stop.is_set():
            self.pulse.beat()
            try:
                if self._paused() or not self._queues():
                    self._stop.wait(0.1)
                    continue
                self._round()
                pause = RETRY_MIN
                outage.over()
            except (TransportDown, LedgerUnavailable, psycopg.Error) as error:
                # Nothing is lost: rows unclaimed stay pending, and triggers in hand are kept for the next round.
                outage.failed(error)
            except Exception:
                # A bug, or a driver's. This is the thread's outermost loop: without it every job would wait for ever, unseen.
                logger.critical("the fetcher failed, trying again", broker=self._transport.name, retry_in=pause, exc_info=True)
                self._let_go()
            else:
                continue
            self._disconnect()
            self._stop.wait(pause)
            pause = min(pause * 2, RETRY_MAX)
        self._close()
        self._disconnect()

    @abstractmethod
    def _round(self) -> None:
        """Wait for room and for work, claim, hand over."""

    @abstractmethod
    def _let_go(self) -> None:
        """Whatever is in hand made the round fail: drop it, so that the next round does not; the relay offers the rows again."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the broker."""

    def _claim(self, claim: Callable[[BoundedConnection, str], list[ClaimedJob]]) -> list[ClaimedJob]:
        """Run a claim and take its jobs in hand; when its reply is lost, find out what it took before anything else."""
        self.pulse.beat()
        token = str(uuid.uuid4())
        requested = monotonic()
        try:
            jobs = claim(self._connected(), token)
        except psycopg.Error as error:
            if not is_outage(error, self._connection):
                raise
            jobs = self._read_back(token)
            if not jobs:
                # It took nothing, so what it was to take still waits: the caller keeps its triggers and tries again.
                raise
        claims = [Claim(job, token, requested, self._node.held.lease) for job in jobs]
        self._node.held.accept(claims, monotonic() - requested)
        self._node.queue.hand_over([ClaimedMessage(claim) for claim in claims])
        return jobs

    def _read_back(self, token: str) -> list[ClaimedJob]:
        pause = RETRY_MIN
        while True:
            self.pulse.beat()
            self._disconnect()
            try:
                return write.claimed_with_token(self._connected(), worker=self._node.id, token=token)
            except (psycopg.Error, LedgerUnavailable):
                # A shutdown does not wait for Postgres: what the claim may have taken comes back by its lease.
                if self._stop.wait(pause):
                    return []
                pause = min(pause * 2, RETRY_MAX)

    def _connected(self) -> BoundedConnection:
        if self._connection is None or self._connection.closed:
            self._connection = self._node.database.dedicated(f"fetcher {self._transport.name}")
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class TriggerFetcher(Fetcher):
    """Claims what a broker's triggers point at."""

    def __init__(self, transport: Transport, node: WorkerNode, intake: Intake) -> None:
        super().__init__(transport, node, intake)
        self._receiver = transport.receiver()
        self._in_hand: list[Trigger] = []
        # Arrived after what was in hand; reported once that is claimed.
        self._marks: list[Mark] = []
        self._suspects: deque[int] = deque()

    def _round(self) -> None:
        if not self._in_hand:
            self._try_suspect()
            self._limited.look(self._connected)
            self._limited.take_turn(BLOCK)
            # Little else is waited for while limited jobs may wait for a thread.
            block = self._limited.patience(BLOCK)
            room = self._node.held.wait_for_room(block)
            if self._stop.is_set():
                return
            wait = min(block, self._node.held.suspect_pause()) if self._suspects else block
            before = self._node.held.accepted
            fetched = self._receiver.fetch(self._queues(), room, wait if room else 0.0)
            self._count_undecodable(fetched)
            self._in_hand = self._fitting(fetched.triggers, room - (self._node.held.accepted - before))
            self._marks += fetched.marks
        if self._in_hand and not self._stop.is_set():
            self._claim_in_hand()
        if self._marks and not self._in_hand:
            sent.record_marks(self._connected(), self._transport.name, self._marks)
            self._marks = []

    def _fitting(self, triggers: list[Trigger], room: int) -> list[Trigger]:
        """Those there is still room for. The fetcher of another transport may have taken it meanwhile: the rest goes back to the broker,
        since another process may have a thread for it."""
        if len(triggers) <= room:
            return triggers
        self._receiver.give_back(triggers[max(0, room) :])
        return triggers[: max(0, room)]

    def _claim_in_hand(self) -> None:
        triggers = self._in_hand
        actors = self._actors()
        ids = list(dict.fromkeys(trigger.job_id for trigger in triggers))
        node = self._node
        jobs = self._claim(
            lambda connection, token: write.claim_by_id(
                connection, ids, actors=actors, worker=node.id, token=token, lease=node.held.lease
            )
        )
        if len(jobs) < len(ids):
            claimed = {job.id for job in jobs}
            self._look_into([id_ for id_ in ids if id_ not in claimed], actors)
        self._in_hand = []
        self._receiver.settle(triggers)

    def _look_into(self, ids: list[int], actors: list[str]) -> None:
        """Why were these not claimed? Each finds its way, none is asked about twice."""
        self.pulse.beat()
        found = write.why_not_claimed(self._connected(), ids)
        counters = self._node.counters
        suspects, unknown, paused, limited = [], [], [], []
        for id_ in ids:
            if id_ not in found:
                counters.note("unknown_jobs", id_, f"dropped a trigger for row {id_}, which the ledger does not have")
                continue
            state, actor, suspect, is_paused, queue, is_limited = found[id_]
            if state is not State.PENDING:
                # A limited job needs no trigger to be claimed, so it is often gone before that arrives.
                if not is_limited:
                    counters.note("stale_triggers", (id_, state), f"dropped a trigger for row {id_}, which is {state}")
            elif is_paused:
                paused.append(id_)
            elif actor not in actors:
                unknown.append(id_)
                counters.note("unknown_actors", actor, f"a job waits for a worker that knows the actor {actor!r}")
            elif is_limited:
                limited.append(id_)
                self._limited.heard(queue, suspect=suspect)
            elif suspect:
                suspects.append(id_)
        if paused:
            control.park_rows(self._connected(), paused)
        if suspects:
            write.postpone_suspects(self._connected(), suspects, self._node.held.lease)
            self._suspects.extend(id_ for id_ in suspects if id_ not in self._suspects)
        if unknown:
            write.postpone_unknown(self._connected(), unknown, actors, self._node.settings.sweep)
        if limited:
            self._limited.take(self._node.held.idle())
            postpone(self._connected(), limited)

    def _try_suspect(self) -> None:
        """Claim one suspect, if none is in hand: were there two, a death would not tell which one was guilty."""
        node = self._node
        while self._suspects and not node.held.suspect_held and not self._stop.is_set():
            id_, actors = self._suspects[0], self._actors()
            self._claim(
                lambda connection, token, id_=id_, actors=actors: write.claim_by_id(  # type: ignore[misc]
                    connection, [id_], actors=actors, worker=node.id, token=token, lease=node.held.lease, suspects=True
                )
            )
            self._suspects.popleft()

    def _count_undecodable(self, fetched: Fetched) -> None:
        for raw in fetched.undecodable:
            # It may be anybody's data, and a log is read by many: enough to tell one from another, not what it says.
            digest = hashlib.sha256(raw).hexdigest()[:12]
            message = f"dropped a message that is no trigger: {len(raw)} bytes, SHA-256 {digest}..."
            self._node.counters.note("undecodable_triggers", digest, message)

    def _let_go(self) -> None:
        triggers, self._in_hand, self._marks = self._in_hand, [], []
        self._limited.clear()
        self._receiver.settle(triggers)

    def _close(self) -> None:
        if self._in_hand:
            self._receiver.give_back(self._in_hand)
        self._receiver.close()


class LedgerFetcher(Fetcher):
    """Claims straight from the ledger: the Postgres broker."""

    def __init__(self, transport: Transport, node: WorkerNode, intake: Intake) -> None:
        super().__init__(transport, node, intake)
        self._doorbell = transport.doorbell()
        self._rung: deque[str] = deque()
        self._looked_at = 0.0
        self._suspects_wait = False

    def _round(self) -> None:
        if monotonic() >= self._look_at():
            self._look()
        self._limited.look(self._connected)
        self._limited.take_turn(BLOCK)
        # Little else is waited for while limited jobs may wait for a thread.
        block = self._limited.patience(BLOCK)
        room = self._node.held.wait_for_room(block)
        if not room or self._stop.is_set():
            return
        if not self._rung:
            rung = self._doorbell.wait(max(0.0, min(block, self._look_at() - monotonic())))
            queues = self._queues()
            if ANY_QUEUE in rung:
                self._look()
                self._limited.rang(queues)
            else:
                heard = [queue for queue in queues if queue in rung]
                self._rung.extend(heard)
                self._limited.rang(heard)
            return
        queue = self._rung.popleft()
        jobs = self._claim_from(queue, room, suspects=False)
        if len(jobs) == room:
            # There may be more; the others come first.
            self._rung.append(queue)

    def _claim_from(self, queue: str, limit: int, *, suspects: bool) -> Sequence[ClaimedJob]:
        node, actors = self._node, self._actors()
        return self._claim(
            lambda connection, token: write.claim_next(
                connection, queue, limit, actors=actors, worker=node.id, token=token, lease=node.held.lease, suspects=suspects
            )
        )

    def _look(self) -> None:
        """Ask the ledger which queues hold something claimable; claim a suspect if there is one and none is in hand."""
        self._looked_at = monotonic()
        ready = write.ready_queues(self._connected(), self._queues(), self._actors())
        self._rung = deque(queue for queue, suspect in ready if not suspect)
        suspects = [queue for queue, suspect in ready if suspect]
        self._suspects_wait = bool(suspects)
        for queue in suspects:
            if not self._node.held.suspect_held:
                self._claim_from(queue, 1, suspects=True)

    def _look_at(self) -> float:
        """When to look into the ledger again; while suspects wait their turn, about as soon as the one in hand has ended."""
        return self._looked_at + (self._node.held.suspect_pause() if self._suspects_wait else POLL)

    def _let_go(self) -> None:
        self._rung.clear()
        self._limited.clear()

    def _close(self) -> None:
        self._doorbell.close()


def make_fetcher(transport: Transport, node: WorkerNode, intake: Intake) -> Fetcher:
    """The fetcher that suits a transport."""
    kind = TriggerFetcher if transport.carries_triggers else LedgerFetcher
    return kind(transport, node, intake)
