"""The Postgres transport: the row itself is the message, and NOTIFY is the doorbell that says "look now".

Nothing travels and nothing can be lost: a worker claims straight from the job table, and whoever misses a ring finds the row at
its next poll. So a ring is never sent per row (NOTIFY serialises commits) but per queue, at the leading edge, at most once in
5 ms, with a trailing ring for what was published in between:

    publish  ring! ....publish (held back)....publish (held back)....  5 ms: ring!

While Postgres is away the sender says so (``TransportDown`` without ids: no row depends on a ring) and the doorbell waits out
its time-outs, reconnecting with back-off. Behind PgBouncer in transaction mode nothing can be heard; there it polls instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from threading import Event, Lock
from time import monotonic
from typing import Any

import psycopg

from brokers.transport import ANY_QUEUE, SOCKET_TIMEOUT, Doorbell, Sender, Transport, TransportDown
from ledger.arrays import texts
from ledger.database import BoundedConnection, arguments
from ledger.dead import DeadNotice
from runtime.triggers import Outgoing
from settings import Settings

#: The NOTIFY channel. Channels belong to a database, so two ledgers on one server do not hear each other.
CHANNEL = "switchyard_ready"
#: Where deaths are told. The dead letters themselves are the view ``switchyard.dead_letter``.
DEAD_CHANNEL = "switchyard_dead"
#: At most one ring per queue in this time, in seconds. A woken worker claims what there is; it looks again at the next ring.
DEBOUNCE = 0.005
#: How often a doorbell that cannot hear rings once by itself, in seconds: half of it is what PgBouncer costs a job from another process.
POLL = 0.25
#: First and longest pause between two attempts to reconnect the doorbell, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Postgres refuses payloads of 8,000 bytes and more.
_MAX_PAYLOAD = 7_900

_RING = "SELECT pg_notify(%s, %s)"
_TELL = "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload"
_DEPTH = """
SELECT queue, count(*) FROM switchyard.job
 WHERE queue = ANY(%s) AND state = 'pending' AND broker = 'postgres' AND wait_reason IS DISTINCT FROM 'paused'
 GROUP BY queue
"""


class PostgresTransport(Transport):
    """Carries nothing; rings. See the module's text."""

    name = "postgres"
    carries_triggers = False
    dead_letter_place = "switchyard.dead_letter"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._link = _Link(settings)
        #: The doorbells of this process that cannot hear.
        self._deaf: set[PostgresDoorbell] = set()

    def sender(self) -> PostgresSender:
        """A new ringing side."""
        return PostgresSender(self.settings, self._deaf)

    def doorbell(self) -> PostgresDoorbell:
        """A new listening side."""
        doorbell = PostgresDoorbell(self.settings)
        if self.settings.pgbouncer:
            self._deaf.add(doorbell)
        return doorbell

    def rings(self, queues: Iterable[str]) -> list[tuple[str, str]]:
        """The doorbell's own ring, undebounced: only the server knows when the caller's transaction is committed."""
        return [(CHANNEL, payload) for payload, _ in _payloads(queues)]

    def put_dead(self, notices: Sequence[DeadNotice]) -> None:
        """Tell them on ``switchyard_dead``; the view has them anyway. Raises: TransportDown."""
        link = _Link(self.settings)
        try:
            link.rows(_TELL, (DEAD_CHANNEL, texts(map(_told, notices))))
        finally:
            link.close()

    def depth(self, queues: Sequence[str]) -> dict[str, int]:
        """How many pending rows are this transport's, per queue. Raises: TransportDown."""
        rows = self._link.rows(_DEPTH, (list(queues),))
        return dict.fromkeys(queues, 0) | {queue: count for queue, count in rows}

    def close(self) -> None:
        """Close what ``depth`` opened."""
        self._link.close()


class PostgresSender(Sender):
    """Rings for the queues of each batch, debounced; what is held back is sent by the next call that is late enough.

    Parameters:
        by_hand: doorbells of the same process that cannot hear it.
    """

    def __init__(self, settings: Settings, by_hand: Collection[PostgresDoorbell] = ()) -> None:
        self._link = _Link(settings)
        self._by_hand = by_hand
        # When each queue rang last, and the queues that owe a ring since then.
        self._rang: dict[str, float] = {}
        self._held: set[str] = set()

    def publish(self, batch: Sequence[Outgoing]) -> list[int]:
        """Ring for the batch's queues. The rows must be committed. Raises: TransportDown: without ids."""
        self._held.update({trigger.queue for trigger in batch})
        return self._ring_due()

    def flush(self, timeout: float) -> list[int]:
        """Send every ring that is held back, early. Raises: TransportDown: without ids."""
        return self._ring(self._held)

    def idle(self) -> list[int]:
        """Send the trailing rings that are due. Raises: TransportDown: without ids."""
        return self._ring_due()

    def close(self) -> None:
        """Close the connection, quietly."""
        self._link.close()

    def _ring_due(self) -> list[int]:
        before = monotonic() - DEBOUNCE
        return self._ring({queue for queue in self._held if self._rang.get(queue, 0.0) <= before})

    def _ring(self, queues: Iterable[str]) -> list[int]:
        for payload, rung in _payloads(queues):
            # Held until the ring is out: when it fails, the next call rings again.
            self._link.rows(_RING, (CHANNEL, payload))
            for doorbell in tuple(self._by_hand):
                doorbell.ring(rung)
            self._held.difference_update(rung)
            self._rang.update(dict.fromkeys(rung, monotonic()))
        return []


