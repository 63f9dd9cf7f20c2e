"""``switchyard broker drain OLD --to NEW``: the whole switch at an operator's word, while jobs flow.

    1. NEW must answer, and take every queue that is to move there; if it does not, nothing is changed
    2. the routes that lead to OLD lead to NEW from now on, whatever running processes declare (``ledger.routes.decide``)
    3. the pending rows published to OLD are moved and published to NEW, here and by every keeper at once
    4. it ends when OLD holds nothing that matters: no pending row was last published there, for some seconds on end

Stopping it at any instant loses nothing, and it says how to go on: rows that were moved and not published are found by the keepers, the
rest is moved by them or by the next run. What remains in OLD are triggers of jobs that run, or ran, by way of NEW; whoever fetches one
finds that the claim refuses it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import monotonic
from typing import Final

from psycopg import Rollback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from brokers import make_transport
from brokers.transport import Sender, Transport, TransportDown
from cli.signals import Signals, Stopped
from errors import SwitchyardError
from ledger import brokers, routes, write
from ledger.database import BoundedConnection, Database, require_migrated
from ledger.records import DueJob
from ledger.routes import EVERY_QUEUE, Place, Route
from runtime.triggers import Outgoing
from settings import Settings

#: For how long nothing may have turned up at the old broker, in seconds: a busy sender's view of the routes is a second old at most.
SETTLED: Final = 2.0
#: Pause between two looks while there is nothing to move, in seconds.
PAUSE: Final = 0.25
#: How long confirms of one batch may take, in seconds.
CONFIRM: Final = 5.0
#: How often the routes are read anew when somebody else changes them at the same moment.
TRIES: Final = 5


class DrainRefused(SwitchyardError):
    """The move cannot begin, or go on; the text says what was changed and what to do."""


class Drain:
    """One run of the command.

    Parameters:
        queue: the only queue to move; None: everything that goes to ``old``.
    """

    def __init__(self, settings: Settings, old: str, new: str, queue: str | None, console: Console) -> None:
        self._settings = settings
        self._old, self._new, self._queue = old, new, queue
        self._console = console
        self._transports: dict[str, Transport] = {}
        self._senders: dict[str, Sender] = {}
        # Whether the routes are changed.
        self._decided = False
        self._database = Database(settings.database_url.get_secret_value(), pgbouncer=settings.pgbouncer)

    def run(self) -> None:
        """Do it all. Raises: DrainRefused, LedgerUnavailable, Stopped."""
        try:
            require_migrated(self._database)
            connection = self._database.dedicated("drain")
            with connection, Signals() as signals:
                self._check_new(connection)
                decided = self._decide(connection)
                self._decided = True
                for name in decided:
                    self._console.print(f"{name} goes to {self._new} from now on", markup=False)
                self._move_all(connection, signals)
        except Stopped:
            self._console.print(self._how_to_go_on(), markup=False)
            raise
        finally:
            for sender in self._senders.values():
                sender.close()
            for transport in self._transports.values():
                transport.close()
            self._database.close()

    def _how_to_go_on(self) -> str:
        if not self._decided:
            return "stopped; the routes were not changed"
        return (
            f"stopped; no job is lost: the routes lead to {self._new}, and the keepers of running workers go on moving what is at "
            f"{self._old}. Run the command again to move the rest from here, or drain {self._new} back"
        )

    def _check_new(self, connection: BoundedConnection) -> None:
        transport = self._transport(self._new)
        try:
            transport.depth(["default"])
            refused = transport.refusals(self._going_there(connection))
        except TransportDown as error:
            variable = {"postgres": "DATABASE_URL"}.get(self._new, f"{self._new.upper()}_URL")
            raise DrainRefused(
                f"{self._new} cannot be reached ({str(error).splitlines()[0]}), so nothing was changed; start it, or set {variable}"
            ) from error
        if refused:
            raise DrainRefused(
                f"{self._new} refuses the queue {refused[0].queue} ({refused[0].reason}), so nothing was changed; {refused[0].advice}"
            )

    def _going_there(self, connection: BoundedConnection) -> list[str]:
        """The queues that are to move."""
        if self._queue is not None:
            return [self._queue]
        _, queues = brokers.broker_uses(connection, [])
        found = {route.queue: route.broker for route in routes.routes(connection)}
        general = found.get(EVERY_QUEUE, self._old)
        return [queue for queue in queues if found.get(queue, general) == self._old]

    def _decide(self, connection: BoundedConnection) -> list[str]:
        """Make the routes lead to the new broker. Returns whose."""
        for _ in range(TRIES):
            seen = {route.queue: route for route in routes.routes(connection)}
            wanted = self._to_decide(seen)
            with connection.transaction():
                if all([routes.decide(connection, seen.get(queue), queue, self._new, self._old) for queue in wanted]):
                    return ["every queue without a broker of its own" if queue == EVERY_QUEUE else queue for queue in wanted]
                # All of them or none: somebody else has just changed one.
                raise Rollback
        raise DrainRefused("the routes kept changing under this command, so nothing was changed; run it again")

    def _to_decide(self, seen: dict[str, Route]) -> list[str]:
        """The queues (or ``EVERY_QUEUE``) whose route has to change. Raises: DrainRefused."""
        general = seen.get(EVERY_QUEUE)
        if self._queue is None:
            wanted = [queue for queue, route in seen.items() if route.broker == self._old]
            if general is None:
                # No worker has ever declared anything: the word is for those that will.
                wanted.append(EVERY_QUEUE)
            return wanted
        route = seen.get(self._queue, general)
        if route is not None and route.broker == self._new:
            return []
        if route is not None and route.broker != self._old:
            raise DrainRefused(
                f"the queue {self._queue} goes to {route.broker}, not to {self._old}, so nothing was changed; "
                f"switchyard broker drain {route.broker} --to {self._new} --queue {self._queue} moves it"
            )
        return [self._queue]

    def _move_all(self, connection: BoundedConnection, signals: Signals) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("jobs"), TimeElapsedColumn()
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(f"{self._old} → {self._new}", total=None)
            most, clean_since = 0, monotonic()
            while True:
                places = self._places(connection)
                left = brokers.pending_at(connection, self._old, [place.queue for place, _ in places]) if places else 0
                most = max(most, left)
                progress.update(task, total=most, completed=most - left)
                if left:
                    clean_since = monotonic()
                elif monotonic() - clean_since >= SETTLED:
                    break
                moved = sum(self._move(connection, place, to, signals) for place, to in places)
                if not moved:
                    time.sleep(PAUSE)
        self._console.print(f"{self._old} holds nothing that matters any more", markup=False)
        uses, _ = brokers.broker_uses(connection, [self._new])
        if not uses[0].consumed_by:
            self._console.print(
                f"no living worker fetches from {self._new} yet: those that live follow within {self._settings.sweep:g} s (SWEEP), and "
                "the jobs wait there for them; `switchyard broker status` shows who fetches where",
                markup=False,
            )

    def _places(self, connection: BoundedConnection) -> list[tuple[Place, str]]:
        """Where rows are at the old broker that have to move, and where to."""
        found = {route.queue: route.broker for route in routes.routes(connection)}
        places = [place for place in routes.pending_places(connection) if place.broker == self._old]
        if self._queue is not None:
            places = [place for place in places if place.queue == self._queue]
        goals = [(place, found.get(place.queue, found.get(EVERY_QUEUE, self._old))) for place in places]
        return [(place, to) for place, to in goals if to != self._old]

    def _move(self, connection: BoundedConnection, place: Place, to: str, signals: Signals) -> int:
        """Move and publish one chunk. Returns how many rows."""
        with signals.shielded():
            transport = self._transport(to)
            jobs = routes.move_pending(connection, place, to, carries=transport.carries_triggers, grace=self._settings.lease)
            if not jobs:
                return 0
            try:
                self._publish(connection, to, jobs)
            except TransportDown as error:
                write.make_due(connection, error.unpublished)
                raise DrainRefused(
                    f"{to} stopped answering ({str(error).splitlines()[0]}); no job is lost: the routes lead to {to}, what is at "
                    f"{self._old} stays there and runs from there. Run the command again once {to} answers, or drain {to} back"
                ) from error
            if place.queue in self._senders[to].refused():
                # What was moved is due, and goes there once it is taken; what is still at the old broker runs from there.
                raise DrainRefused(
                    f"{to} refuses the queue {place.queue} since a moment ago; no job is lost: the routes lead to {to}, and the jobs that "
                    f"were moved wait in the ledger. See switchyard broker status; once {to} takes the queue run the command again, or "
                    f"drain {to} back"
                )
        return len(jobs)

    def _publish(self, connection: BoundedConnection, to: str, jobs: Sequence[DueJob]) -> None:
        if to not in self._senders:
            self._senders[to] = self._transport(to).sender()
        sender = self._senders[to]
        failed = sender.publish([Outgoing(job.id, job.queue, job.actor, job.priority) for job in jobs])
        failed += sender.flush(CONFIRM)
        if failed:
            write.make_due(connection, failed)

    def _transport(self, name: str) -> Transport:
        if name not in self._transports:
            self._transports[name] = make_transport(name, self._settings)
        return self._transports[name]
