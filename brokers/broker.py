"""The one Dramatiq broker of Switchyard: it writes jobs into the ledger and has a transport carry their triggers.

    enqueue   before-hooks ─► encode ─► INSERT, committed ─► hand the trigger to the publisher thread ─► after-hooks
              inside ``enlist``: INSERT and NOTIFY on the caller's connection; whoever hears it after the commit goes on
    worker    see ``worker_side``: fetchers claim, threads run, ack and nack hand the end to the flusher

There are no delay queues and no dead-letter queues: a delay is a state of the row, and so is death. ``join`` and ``flush`` ask and
change the ledger. Several transports may be in use at once; which one a row was last published to stands in the row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial, wraps
from typing import Any, Final

import psycopg
from dramatiq import Actor, Broker, Message, Middleware
from dramatiq.broker import Consumer
from dramatiq.common import current_millis
from dramatiq.errors import ActorNotFound, QueueJoinTimeout, QueueNotFound
from dramatiq.middleware import MiddlewareError

from brokers.folding import FOLDED, folded_into
from brokers.message import ClaimedMessage
from brokers.rows import (
    MAX_PRIORITY,
    NO_PRIORITY,
    Origin,
    Seals,
    delay_seconds,
    first_message,
    id_of,
    max_age_of,
    priority_of,
    queue_of,
    tags_of,
)
from brokers.transport import Transport
from brokers.worker_side import AckConsumer, Service, WorkerSide, how_it_ended, untold
from errors import JobExists, LedgerUnavailable, OptionError
from ledger import control as ledger_control
from ledger import routes as ledger_routes
from ledger import write
from ledger.batches import Together
from ledger.borrowed import LedgerOnly
from ledger.database import BoundedConnection, Database
from ledger.keys import undisturbed
from ledger.records import Enqueued, Finish, NewJob
from ledger.routes import Place
from ledger.sql import SQL
from runtime.claims import Claim, Completion
from runtime.context import current_claim
from runtime.encoding import encode_options, encode_payload
from runtime.enlist import current_enlistment
from runtime.interrupt import Guard
from runtime.limits import DeclaredLimits
from runtime.message_options import MessageOptions
from runtime.node import WorkerNode
from runtime.options import control, max_attempts, max_lost
from runtime.publisher import Publisher
from runtime.routes import Routes
from runtime.triggers import Outgoing
from settings import Settings

#: How often ``join`` asks the ledger, in seconds.
_JOIN_POLL: Final = 0.05


class SwitchyardBroker(Broker):
    """Dramatiq's broker on top of the ledger.

    Parameters:
        transports: every transport this process may use, by name; constructed, not connected.
        middleware: the stack, see ``middleware/__init__.py``.
        failure: how an execution ends that failed without any hook of ours noting it.
        snooze: how an execution ends whose job enqueued itself again, with the delay in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        transports: Mapping[str, Transport],
        middleware: Sequence[Middleware],
        *,
        failure: Callable[[Any, BaseException], Finish],
        snooze: Callable[[Claim, float], Finish],
    ) -> None:
        self.settings = settings
        self.database = database
        self.node: WorkerNode | None = None
        #: Keeps ``enlist`` from writing jobs where no worker looks.
        self.ledger_only = LedgerOnly(database)
        self.services: list[Service] = []
        #: This process's view of where each queue's triggers go.
        self.routes = Routes(settings.routes)
        self.transports = transports
        self._failure = failure
        self._snooze = snooze
        self._hooks: dict[str, list[tuple[Middleware, Callable[..., Any]]]] = {}
        self._controls: list[Any] = [entry for entry in middleware if hasattr(entry, "control_of")]
        #: The middleware that keeps arguments secret.
        self.seals: Seals | None = next((entry for entry in middleware if isinstance(entry, Seals)), None)
        self.publisher = Publisher(
            outlet=lambda name: transports[name].sender(),
            # Any queue's depth: the cheapest question that only a living broker answers.
            probe=lambda name: transports[name].depth(["default"]),
            make_due=self._make_due,
            grace=settings.lease,
            published=self._follow_up,
        )
        self._worker_side = WorkerSide(self)
        super().__init__(middleware=[self._worker_side, *middleware])
        #: Which options its messages may have.
        self.message_options = MessageOptions(self, settings.message_options)
        self.queues: dict[str, None] = {}
        self.limits = DeclaredLimits(settings, self.actors)

    # Signals. Dramatiq calls every hook of every middleware for each signal, most of them empty; with a dozen middlewares that
    # is most of a short job's time. Only hooks that somebody has overridden are kept, in a table made when first needed.

    def add_middleware(self, middleware: Middleware, **position: Any) -> None:
        """Add a middleware, as in Dramatiq."""
        super().add_middleware(middleware, **position)
        self._hooks.clear()

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the before-hooks in order; a ``MiddlewareError`` stops the operation, other exceptions are logged, as in Dramatiq."""
        name = "before_" + signal
        hooks = self._hooks.get(name)
        for middleware, hook in hooks if hooks is not None else self._overridden(name):
            try:
                hook(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:
                self.logger.critical("Unexpected failure in %s of %r.", name, middleware, exc_info=True)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Call the after-hooks in reverse order; exceptions are logged, as in Dramatiq."""
        name = "after_" + signal
        hooks = self._hooks.get(name)
        for middleware, hook in reversed(hooks if hooks is not None else self._overridden(name)):
            try:
                hook(self, *args, **kwargs)
            except Exception:
                self.logger.critical("Unexpected failure in %s of %r.", name, middleware, exc_info=True)

    def _overridden(self, name: str) -> list[tuple[Middleware, Callable[..., Any]]]:
        empty = getattr(Middleware, name, None)
        hooks = [
            (middleware, getattr(middleware, name))
            for middleware in self.middleware
            if getattr(type(middleware), name, None) is not empty or name in vars(middleware)
        ]
        self._hooks[name] = hooks
        return hooks

    # Declaring.

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue; a transport makes what it needs when the first trigger goes there."""
        if queue_name in self.queues:
            return
        self.emit_before("declare_queue", queue_name)
        self.queues[queue_name] = None
        self.emit_after("declare_queue", queue_name)

    def declare_actor(self, actor: Actor[Any, Any]) -> None:
        """Declare an actor; its function gets a guard, so that a running execution can be interrupted and nothing else."""
        if isinstance(actor.priority, bool) or not isinstance(actor.priority, int) or abs(actor.priority) > MAX_PRIORITY:
            raise OptionError(actor.actor_name, "priority", NO_PRIORITY.format(actor.priority))
        queue_of(actor.actor_name, actor.queue_name)
        actor.fn = _guarded(actor.fn)
        super().declare_actor(actor)

    # Sending.

    def enqueue(self, message: Message[Any], *, delay: int | timedelta | None = None) -> Message[Any]:
        """Write a job and have its trigger published; when it returns, the row is committed. Inside ``enlist`` it is written on the
        caller's connection, and committed with the caller's transaction.

        Parameters:
            delay: milliseconds until it may run, or a ``timedelta``.

        Returns: the message, its secrets sealed; if one of its keys led to another job, that job's, with ``options["replayed"]``.

        Raises:
            PayloadError, OptionError: it cannot be stored, or has an option that nobody knows; nothing was.
            JobExists: another job has its message id.
            IdempotencyConflict: its key stands for another payload.
            LedgerUnavailable: Postgres did not answer within SEND_TIMEOUT; carries the message.
            EnlistRefused: inside ``enlist``, and the connection cannot carry it.
        """
        claim = current_claim.get()
        own = claim is not None and claim.job.message_id == message.message_id
        if not own:
            self.message_options.check(message)
        if FOLDED in message.options and (folded := folded_into(self, message)) is not None:
            return folded
        seconds = delay_seconds(message, delay)
        if claim is not None and own:
            if claim.completion is Completion.COMMITTED:
                raise JobExists(message.message_id, "it is completed")
            # A running job that enqueues itself wants to run again later: Dramatiq's own idiom for a snooze.
            claim.ending = self._snooze(claim, seconds)
            return message
        self.emit_before("enqueue", message, None if delay is None else int(seconds * 1000))
        self.message_options.learn(message)
        self._know_routes((message,), message)
        job, message = self.new_job(message, seconds), self.shown(message)
        written = self._enlisted([job])
        if written is None:
            try:
                enqueued = self.database.run(lambda connection: write.enqueue(connection, job), self.settings.send_timeout)
            except LedgerUnavailable as error:
                error.message = message
                raise
            if not seconds > 0 and not enqueued.replayed:
                self.publisher.offer(job.broker, (Outgoing(enqueued.id, job.queue, job.actor, job.priority),))
        else:
            (enqueued,) = written
        if enqueued.replayed:
            message = first_message(message, enqueued)
        self.emit_after("enqueue", message, None if delay is None else int(seconds * 1000))
        return message

    def enqueue_many(
        self, messages: Iterable[Message[Any]], *, delay: int | timedelta | None = None, whole: Together | None = None
    ) -> list[Message[Any]]:
        """Write many jobs, any mix of actors, and what they belong to, in one transaction: all or none. Otherwise as ``enqueue``."""
        sent = list(messages)
        # Each may have a delay of its own among its options, as in a group or a pipeline.
        common = delay_seconds(sent[0], delay) if sent else 0.0
        delays = [
            max(common, delay_seconds(message, message.options["delay"])) if "delay" in message.options else common
            for message in sent
        ]
        for message in sent:
            self.message_options.check(message)
        for message in sent:
            self.emit_before("enqueue", message, None)
            self.message_options.learn(message)
        self._know_routes(sent)
        written = self._enlisted(list(self._rows(sent, delays, whole)), whole) if current_enlistment() is not None else None
        if written is None:
            # Bulk statements take longer than one send; each thousand rows get as long as a single one.
            timeout = self.settings.send_timeout * (1 + len(sent) // 1_000)
            jobs: list[NewJob] = []

            def write_all(connection: BoundedConnection) -> list[Enqueued]:
                jobs.clear()
                return write.enqueue_many(connection, _noting(self._rows(sent, delays, whole), jobs), whole)

            written = self.database.run(lambda connection: undisturbed(partial(write_all, connection)), timeout)
            self._offer_all(jobs, written)
        sent = [self.shown(message) for message in sent]
        sent = [first_message(m, entry) if entry.replayed else m for m, entry in zip(sent, written, strict=True)]
        for message in sent:
            self.emit_after("enqueue", message, None)
        return sent

    def _rows(self, messages: Iterable[Message[Any]], delays: Iterable[float], whole: Together | None) -> Iterator[NewJob]:
        """The rows of messages, made as they are asked for. Raises: PayloadError, OptionError: one cannot be stored."""
        plain: dict[tuple[str, str], Origin] = {}
        for position, (message, delay) in enumerate(zip(messages, delays, strict=True)):
            if message.options:
                origin = self._origin(message)
            else:
                # Without options of their own, messages of one actor differ in nothing that is looked up there.
                kind = (message.actor_name, message.queue_name)
                origin = plain.get(kind) or plain.setdefault(kind, self._origin(message))
            job = self._row(message, delay, origin)
            yield job if whole is None else whole.place(position, job)

    def _offer_all(self, jobs: Sequence[NewJob], enqueued: Sequence[Enqueued]) -> None:
        by_broker: dict[str, list[Outgoing]] = {}
        for job, entry in zip(jobs, enqueued, strict=True):
            if not job.waits and not entry.replayed:
                by_broker.setdefault(job.broker, []).append(Outgoing(entry.id, job.queue, job.actor, job.priority))
        for broker, batch in by_broker.items():
            self.publisher.offer(broker, batch)

    def _know_routes(self, sent: Iterable[Message[Any]], message: Message[Any] | None = None) -> None:
        """Ask the ledger where triggers go before the first send of this process; later ``_follow_up`` does so after sends, but for those
        that this process does not publish itself. And tell it of limits before the first send of each actor."""
        routes = self.routes
        try:
            self.limits.tell_of(sent, self.database)
            if routes.seen_at is None or (routes.stale and current_enlistment() is not None):
                routes.learn(self.database.run(ledger_routes.routes, self.settings.send_timeout))
        except LedgerUnavailable as error:
            error.message = None if message is None else self.shown(message)
            raise

    def _follow_up(self, broker: str, batch: Sequence[Outgoing]) -> None:
        """Triggers were published: bring the view of the routes up to date if it is old, and send those after it that went elsewhere."""
        if not self.routes.stale:
            return
        try:
            self.routes.learn(self.database.run(ledger_routes.routes))
            astray: dict[str, list[int]] = {}
            for trigger in batch:
                to = self.routes.of(trigger.queue)
                # Where it cannot be published from here it stays, until a keeper can.
                if to != broker and to in self.transports and self.publisher.grace(to, trigger.queue):
                    astray.setdefault(to, []).append(trigger.job_id)
            for to, ids in astray.items():
                carries, grace = self.carriers[to], self.settings.lease
                jobs = self.database.run(partial(ledger_routes.reroute, ids=ids, to=to, carries=carries, grace=grace))
                self.publisher.offer(to, [Outgoing(job.id, job.queue, job.actor, job.priority) for job in jobs])
        except (LedgerUnavailable, psycopg.Error) as error:
            # The triggers are where they were a moment ago; a keeper moves what has to move.
            self.logger.debug("could not look up the routes: %s", error)

    def _enlisted(self, jobs: Sequence[NewJob], whole: Together | None = None) -> list[Enqueued] | None:
        """Write jobs as part of the caller's transaction, if the caller is inside ``enlist``. None: it is not, nothing was written."""
        enlistment = current_enlistment()
        if enlistment is None:
            return None
        rings = []
        for name in sorted({job.broker for job in jobs}):
            queues = {job.queue for job in jobs if job.broker == name and not job.waits}
            rings += self.transports[name].rings(queues) if queues else []
        # Due at once: this process does not learn of the commit, so it publishes nothing.
        return enlistment.write([job if job.grace is None else job._replace(grace=0.0) for job in jobs], rings, whole)

    def new_job(self, message: Message[Any], delay: float = 0.0) -> NewJob:
        """The row of a message, ``delay`` seconds from now. Raises: PayloadError, OptionError: it cannot be stored."""
        return self._row(message, delay, self._origin(message))

    def _origin(self, message: Message[Any]) -> Origin:
        actor = self.actors.get(message.actor_name)
        broker = self.routes.of(message.queue_name)
        if broker not in self.transports:
            # Its driver is not installed here: whoever has it moves the row.
            broker = self.settings.broker
        claim = current_claim.get()
        return Origin(
            priority=priority_of(message, actor),
            max_attempts=max_attempts(message, actor),
            max_lost=max_lost(message, actor),
            tags=tags_of(message, actor),
            max_age=max_age_of(message, actor),
            parent_id=None if claim is None else claim.job.message_id,
            broker=broker,
            grace=self.publisher.grace(broker, message.queue_name) if self.transports[broker].carries_triggers else None,
        )

    def _row(self, message: Message[Any], delay: float, origin: Origin) -> NewJob:
        limit, name = self.settings.max_payload_bytes, message.actor_name
        if self.seals is not None:
            message = self.seals.opened(message)
        payload = encode_payload(name, message.args, message.kwargs, limit)
        # What keys are made of and compared by is what the body gets.
        jobs_control = control(message, self.actors.get(name), self._controls, payload)
        stored = self.shown(message)
        if stored is not message:
            # Base64 of what was encrypted, and what it says of itself.
            payload = encode_payload(name, stored.args, stored.kwargs, 4 * limit)
        options = stored.options
        if options:
            options = {name: value for name, value in options.items() if value is not None or name == "max_retries"}
            options.pop("replayed", None)
        return NewJob(
            message_id=id_of(message),
            queue=queue_of(name, message.queue_name),
            actor=name,
            payload=payload,
            broker=origin.broker,
            options=encode_options(name, options, limit),
            priority=origin.priority,
            max_attempts=origin.max_attempts,
            max_lost=origin.max_lost,
            parent_id=origin.parent_id,
            tags=origin.tags,
            delay=delay,
            grace=origin.grace,
            max_age=origin.max_age,
            control=jobs_control,
        )

    def shown(self, message: Message[Any]) -> Message[Any]:
        """The message as it may be stored and shown: with its secrets sealed. Raises: OptionError: they cannot be."""
        return message if self.seals is None else self.seals.sealed(message)

    # Working.

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """The consumer of all queues; see ``worker_side``."""
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        return AckConsumer(self, timeout)

    def settle(self, message: ClaimedMessage) -> None:
        """An execution is over; its end goes to the flusher."""
        node = self.node
        if node is None:
            return
        try:
            ending = how_it_ended(message, self._failure)
        except Exception as error:
            # Without an end the claim would be held, and its lease extended, for as long as the process lives.
            self.logger.exception("How job %s ended cannot be told.", message.message_id)
            ending = untold(message, error)
        node.finish(message.claim, ending)

    def transport(self, name: str) -> Transport:
        """One of the transports, by name."""
        return self.transports[name]

    @property
    def carriers(self) -> dict[str, bool]:
        """The brokers that this process can publish to, each with whether it carries triggers (or the row itself is the message)."""
        return {name: transport.carries_triggers for name, transport in self.transports.items()}

    def follow_routes(self, left_behind: Sequence[Place]) -> None:
        """Have this process's worker, if it has one, fetch from the brokers that are routes now, and from where something was left."""
        if self._worker_side.consumption is not None:
            self._worker_side.consumption.follow(left_behind)

    def wake_services(self, within: float) -> None:
        """Something waits that will be due in ``within`` seconds."""
        for service in self.services:
            service.wake(within)

    # Tests and operators.

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until no job of the queue is scheduled, pending, retrying or running; ``timeout`` is in milliseconds.

        Raises: QueueJoinTimeout.
        """
        deadline = None if timeout is None else current_millis() + timeout
        while True:
            row = self.database.run(lambda c: c.execute(SQL["active_count"], {"queue": queue_name}).fetchone())
            if row is None or not row[0]:
                return
            if deadline is not None and current_millis() > deadline:
                raise QueueJoinTimeout(queue_name)
            time.sleep(_JOIN_POLL)

    def flush(self, queue_name: str) -> None:
        """Cancel everything that waits in the queue."""
        self.database.run(lambda connection: ledger_control.flush(connection, [queue_name]))

    def flush_all(self) -> None:
        """Cancel everything that waits in any declared queue."""
        self.database.run(lambda connection: ledger_control.flush(connection, list(self.queues)))

    def close(self) -> None:
        """Publish what is left, close every connection."""
        self.publisher.close()
        for transport in self.transports.values():
            transport.close()
        self.database.close()

    def _make_due(self, ids: Sequence[int]) -> None:
        """Triggers that did not arrive: the relay's turn. Without Postgres their grace brings it, half a minute later."""
        try:
            self.database.run(lambda c: write.make_due(c, ids))
        except (LedgerUnavailable, psycopg.Error) as error:
            self.logger.warning("could not make %d unpublished jobs due: %s", len(ids), error)


def _guarded(body: Callable[..., Any]) -> Callable[..., Any]:
    """Run the body under the current claim's guard; outside a worker, as it is."""

    @wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        claim = current_claim.get()
        if claim is None or claim.guard is not None:
            return body(*args, **kwargs)
        claim.guard = Guard()
        return claim.guard.run(body, args, kwargs)

    return guarded


def _noting(jobs: Iterable[NewJob], kept: list[NewJob]) -> Iterator[NewJob]:
    """The same jobs, each kept as it passes."""
    for job in jobs:
        kept.append(job)
        yield job


__all__ = ["ActorNotFound", "SwitchyardBroker"]