class PostgresDoorbell(Doorbell):
    """Listens for rings on a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self._link = _Link(settings)
        self._deaf = settings.pgbouncer
        self._closed = Event()
        # Where nothing can be heard: what the own process rang, and when every queue is looked into, whatever rang.
        self._lock = Lock()
        self._rung: set[str] = set()
        self._by_hand = Event()
        self._poll_at = 0.0
        self._pause = _FIRST_PAUSE
        self._next_attempt = 0.0

    def wait(self, timeout: float) -> set[str]:
        """Block until a queue rings or ``timeout`` seconds passed; see ``Doorbell.wait``. Never raises."""
        if self._deaf:
            return self._poll(timeout)
        deadline = monotonic() + timeout
        while True:
            if not self._link.connected:
                if self._listen(deadline):
                    return {ANY_QUEUE}
            else:
                heard = self._hear(deadline)
                if heard is not None:
                    return heard
            if monotonic() >= deadline or self._closed.is_set():
                return set()

    def ring(self, queues: Iterable[str]) -> None:
        """Ring by hand, from another thread of the same process."""
        with self._lock:
            self._rung.update(queues)
        self._by_hand.set()

    def close(self) -> None:
        """Close the connection, quietly."""
        self._closed.set()
        self._by_hand.set()
        self._link.close()

    def _poll(self, timeout: float) -> set[str]:
        self._by_hand.wait(max(0.0, min(timeout, self._poll_at - monotonic())))
        self._by_hand.clear()
        with self._lock:
            rung, self._rung = self._rung, set()
        now = monotonic()
        if now >= self._poll_at:
            self._poll_at = now + POLL
            rung.add(ANY_QUEUE)
        return rung

    def _listen(self, deadline: float) -> bool:
        """Connect and listen, after the pause that is due; True when rings are heard from now on."""
        self._closed.wait(max(0.0, min(self._next_attempt, deadline) - monotonic()))
        if monotonic() < self._next_attempt or self._closed.is_set():
            return False
        try:
            self._link.rows(f"LISTEN {CHANNEL}")
        except TransportDown:
            self._next_attempt = monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return False
        self._pause = _FIRST_PAUSE
        return True

    def _hear(self, deadline: float) -> set[str] | None:
        """The queues that rang until the deadline; None when the connection broke (whatever was missed: ``_listen`` says so)."""
        try:
            payloads = self._link.notifications(max(0.0, deadline - monotonic()))
        except TransportDown:
            return None
        return {queue for payload in payloads for queue in payload.split(",")}


class _Link:
    """One autocommit connection, used by one thread: connects by itself, answers errors with TransportDown."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: BoundedConnection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection that has not failed yet."""
        return self._connection is not None

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own. Raises: TransportDown."""
        try:
            connection = self._connect()
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            self.close()
            raise _down(error) from error

    def notifications(self, timeout: float) -> list[str]:
        """The payloads of all notifications that wait, waiting up to ``timeout`` seconds for the first. Raises: TransportDown."""
        try:
            connection = self._connect()
            payloads = [note.payload for note in connection.notifies(timeout=timeout, stop_after=1)]
            # stop_after ends with the first packet; under load there are more, and each would cost the caller a look in vain.
            while payloads and (more := [note.payload for note in connection.notifies(timeout=0)]):
                payloads += more
        except psycopg.Error as error:
            self.close()
            raise _down(error) from error
        return payloads

    def close(self) -> None:
        """Disconnect, quietly; the next statement connects anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                connection.close()

    def _connect(self) -> BoundedConnection:
        if self._connection is None:
            url, deaf = self._settings.database_url.get_secret_value(), self._settings.pgbouncer
            # Nothing here is worth preparing, and PgBouncer in transaction mode could not keep it.
            found = arguments(url, "switchyard doorbell", pgbouncer=deaf) | {"prepare_threshold": None}
            self._connection = BoundedConnection.connect(url, **found)
            self._connection.time_limit = SOCKET_TIMEOUT
        return self._connection


def _told(notice: DeadNotice) -> str:
    """A dead letter as a payload that Postgres accepts: without its error if that is too long, its id alone if that is not enough."""
    for fitting in (notice, notice._replace(error=None)):
        if len(fitting.text.encode()) <= _MAX_PAYLOAD:
            return fitting.text
    return notice.id


def _down(error: psycopg.Error) -> TransportDown:
    return TransportDown(PostgresTransport.name, str(error).strip() or type(error).__name__)


def _payloads(queues: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """Join queue names by comma (which Dramatiq allows in none) to payloads that Postgres accepts; with the names in each."""
    names: list[str] = []
    size = 0
    for queue in sorted(queues):
        length = len(queue.encode()) + 1
        if names and size + length > _MAX_PAYLOAD:
            yield ",".join(names), names
            names, size = [], 0
        names.append(queue)
        size += length
    if names:
        yield ",".join(names), names
