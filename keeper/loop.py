"""The loop that runs the keeper's duties in a thread of every worker process.

It sleeps until the next row is due, a second at the longest, or until a commit elsewhere made one due (``keeper.alarm``); looks for lost
jobs every SWEEP; and for what moves slowly, every minute. Idle, that is about one statement a second. Postgres away: it backs off to two
seconds and goes on when it is back.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any, Final, Protocol

import psycopg
from structlog.stdlib import get_logger

from errors import LedgerUnavailable
from keeper import strays, unknown
from keeper.alarm import Alarm
from keeper.relay import relay
from keeper.rescue import rescue
from ledger import write
from ledger.database import BoundedConnection
from ledger.sql import SQL
from runtime.node import WorkerNode
from runtime.outage import Outage
from runtime.publisher import Publisher

logger = get_logger(__name__)

#: Longest sleep between two looks for due rows, in seconds: others may have sent something that this process was not told of.
POLL: Final = 1.0
#: Shortest sleep, in seconds: rows that come due one after the other are published together.
NAP: Final = 0.02
#: How often the slow duties run, in seconds.
SLOW: Final = 60.0
#: Pauses while Postgres is away, in seconds.
RETRY_MIN: Final = 0.2
RETRY_MAX: Final = 2.0


class KeepsBroker(Protocol):
    """The broker, as far as the keeper needs it."""

    publisher: Publisher
    actors: dict[str, Any]
    queues: dict[str, None]

    def carries_triggers(self, name: str) -> bool:
        """Whether a broker carries triggers, or the row itself is the message."""


class Keeper:
    """The duties of one worker process."""

    def __init__(self, broker: KeepsBroker) -> None:
        self._broker = broker
        self._alarm = Alarm()
        self._wake_at: float | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._connection: BoundedConnection | None = None
        self._lost = False
        self._connected_again_at: float | None = None
        self._elsewhere: list[str] = []

    def start(self, node: WorkerNode) -> None:
        """Run the duties in a thread until ``stop``."""
        self._stopping = False
        self._alarm.open()
        self._thread = threading.Thread(target=self._run, args=(node,), name="switchyard-keeper", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self, within: float) -> None:
        """A row will be due in ``within`` seconds."""
        at = monotonic() + within
        if within < POLL and (self._wake_at is None or at < self._wake_at):
            self._wake_at = at
            self._alarm.set()

    def stop(self) -> None:
        """End the thread, after the statement it is at."""
        self._stopping = True
        self._alarm.set()
        if self._thread is not None:
            self._thread.join(2.0)
            if not self._thread.is_alive():
                self._alarm.close()

    def _run(self, node: WorkerNode) -> None:
        next_sweep = next_slow = monotonic()
        outage = Outage("keeper")
        pause = RETRY_MIN
        while not self._stopping:
            try:
                connection = self._connected(node)
                now = monotonic()
                if now >= next_sweep:
                    next_sweep = now + node.settings.sweep
                    self._sweep(connection, node)
                if now >= next_slow:
                    next_slow = now + SLOW
                    connection.execute(SQL["forget_workers"])
                    strays.adopt(connection, strays.living_brokers(connection))
                sleep = self._relay(connection, node)
                pause = RETRY_MIN
                outage.over()
            except (psycopg.Error, LedgerUnavailable) as error:
                outage.failed(error)
                self._disconnect()
                sleep, pause = pause, min(pause * 2, RETRY_MAX)
                # However overdue the duties are: Postgres gets its time to come back.
                next_sweep = max(next_sweep, monotonic() + sleep)
            except Exception:
                # The outermost loop of the thread: without it delays, retries and rescues would stop, unseen.
                logger.critical("a duty of the keeper failed, trying again", retry_in=RETRY_MAX, exc_info=True)
                self._disconnect()
                sleep = RETRY_MAX
                next_sweep = max(next_sweep, monotonic() + sleep)
            self._sleep(min(sleep, max(NAP, next_sweep - monotonic())))
        self._disconnect()

    def _sweep(self, connection: BoundedConnection, node: WorkerNode) -> None:
        settings = node.settings
        rescue(connection, lease=settings.lease, max_lost=settings.max_lost, connected_again_at=self._connected_again_at)
        self._elsewhere = [name for name in strays.living_brokers(connection) if name != settings.broker]
        if not self._broker.carries_triggers(settings.broker):
            unknown.mark(connection, list(self._broker.queues), list(self._broker.actors))
        unknown.bury(connection, settings.unknown_actor_after)

    def _relay(self, connection: BoundedConnection, node: WorkerNode) -> float:
        """Publish what is due; returns the seconds until something is, or until the next look."""
        self._wake_at = None
        # Taken before the look: what rings from now on may be about rows that this look does not see.
        rung = self._alarm.take()
        due_in = write.next_due(connection)
        if due_in is None or due_in > 0:
            if rung:
                self._alarm.hush(in_vain=True)
            return POLL if due_in is None else min(POLL, max(NAP, due_in))
        broker = node.settings.broker
        relayed = relay(
            connection,
            self._broker.publisher,
            broker=broker,
            carries=self._broker.carries_triggers(broker),
            elsewhere=self._elsewhere,
        )
        if rung:
            self._alarm.hush(in_vain=not relayed)
        if relayed:
            node.counters.add("relayed", relayed)
        # Nothing relayed although something is due: the broker is down, or it is another fleet's row.
        return NAP if relayed else POLL

    def _sleep(self, seconds: float) -> None:
        until = monotonic() + seconds
        while not self._stopping:
            wake_at = self._wake_at
            left = (until if wake_at is None else min(until, wake_at)) - monotonic()
            if left <= 0:
                return
            try:
                if self._alarm.wait(left, self._connection):
                    return
            except psycopg.Error as error:
                logger.warning("keeper lost Postgres", error=str(error).strip())
                self._disconnect()
                return

    def _connected(self, node: WorkerNode) -> BoundedConnection:
        if self._connection is None or self._connection.closed:
            self._connection = node.database.dedicated("keeper")
            if not node.settings.pgbouncer:
                self._alarm.listen(self._connection)
            if self._lost:
                self._connected_again_at = monotonic()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._lost = True
        if connection is not None:
            connection.close()
