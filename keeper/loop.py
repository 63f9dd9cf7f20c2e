"""The loop that runs the keeper's duties in a thread of every worker process.

It relays, and sleeps until the next row or the next tick of a schedule is due, a second at the longest, or until a commit elsewhere
made one due (``keeper.alarm``); in between the duties of ``keeper.duties`` get their turns. Idle, that is a statement and a half a
second. Postgres away: it backs off to two seconds and goes on when it is back.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus
from structlog.stdlib import get_logger

from errors import LedgerUnavailable
from keeper.alarm import Alarm
from keeper.duties import DUTIES, SCHEDULE
from keeper.duty import Duty, Keeping, KeepsBroker, KeepsNode
from keeper.relay import Passed, relay
from ledger import schedules
from ledger.database import BoundedConnection
from runtime.outage import Outage
from runtime.watchdog import Pulse

logger = get_logger(__name__)

#: Longest sleep between two looks for due rows, in seconds: others may have sent something that this process was not told of.
POLL: Final = 1.0
#: Shortest sleep, in seconds: rows that come due one after the other are published together.
NAP: Final = 0.02
#: Pauses while Postgres is away, in seconds.
RETRY_MIN: Final = 0.2
RETRY_MAX: Final = 2.0


class Keeper:
    """The duties of one worker process."""

    def __init__(self, broker: KeepsBroker) -> None:
        self.pulse = Pulse()
        self._broker = broker
        self._alarm = Alarm()
        self._wake_at: float | None = None
        #: When the next tick of a schedule is due (monotonic), as the last look saw it.
        self._tick_at: float | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._connection: BoundedConnection | None = None
        self._lost = False
        self._passed = Passed()

    def start(self, node: KeepsNode) -> None:
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

    def _run(self, node: KeepsNode) -> None:
        keeping = Keeping(node, self._broker)
        turns = dict.fromkeys(DUTIES, monotonic())
        outage = Outage("keeper")
        pause = RETRY_MIN
        relay_at = 0.0
        called = False
        while not self._stopping:
            try:
                connection = self._connected(keeping)
                self._take_turns(connection, keeping, turns)
                if called or monotonic() >= relay_at:
                    relay_at = monotonic() + self._relay(connection, keeping)
                    if self._tick_at is not None:
                        turns[SCHEDULE] = min(turns[SCHEDULE], self._tick_at)
                pause = RETRY_MIN
                outage.over()
                called = self._sleep(max(NAP, min(relay_at, *turns.values()) - monotonic()))
            except (psycopg.Error, LedgerUnavailable) as error:
                outage.failed(error)
                relay_at = 0.0
                self._back_off(pause)
                pause = min(pause * 2, RETRY_MAX)
            except Exception:
                # The outermost loop of the thread: without it delays, retries and rescues would stop, unseen.
                logger.critical("the keeper failed, trying again", retry_in=RETRY_MAX, exc_info=True)
                relay_at = 0.0
                self._back_off(RETRY_MAX)
        for close in keeping.at_end:
            close()
        self._disconnect()

    def _take_turns(self, connection: BoundedConnection, keeping: Keeping, turns: dict[Duty, float]) -> None:
        """Do each duty whose turn it is; one that fails keeps neither the others nor the relay from theirs."""
        for duty, turn in turns.items():
            self.pulse.beat()
            now = monotonic()
            if now < turn or self._stopping:
                continue
            turns[duty] = now + duty.period(keeping.settings)
            try:
                again = duty.run(connection, keeping)
            except LedgerUnavailable:
                raise
            except Exception:
                if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
                    raise
                logger.critical("a duty of the keeper failed, its next turn comes", duty=duty.name, exc_info=True)
            else:
                turns[duty] = turns[duty] if again is None else monotonic() + again

    def _relay(self, connection: BoundedConnection, keeping: Keeping) -> float:
        """Publish what is due; returns the seconds until something is, or until the next look."""
        self.pulse.beat()
        self._wake_at = None
        # Taken before the look: what rings from now on may be about rows that this look does not see.
        rung = self._alarm.take()
        due_in, tick_in = schedules.next_due_and_tick(connection, list(self._broker.actors))
        self._tick_at = None if tick_in is None else monotonic() + tick_in
        if due_in is None or due_in > 0:
            if rung:
                self._alarm.hush(in_vain=True)
            return POLL if due_in is None else min(POLL, max(NAP, due_in))
        relayed = relay(
            connection,
            self._broker.publisher,
            own=keeping.settings.broker,
            carriers=self._broker.carriers,
            grace=keeping.settings.lease,
            routes=self._broker.routes,
            passed=self._passed,
        )
        if rung:
            self._alarm.hush(in_vain=not relayed)
        if relayed:
            keeping.node.counters.add("relayed", relayed)
        # Nothing relayed although something is due: its broker is down, or another keeper has it.
        return NAP if relayed else POLL

    def _sleep(self, seconds: float) -> bool:
        """Sleep for at most ``seconds``. Returns whether the relay was called for before they were over.

        Raises:
            psycopg.OperationalError: the connection broke.
        """
        until = monotonic() + seconds
        while not self._stopping:
            self.pulse.beat()
            wake_at = self._wake_at
            left = (until if wake_at is None else min(until, wake_at)) - monotonic()
            if left <= 0:
                return wake_at is not None and wake_at <= until
            if self._alarm.wait(left, self._connection):
                return True
        return False

    def _back_off(self, seconds: float) -> None:
        """Leave Postgres its time to come back, however overdue duties and rows are, and whatever rings; only ``stop`` ends it."""
        self._disconnect()
        until = monotonic() + seconds
        while not self._stopping and (left := until - monotonic()) > 0:
            self.pulse.beat()
            # A ring that came with the connection's last words would end each wait at once. The next round looks anyway.
            self._alarm.take()
            self._alarm.wait(left, None)
        self._wake_at = None

    def _connected(self, keeping: Keeping) -> BoundedConnection:
        if self._connection is None or self._connection.closed:
            self._connection = keeping.node.database.dedicated("keeper")
            if not keeping.settings.pgbouncer:
                self._alarm.listen(self._connection)
            if self._lost:
                keeping.connected_again_at = monotonic()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._lost = True
        if connection is not None:
            connection.close()
