"""One keeper's watch over one broker: its epoch, and the triggers that were sent to it and not claimed in time.

    epoch     is the broker, or each of its queues, the one that the triggers went to? If not, everything sent before is due
    fresh     rows whose grace has just run out are looked for, each sweep
    round     everything that is still waiting is looked for again, every half a lease, and less often when there is very much of it
    others    does another ledger use this broker and prefix? (``keeper.neighbours``)
    marks     where the broker cannot be asked for a trigger, a mark is sent after it in time (``brokers.transport.Mark``)

A trigger that is found costs nothing but the question: no row is written, and where the watch got to is kept in memory alone. One keeper
of the fleet watches at a time; it says so in a row of the ledger that runs out when it dies, and the next one begins with a whole round.
While the broker is away its rows stay untouched. A queue that the broker refuses is passed over, and asked about again with back-off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Final
from uuid import uuid4

from structlog.stdlib import get_logger

from brokers.refusals import Refusals
from brokers.transport import Mark, QueueRefused, Sent, Transport, TransportDown, band
from keeper.neighbours import Neighbours
from ledger import sent
from ledger.database import BoundedConnection
from runtime.outage import Outage
from settings import Settings

logger = get_logger(__name__)

#: Rows that are read and asked for in one go.
CHUNK: Final = 5_000
#: Rows of a former epoch that become due in one turn.
EPOCH_CHUNK: Final = 10_000
#: Pause between two rounds, in leases; and at least so many seconds for each row of the last one, which costs some 5 us (ADR 21).
ROUND_PAUSE: Final = 0.5
ROW_PAUSE: Final = 100e-6
#: How much of the time between two sweeps a round may take; it goes on in the next one.
TURN_SHARE: Final = 0.1
#: Age at which a trigger gets a mark behind it, in leases.
MARK_AGE: Final = 0.5
#: A queue's marks are sent in intervals of this part of the time that the last one has been under way, so that they do not pile up.
MARK_SHARE: Final = 1 / 20
#: Queues whose epoch is asked for in one turn; of more than that, the others have theirs in the next ones.
QUEUES: Final = 50
#: How many sweeps a keeper may miss before another one watches.
MISSED: Final = 3
#: First and longest pause while the broker is away, in seconds.
RETRY_MIN: Final = 1.0
RETRY_MAX: Final = 15.0


@dataclass(slots=True)
class Walk:
    """How far a walk over the sent rows has come: the moment of the last row, and how many rows it was."""

    moment: float = 0.0
    rows: int = 0


class Watch:
    """What one keeper remembers of one broker."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._settings = settings
        self._inspector = transport.inspector()
        self._name = uuid4().hex
        #: For how long the ledger's word that this keeper watches counts, in seconds.
        self._counts = MISSED * settings.sweep + 1.0
        self._neighbours = Neighbours(transport, settings, self._name, self._counts)
        self._outage = Outage(f"watch over {transport.name}")
        self._pause = RETRY_MIN
        self._retry_at = 0.0
        self._refusals = Refusals(transport.name, "watch")
        self._turn = 0
        self._forget()

    def _forget(self) -> None:
        """Begin anew: another keeper may have watched in between."""
        self._fresh: Walk | None = None
        # Queues and bands that want a mark; when the last one was sent; up to which moment rows were looked at for it (None: not yet).
        self._unmarked: set[tuple[str, int]] = set()
        self._marked: dict[tuple[str, int], float] = {}
        self._marked_to: float | None = None
        self._round: Walk | None = Walk()
        self._round_at = 0.0

    def turn(
        self, connection: BoundedConnection, queues: Iterable[str], routed: Callable[[str], bool] = lambda _: True
    ) -> tuple[int, bool]:
        """One turn. Returns how many rows became due, and whether there is more to do at once.

        Parameters:
            queues: those that this process declares; those of living workers are looked after, too.
            routed: whether a queue's triggers go to this broker.
        """
        if monotonic() < self._retry_at:
            return 0, False
        broker = self._transport.name
        watching = sent.watch(connection, broker, self._name, self._counts)
        if watching is None:
            self._forget()
            self._neighbours.forget()
            self._inspector.close()
            return 0, False
        try:
            due, more = self._epochs(connection, watching, filter(routed, watching.queues.union(queues)))
            if not watching.sent:
                self._rest(watching.now)
            elif not more:
                due += self._triggers(connection, watching.now)
        except TransportDown as error:
            self._outage.failed(error)
            self._retry_at = monotonic() + self._pause
            self._pause = min(self._pause * 2, RETRY_MAX)
            return 0, False
        self._outage.over()
        self._pause = RETRY_MIN
        # Last, when the broker is known to be well.
        self._neighbours.turn(self._inspector, watching.now)
        return due, more

    @property
    def resting(self) -> bool:
        """Whether it waits for its next round."""
        return self._round is None

    def hurry(self) -> None:
        """Begin the next round with the next turn, for tests and load tests."""
        self._round_at = 0.0

    def close(self) -> None:
        """Close the connection to the broker."""
        self._inspector.close()

    def _epochs(self, connection: BoundedConnection, watching: sent.Watching, queues: Iterable[str]) -> tuple[int, bool]:
        broker, known = self._transport.name, watching.epochs
        for queue in self._whose_turn(queues):
            if self._refusals.rests(queue):
                continue
            before = known[queue].value if queue in known else None
            try:
                value = self._inspector.epoch(queue, before)
            except QueueRefused as error:
                self._refusals.note(error)
                continue
            self._refusals.accept(queue)
            if value != before and sent.change_epoch(connection, broker, queue, before, value):
                if before is not None:
                    logger.warning("broker lost its triggers, jobs are published again", broker=broker, queue=queue or None)
                known = sent.epochs(connection, broker)
        for queue, epoch in known.items():
            if epoch.lost_before is not None:
                due = sent.epoch_due(connection, broker, queue, epoch.lost_before, grace=self._settings.lease, limit=EPOCH_CHUNK)
                return due, True
        return 0, False

    def _whose_turn(self, queues: Iterable[str]) -> list[str]:
        """Whose epoch to ask for now."""
        if not self._transport.epoch_per_queue:
            return [""]
        ordered = sorted(queues)
        first = self._turn * QUEUES % max(1, len(ordered))
        self._turn = self._turn + 1 if first + QUEUES < len(ordered) else 0
        return list(islice(ordered, first, first + QUEUES))

    def _triggers(self, connection: BoundedConnection, now: float) -> int:
        """Look for those whose grace has just run out, and go on with the round. Returns how many rows became due."""
        passed: dict[tuple[str, int], float] = {}
        if self._inspector.wants_marks:
            passed = sent.marks(connection, self._transport.name)
        due = 0
        if self._fresh is None:
            self._fresh = Walk(now)
        else:
            due, _ = self._walk(connection, self._fresh, now, passed, monotonic() + self._settings.sweep)
        if self._round is None and monotonic() >= self._round_at:
            self._round = Walk()
        if self._round is not None:
            # A mark may have been lost as a trigger may: what still waits gets another one.
            found, ended = self._walk(
                connection, self._round, now, passed, monotonic() + TURN_SHARE * self._settings.sweep, unmarked=self._unmarked
            )
            due += found
            if ended:
                self._end_round(self._round)
        if self._inspector.wants_marks:
            self._mark(connection, passed, now)
        return due

    def _rest(self, now: float) -> None:
        """Nothing is under way, so everything up to now has been looked for."""
        self._fresh = Walk(now)
        if self._round is not None:
            self._end_round(self._round)

    def _end_round(self, walk: Walk) -> None:
        self._round, self._round_at = None, monotonic() + max(ROUND_PAUSE * self._settings.lease, ROW_PAUSE * walk.rows)

    def _walk(
        self,
        connection: BoundedConnection,
        walk: Walk,
        upto: float,
        passed: dict[tuple[str, int], float],
        deadline: float,
        *,
        unmarked: set[tuple[str, int]] | None = None,
    ) -> tuple[int, bool]:
        """Look for the triggers of rows from ``walk`` on. Returns how many rows became due, and whether it came to the end.

        Parameters:
            unmarked: gains the queues and bands of these rows.
        """
        due = 0
        while True:
            rows = sent.sent_rows(connection, self._transport.name, walk.moment, upto, CHUNK)
            grace = self._settings.lease
            triggers = [Sent(row.id, row.queue, row.actor, row.priority, row.look_at - grace) for row in rows]
            gone = self._inspector.lost(triggers, passed) if rows else []
            if gone:
                due += sent.lost_due(connection, gone, upto)
            if unmarked is not None:
                unmarked |= {(queue, band(priority)) for queue, priority in {(row.queue, row.priority) for row in rows}}
            if rows:
                # Others may have the last one's moment and not be among these: it comes again, unless it is the moment of them all.
                last = rows[-1].look_at
                walk.moment = (
                    last if len(rows) < CHUNK or rows[0].look_at == last else max(r.look_at for r in rows if r.look_at < last)
                )
                walk.rows += len(rows)
            if len(rows) < CHUNK:
                return due, True
            if monotonic() >= deadline:
                return due, False

    def _mark(self, connection: BoundedConnection, passed: dict[tuple[str, int], float], now: float) -> None:
        """Send marks behind what was sent half a lease ago, or earlier, and still waits."""
        horizon = now + (1 - MARK_AGE) * self._settings.lease
        # Only what came of that age since: what is older is found by the round, since one statement over a backlog takes seconds.
        groups = sent.sent_groups(connection, self._transport.name, now if self._marked_to is None else self._marked_to, horizon)
        self._unmarked |= {(queue, band(priority)) for queue, priority in groups}
        self._marked_to = horizon
        marks = []
        for queue, number in self._unmarked:
            last = self._marked.get((queue, number), 0.0)
            # The last one may be far back in a long queue: then the next can wait for a while, too.
            under_way = 0.0 if passed.get((queue, number), 0.0) >= last else now - last
            if now - last >= MARK_SHARE * max(under_way, self._settings.lease):
                marks.append(Mark(queue, number, now))
        if marks:
            sent_marks = {(mark.queue, mark.band): mark.at for mark in self._inspector.mark(marks)}
            self._marked |= sent_marks
            self._unmarked -= sent_marks.keys()
