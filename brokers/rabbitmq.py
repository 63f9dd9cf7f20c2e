"""Triggers through RabbitMQ: a durable queue with priorities per queue, confirmed publishing, acknowledged consuming.

    <prefix>.<queue>.p10             classic queue, x-max-priority 10; message "<job id> <actor>", persistent, priority 9 - band
    <prefix>.<queue>.epoch.<name>    an exchange that nothing is published to; it goes when its queue goes (brokers.rabbitmq_inspector)
    <prefix>.ledgers                 who watches over the prefix (brokers.rabbitmq_presence)
    <prefix>.dead                    the latest dead letters, as JSON, for whoever watches there (brokers.rabbitmq_dead_letters)

Sender and receiver declare the queues they use once per connection, so an empty vhost, a wiped one or a deleted queue heals by
itself. All publishes go through the default exchange with ``mandatory``: a missing queue sends them back.

The sender follows confirms as they come and is never more than 5,000 ahead of them. What a dying connection leaves unconfirmed,
what is refused and what comes back is reported by id, and its rows are published again: copies are possible, losses are not.
A queue that RabbitMQ refuses (declared otherwise by somebody, no permission) closes the channel. The sender opens another one, sets that
queue aside, and reports what it had not seen confirmed; the receiver consumes the others. Whether it is taken again is asked on a
connection made for that, so that the others are not disturbed a second time (``brokers.refusals``).

While a memory or disk alarm blocks the connection, publishing fails at once and the connection is kept, so that what is in it
already arrives once and not once per attempt.

The receiver lets RabbitMQ push; how much it may hold unclaimed follows what is asked for (``brokers.subscription``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any

from pika import BasicProperties, URLParameters

from brokers.amqp import Link, ask, declare, opened, queue_name, refused_queue, use, waiting_in
from brokers.presence import Presence
from brokers.rabbitmq_dead_letters import dead_queue, put_dead
from brokers.rabbitmq_inspector import RabbitmqInspector
from brokers.rabbitmq_presence import find_presence
from brokers.refusals import Refusals
from brokers.subscription import Subscription
from brokers.transport import (
    BANDS,
    SOCKET_TIMEOUT,
    Fetched,
    QueueRefused,
    Receiver,
    Sender,
    Transport,
    TransportDown,
    Trigger,
    band,
)
from brokers.wire import decode, encode
from errors import SettingsError
from ledger.dead import DeadNotice
from runtime.claims import ROOM_WINDOW
from runtime.triggers import Outgoing
from settings import Settings

#: How many publishes may be unconfirmed before the sender waits for the server.
WINDOW = 5_000

#: Persistent (2), so that a restart of RabbitMQ does not leave a whole backlog for the relay to publish anew.
_PROPERTIES = [BasicProperties(delivery_mode=2, priority=BANDS - 1 - number) for number in range(BANDS)]
#: How long RabbitMQ may take to create one durable queue, in seconds; the confirms of a batch wait behind its new queues.
_DECLARE_TIME = 0.1
#: The most of its time that a receiver may wait for the answer to an exchange of what it was pushed.
_EXCHANGE_SHARE = 1 / 10


class RabbitmqTransport(Transport):
    """Triggers through RabbitMQ. See the module's text for queues and guarantees."""

    name = "rabbitmq"
    carries_triggers = True
    epoch_per_queue = True
    dead_letter_place = dead_queue("{prefix}")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._link: Link | None = None
        try:
            parameters = URLParameters(settings.rabbitmq_url.get_secret_value())
        except ValueError:
            # The cause is left out, because it quotes the URL, which may hold a password.
            raise SettingsError("RABBITMQ_URL", "write amqp://user:password@host:port/vhost") from None
        self._place = f"{parameters.host}:{parameters.port}, virtual host {parameters.virtual_host}"

    def sender(self) -> RabbitmqSender:
        """A new publishing side."""
        return RabbitmqSender(self.settings)

    def receiver(self) -> RabbitmqReceiver:
        """A new consuming side."""
        return RabbitmqReceiver(self.settings)

    def inspector(self) -> RabbitmqInspector:
        """A new inspector."""
        return RabbitmqInspector(self.settings)

    def put_dead(self, notices: Sequence[DeadNotice]) -> None:
        """Publish them to their queue, confirmed. Raises: TransportDown."""
        link = opened(self.settings.rabbitmq_url.get_secret_value(), "dead letters")
        try:
            put_dead(link, self.settings.broker_prefix, notices)
        finally:
            link.close()

    def depth(self, queues: Sequence[str]) -> dict[str, int]:
        """How many triggers wait, per queue, without those that receivers hold. Raises: TransportDown."""
        try:
            return self._depth(self._link or self._open(), queues)
        except TransportDown:
            # Nothing answers heartbeats between two calls, so the server may have closed the connection meanwhile.
            self.close()
        try:
            return self._depth(self._open(), queues)
        except TransportDown:
            self.close()
            raise

    def refusals(self, queues: Sequence[str]) -> list[QueueRefused]:
        """Those that exist and may not be declared as ours. Raises: TransportDown."""
        found: list[QueueRefused] = []
        link = opened(self.settings.rabbitmq_url.get_secret_value(), "refusals")
        try:
            for queue in queues:
                try:
                    if waiting_in(link, self.settings.broker_prefix, queue) is not None:
                        use(link, self.settings.broker_prefix, queue)
                except QueueRefused as error:
                    found.append(error)
        finally:
            link.close()
        return found

    @property
    def place(self) -> str:
        """Host, port and virtual host."""
        return self._place

    def presence(self, keeper: str) -> Presence | None:
        """Look for its message, again where it may be hidden for a moment. Raises: TransportDown."""
        return find_presence(self.settings.rabbitmq_url.get_secret_value(), self.settings.broker_prefix, keeper)

    def close(self) -> None:
        """Close what ``depth`` opened."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _open(self) -> Link:
        self._link = opened(self.settings.rabbitmq_url.get_secret_value(), "depth")
        return self._link

    def _depth(self, link: Link, queues: Sequence[str]) -> dict[str, int]:
        # Asked first of all, because an answer about no queue is an answer all the same.
        ask(link, lambda channel, answer: channel.exchange_declare("amq.direct", passive=True, callback=answer))
        return {queue: self._count(link, queue) for queue in queues}

    def _count(self, link: Link, queue: str) -> int:
        try:
            found = waiting_in(link, self.settings.broker_prefix, queue)
        except QueueRefused:
            return 0
        return 0 if found is None else found[0]


class RabbitmqSender(Sender):
    """Publishes without waiting; confirms are collected by whichever call comes next."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link: Link | None = None
        self._declared: set[str] = set()
        # Whether something came back, so that its queue is not there any more.
        self._returned = False
        # By delivery tag, which counts the publishes of a connection from 1. Below _confirmed_to there are none.
        self._unconfirmed: dict[int, int] = {}
        self._last_tag = 0
        self._confirmed_to = 1
        self._last_progress = 0.0
        # Refused or returned since the last call that could say so.
        self._failed: list[int] = []
        self._refusals = Refusals(RabbitmqTransport.name, "publish")

    def publish(self, batch: Sequence[Outgoing]) -> list[int]:
        """Publish; see ``Sender.publish``. Raises: TransportDown: with the batch and all that was unconfirmed before."""
        try:
            link = self._link or self._open()
            self._refuse_if_blocked(link)
            self._ask_again()
            taken = [trigger for trigger in batch if trigger.queue not in self._refusals] if self._refusals else batch
            self._write(link, taken)
            self._turn(link, 0.0)
            self._catch_up(link)
        except TransportDown as error:
            self._go_on(error, batch)
        if self._refusals:
            self._failed += [trigger.job_id for trigger in batch if trigger.queue in self._refusals]
        return self._take_failed()

    def flush(self, timeout: float) -> list[int]:
        """Wait for confirms; see ``Sender.flush``. Raises: TransportDown: with all that is unconfirmed."""
        deadline = monotonic() + timeout
        try:
            while self._link is not None and self._unconfirmed and (left := deadline - monotonic()) > 0:
                self._refuse_if_blocked(self._link)
                self._turn(self._link, left)
        except TransportDown as error:
            self._go_on(error)
        return self._take_failed()

    def idle(self) -> list[int]:
        """Answer heartbeats and collect confirms; see ``Sender.idle``. Raises: TransportDown: with all that is unconfirmed."""
        try:
            if self._link is not None:
                self._turn(self._link, 0.0)
                if self._unconfirmed:
                    self._refuse_if_blocked(self._link)
            self._ask_again()
        except TransportDown as error:
            self._go_on(error)
        return self._take_failed()

    def refused(self) -> Collection[str]:
        """The queues that are set aside; see ``Sender.refused``."""
        return list(self._refusals)

    def close(self) -> None:
        """Close the connection, quietly. What was written before is taken in by the server first, if it listens."""
        link, self._link = self._link, None
        self._unconfirmed.clear()
        if link is not None:
            link.close()

    def _open(self) -> Link:
        link = opened(self._settings.rabbitmq_url.get_secret_value(), "sender")
        self._declared.clear()
        self._begin(link)
        self._link = link
        return link

    def _begin(self, link: Link) -> None:
        """Start with the link's channel, which is new."""
        with link.writing() as channel:
            channel.confirm_delivery(self._on_confirm)
            channel.add_on_return_callback(self._on_return)
        self._last_tag, self._confirmed_to = 0, 1

    def _go_on(self, error: TransportDown, batch: Sequence[Outgoing] = ()) -> None:
        """Go on without the queue that RabbitMQ refused, if that is what ended the channel; what it took with it has failed.

        Raises: TransportDown: it was something else, or the connection is gone as well.
        """
        link, prefix = self._link, self._settings.broker_prefix
        queues = (self._declared | {trigger.queue for trigger in batch}).difference(self._refusals)
        refused = refused_queue(error, prefix, queues)
        if refused is None or link is None:
            raise self._lost(error, [trigger.job_id for trigger in batch]) from error.__cause__
        self._refusals.note(refused)
        try:
            link.renew_channel()
            # Seldom is it one alone, and each would take a batch of all the others with it.
            others = sorted(queues - {refused.queue})
            self._refusals.ask(others, lambda queue: use(link, prefix, queue))
            self._begin(link)
        except TransportDown as worse:
            raise self._lost(worse, [trigger.job_id for trigger in batch]) from worse.__cause__
        self._declared.clear()
        self._failed = list(dict.fromkeys([*self._unconfirmed.values(), *self._failed, *(trigger.job_id for trigger in batch)]))
        self._unconfirmed.clear()

    def _ask_again(self) -> None:
        due = self._refusals.due() if self._refusals else []
        if due:
            _ask_again(self._settings, self._refusals, due, consume=False)

    def _write(self, link: Link, batch: Sequence[Outgoing]) -> None:
        prefix = self._settings.broker_prefix
        if self._returned:
            self._declared.clear()
            self._returned = False
        new = {trigger.queue for trigger in batch} - self._declared
        if new or not self._unconfirmed:
            self._last_progress = monotonic() + _DECLARE_TIME * len(new)
        first, self._last_tag = self._last_tag + 1, self._last_tag + len(batch)
        self._unconfirmed.update(zip(range(first, self._last_tag + 1), [trigger.job_id for trigger in batch], strict=True))
        with link.writing() as channel:
            for queue in new:
                declare(channel, queue_name(prefix, queue))
            self._declared |= new
            names = {queue: queue_name(prefix, queue) for queue in self._declared}
            for job_id, queue, actor, priority in batch:
                body = encode(job_id, actor).encode()
                channel.basic_publish("", names[queue], body, _PROPERTIES[band(priority)], mandatory=True)

    def _turn(self, link: Link, timeout: float) -> None:
        link.turn(timeout)
        if self._unconfirmed and monotonic() - self._last_progress > SOCKET_TIMEOUT and link.blocked is None:
            raise TransportDown(RabbitmqTransport.name, f"no confirm in {SOCKET_TIMEOUT:g} s")

    def _catch_up(self, link: Link) -> None:
        """Wait until everything is on its way and the window holds what is unconfirmed. Raises: TransportDown: not in 5 s."""
        deadline = monotonic() + SOCKET_TIMEOUT
        while link.unsent or len(self._unconfirmed) > WINDOW:
            self._refuse_if_blocked(link)
            left = deadline - monotonic()
            if left <= 0:
                raise TransportDown(RabbitmqTransport.name, f"the server is more than {SOCKET_TIMEOUT:g} s behind")
            self._turn(link, left)

    def _refuse_if_blocked(self, link: Link) -> None:
        if link.blocked is not None:
            link.turn(0.0)
            if link.blocked is not None:
                raise _Blocked(RabbitmqTransport.name, f"publishing is blocked: {link.blocked}")

    def _lost(self, error: TransportDown, batch: Sequence[int] = ()) -> TransportDown:
        """Give up on everything unconfirmed, and on the connection unless it is only blocked."""
        error.unpublished = list(dict.fromkeys([*self._unconfirmed.values(), *self._take_failed(), *batch]))
        self._unconfirmed.clear()
        if not isinstance(error, _Blocked):
            link, self._link = self._link, None
            if link is not None:
                link.abandon()
        return error

    def _take_failed(self) -> list[int]:
        failed, self._failed = self._failed, []
        return failed

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tag: int = method.delivery_tag
        self._last_progress = monotonic()
        settled = range(self._confirmed_to, tag + 1) if method.multiple else (tag,)
        if method.multiple:
            self._confirmed_to = max(self._confirmed_to, tag + 1)
        jobs = [job_id for at in settled if (job_id := self._unconfirmed.pop(at, None)) is not None]
        if method.NAME == "Basic.Nack":
            self._failed += jobs

    def _on_return(self, _channel: object, method: Any, _properties: object, body: bytes) -> None:
        # Its confirm follows and says nothing about it. The queue was deleted under us: declare all before the next batch.
        self._returned = True
        read = decode(body)
        if read is not None:
            self._failed.append(read[0])


class RabbitmqReceiver(Receiver):
    """Consumes; a trigger's receipt is its delivery tag, made unique over channels."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._subscription: Subscription | None = None
        # Since when nothing is wanted, as far as is known here.
        self._rested_from = monotonic()
        self._exchanged = False
        # When something was put back for something better, how long the answer took, and whether it is still to come.
        self._exchanged_at, self._exchange_took = 0.0, 0.0
        self._awaited = False
        self._refusals = Refusals(RabbitmqTransport.name, "consume")

    def fetch(self, queues: Sequence[str], limit: int, timeout: float) -> Fetched:
        """Take up to ``limit`` triggers, waiting up to ``timeout`` seconds for the first. Raises: TransportDown."""
        deadline = monotonic() + timeout
        limit = limit if queues else 0
        stale = limit > 0 and timeout > 0 and not self._exchanged and self._may_be_better()
        try:
            self._ask_again(queues)
            while True:
                try:
                    return self._fetch(queues, limit, deadline, stale=stale)
                except TransportDown as error:
                    self._go_on(error, queues)
                    stale = False
        except TransportDown:
            self._drop()
            raise
        finally:
            if limit > 0:
                self._rested_from = monotonic()

    def _fetch(self, queues: Sequence[str], limit: int, deadline: float, *, stale: bool) -> Fetched:
        subscription = self._subscription or self._open()
        subscription.link.turn(0.0)
        if stale:
            # Once until something was taken: were the answer slower than the timeouts, it would go back and forth for ever.
            began = monotonic()
            self._exchanged = self._awaited = subscription.exchange()
            self._exchanged_at = began if self._exchanged else self._exchanged_at
        if self._refusals:
            queues = [queue for queue in queues if queue not in self._refusals]
        while True:
            subscription.follow(queues, limit)
            fetched = subscription.take(limit)
            if fetched.triggers:
                self._exchanged = False
                if self._awaited:
                    self._exchange_took, self._awaited = monotonic() - self._exchanged_at, False
            left = deadline - monotonic()
            if fetched or limit <= 0 or left <= 0:
                return fetched
            subscription.link.turn(left)

    def _go_on(self, error: TransportDown, queues: Sequence[str]) -> None:
        """Consume the others if RabbitMQ refused one of these queues. Raises: TransportDown: it was something else, or worse."""
        subscription = self._subscription
        # One queue less each time: one that is set aside already cannot have been it.
        others = [queue for queue in queues if queue not in self._refusals]
        refused = refused_queue(error, self._settings.broker_prefix, others)
        if refused is None or subscription is None:
            raise error
        self._refusals.note(refused)
        subscription.restart()

    def _ask_again(self, queues: Sequence[str]) -> None:
        due = [queue for queue in self._refusals.due() if queue in queues] if self._refusals else []
        if due:
            _ask_again(self._settings, self._refusals, due, consume=True)

    def _may_be_better(self) -> bool:
        """Whether nothing was wanted for so long, because jobs are long, that something better may have come for those queues meanwhile.
        What this costs is bounded: where answers are slow, putting back what is needed now would make all of it late."""
        now = monotonic()
        return now - self._rested_from > ROOM_WINDOW and now - self._exchanged_at > self._exchange_took / _EXCHANGE_SHARE

    def settle(self, triggers: Sequence[Trigger]) -> None:
        """Acknowledge; those of an older connection are delivered again, and their claim finds nothing."""
        self._answer(triggers, requeue=False)

    def give_back(self, triggers: Sequence[Trigger]) -> None:
        """Put triggers back where they were."""
        self._answer(triggers, requeue=True)

    def close(self) -> None:
        """Close the connection, quietly; what is not settled goes back to its queue."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.link.close()

    def _answer(self, triggers: Sequence[Trigger], *, requeue: bool) -> None:
        # The claim was made meanwhile, and on a busy machine that takes its time: this was no rest.
        self._rested_from = monotonic()
        subscription = self._subscription
        if subscription is None:
            return
        try:
            subscription.answer([trigger.receipt for trigger in triggers], requeue=requeue)
            # At once: with no room for more, the next fetch can be a second away.
            subscription.link.turn(0.0)
        except TransportDown as error:
            try:
                # It may be heard of here first, whenever there is something to settle.
                self._go_on(error, subscription.queues)
            except TransportDown:
                self._drop()

    def _open(self) -> Subscription:
        self._subscription = Subscription(
            opened(self._settings.rabbitmq_url.get_secret_value(), "receiver"), self._settings.broker_prefix
        )
        return self._subscription

    def _drop(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.link.abandon()


def _ask_again(settings: Settings, refusals: Refusals, queues: Sequence[str], *, consume: bool) -> None:
    """Ask for refused queues on a connection of its own; were it refused as a whole, that must not harm the other queues."""
    try:
        link = opened(settings.rabbitmq_url.get_secret_value(), "refused queues")
    except TransportDown:
        refusals.put_off(queues)
        return
    try:
        refusals.ask(queues, lambda queue: use(link, settings.broker_prefix, queue, consume=consume))
    except TransportDown:
        refusals.put_off(queues)
    finally:
        link.close()


class _Blocked(TransportDown):
    """The server takes no publishes at present; the connection is good."""
