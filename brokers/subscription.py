"""What a RabbitMQ receiver consumes on one connection: how much RabbitMQ may push, what was pushed, what is not settled yet.

How much may be pushed is the *level*, a power of two that follows what is asked for: up at once, down when a whole calm period
never needed a quarter of it, and to 0 when nothing was wanted at all. At 0 nothing is consumed and nothing is held: what was
pushed goes back, for other processes to take. A fixed number cannot do: 200 hoards the triggers of long jobs in one process
while others idle, 16 halves the rate of short ones.

The level is shared out evenly over the queues. A queue that fills its share again and again while the caller still has room gets
the whole level. RabbitMQ limits per consumer (its limit per channel is refused from 4.3 on), so other shares mean other consumers.
They get a new channel: closing the old one takes everything back at once, while consumers that are cancelled one by one are pushed
again what they send back.

What was pushed while there was no room is exchanged before it is taken, where RabbitMQ may hold something better back: for a consumer
that has its share RabbitMQ keeps the rest, whatever its priority. Put back, all of it stands in line again, and the best comes first.

    pushed ──► buffer ──take──► caller ──answer──► acknowledged, or back in the queue
       └──────────────── unsettled ─────────────┘

A delivery tag is good on its own channel only. Those of older ones are recognised and ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from time import monotonic
from typing import Any

from brokers.amqp import Link, declare, queue_name
from brokers.transport import BANDS, Fetched, Mark, Trigger
from brokers.wire import decode, decode_mark

#: How long less must be wanted before less is held, in seconds; and this much more per queue, since each costs a new consumer.
_CALM, _CALM_PER_QUEUE = 0.5, 0.005
#: Less is held when no more than this part of the level was wanted.
_SHRINK_BELOW = 1 / 4
#: How many takes in a row must have emptied a full share, with room for more, before a queue gets the whole level: a queue that
#: had a few triggers only is not worth a new consumer.
_FULL_SHARES = 3
#: Receipts are delivery tags plus this much per channel of this process, so that no tag is taken for one of another channel.
_TAGS_PER_CHANNEL = 1 << 40
_channels = count(1)


class Level:
    """How many triggers may be held."""

    def __init__(self) -> None:
        self.value = 0
        self._most = 0
        self._since = monotonic()

    def follow(self, limit: int, calm: float) -> int:
        """Take note of what is asked for now; ``calm`` is the period in seconds. Returns the level."""
        now = monotonic()
        self._most = max(self._most, limit)
        if limit > self.value:
            self.value = _power_of_two(limit)
            self._since, self._most = now, limit
        elif now - self._since >= calm:
            if self._most <= self.value * _SHRINK_BELOW:
                self.value = _power_of_two(self._most)
            self._since, self._most = now, limit
        return self.value


class Subscription:
    """The consumers of one connection and what they were sent. Used by one thread."""

    def __init__(self, link: Link, prefix: str) -> None:
        self.link = link
        self._prefix = prefix
        self._level = Level()
        # Whose turn it is: to be consumed first, to be taken from first.
        self._turn = 0
        self._queues: frozenset[str] = frozenset()
        self._share = 0
        # Consumers' names are never used again, so that nothing sent to one of an older channel is taken in.
        self._names = count(1)
        self._begin()

    @property
    def queues(self) -> list[str]:
        """The queues that it consumes, or wants to."""
        return list(self._queues)

    def restart(self) -> None:
        """Go on with a new channel after RabbitMQ closed the old one; all that was pushed went back. Raises: TransportDown."""
        self.link.renew_channel()
        self._begin()
        self._queues = frozenset()

    def _begin(self) -> None:
        """Start with the link's channel as it is: new."""
        self._first_receipt = next(_channels) * _TAGS_PER_CHANNEL
        # The consumer of each queue, how much it may be sent, and how often in a row it was sent all of that.
        self._consumers: dict[str, str] = {}
        self._shares: dict[str, int] = {}
        self._full_shares: Counter[str] = Counter()
        self._queue_of: dict[str, str] = {}
        self._qos = 0
        # Anew on each channel: pika holds a declaration back while it waits for a reply, and drops it with the channel.
        self._declared: set[str] = set()
        # What was pushed and not taken, per queue: (band, delivery tag, body), sorted when taken from.
        self._buffer: dict[str, list[tuple[int, int, bytes]]] = {}
        # Every delivery tag that RabbitMQ waits for; none is below _floor.
        self._unsettled: set[int] = set()
        self._floor = 1
        self._last = 0
        self.link.channel.add_on_cancel_callback(self._on_cancelled)

    def follow(self, queues: Sequence[str], limit: int) -> None:
        """Consume these queues, as much as ``limit`` suggests. Raises: TransportDown."""
        level = self._level.follow(limit, _CALM + _CALM_PER_QUEUE * len(queues))
        wanted = frozenset(queues) if level else frozenset()
        share = _share(level, len(wanted))
        changed = wanted != self._queues or share != self._share or max(self._shares.values(), default=0) > max(level, share)
        # What the caller has not answered yet must not be taken back: then it stays as it is until the next call.
        if changed and len(self._unsettled) == self._buffered():
            if self._consumers:
                self.link.renew_channel()
                self._begin()
            self._queues, self._share = wanted, share
        if len(self._consumers) < len(self._queues):
            # Another queue each time: with room for one, the queue consumed first would have it every time.
            self._turn += 1
            with self.link.writing():
                for queue in _rotated(sorted(self._queues - self._consumers.keys()), self._turn):
                    self._consume(queue, self._share)

    def take(self, limit: int) -> Fetched:
        """Hand out up to ``limit`` of what was pushed, fairly over the queues, best priority first. Raises: TransportDown."""
        fetched = Fetched()
        waiting = {queue: len(buffer) for queue, buffer in self._buffer.items() if buffer}
        if limit <= 0 or not waiting:
            return fetched
        self._turn += 1
        turns = _rotated(list(waiting), self._turn)
        share = -(-limit // len(turns))
        foreign: list[object] = []
        # An even share for each first, and what the others left over after that.
        for most in (share, limit):
            for queue in turns:
                room = limit - len(fetched.triggers)
                if room > 0:
                    self._take_from(queue, min(most, room), fetched, foreign)
        if foreign:
            self.answer(foreign, requeue=False)
        self._rebalance(waiting, limit - len(fetched.triggers))
        return fetched

    def exchange(self) -> bool:
        """Put back what was pushed, for RabbitMQ to push the best, where a full consumer may lack it. Returns whether anything was.

        Raises:
            TransportDown: the connection is lost.
        """
        # A consumer that is not full was pushed everything that its queue holds: the buffer's order is the whole truth.
        full = any(len(self._buffer[queue]) >= share for queue, share in self._shares.items())
        if not full or len(self._unsettled) > self._buffered():
            return False
        # All at once: put back one by one, they are pushed again one by one, and out of order.
        with self.link.writing() as channel:
            channel.basic_nack(max(self._unsettled), multiple=True, requeue=True)
        self._unsettled.clear()
        for buffer in self._buffer.values():
            buffer.clear()
        return True

    def answer(self, receipts: Sequence[object], *, requeue: bool) -> None:
        """Acknowledge deliveries, or put them back; unknown receipts are ignored. Raises: TransportDown."""
        tags = [tag for receipt in receipts if (tag := self._forget(receipt))]
        if not tags:
            return
        with self.link.writing() as channel:
            if requeue:
                for tag in tags:
                    channel.basic_nack(tag, requeue=True)
                return
            self._advance()
            # One frame for all up to the first that is still held; RabbitMQ insists that the tag it names is not settled yet.
            together = [tag for tag in tags if tag < self._floor]
            if together:
                channel.basic_ack(max(together), multiple=True)
            for tag in tags:
                if tag >= self._floor:
                    channel.basic_ack(tag)

    def _take_from(self, queue: str, limit: int, fetched: Fetched, foreign: list[object]) -> None:
        buffer = self._buffer[queue]
        # By band, then by arrival: nearly always sorted already, which costs next to nothing.
        buffer.sort()
        taken, self._buffer[queue] = buffer[:limit], buffer[limit:]
        first = self._first_receipt
        for band, tag, body in taken:
            read = decode(body)
            if read is None:
                foreign.append(first + tag)
                marked_at = decode_mark(body)
                if marked_at is None:
                    fetched.undecodable.append(body)
                else:
                    fetched.marks.append(Mark(queue, band, marked_at))
            else:
                fetched.triggers.append(Trigger(read[0], queue, read[1], first + tag))

    def _rebalance(self, waiting: dict[str, int], room: int) -> None:
        """Give the whole level to queues that could have filled the caller's room; take it back when too much piles up."""
        level = self._level.value
        if self._share >= level:
            return
        changed = {}
        if room > 0:
            # All that waited has been taken.
            full = {queue for queue, share in self._shares.items() if share < level and waiting.get(queue, 0) >= share}
            self._full_shares = Counter({queue: self._full_shares[queue] + 1 for queue in full})
            changed = {queue: level for queue, times in self._full_shares.items() if times >= _FULL_SHARES}
        elif self._buffered() > 2 * level:
            changed = {queue: self._share for queue, share in self._shares.items() if share > self._share}
        if changed:
            with self.link.writing() as channel:
                for queue, share in changed.items():
                    consumer = self._consumers.pop(queue)
                    del self._queue_of[consumer]
                    # With a reply, although nobody reads it: pika forgets a consumer only then.
                    channel.basic_cancel(consumer, callback=_nothing)
                    self._consume(queue, share)

    def _consume(self, queue: str, share: int) -> None:
        channel = self.link.channel
        name = queue_name(self._prefix, queue)
        if queue not in self._declared:
            declare(channel, name)
            self._declared.add(queue)
        if share != self._qos:
            channel.basic_qos(prefetch_count=share)
            self._qos = share
        consumer = f"c{next(self._names)}"
        self._consumers[queue], self._shares[queue], self._queue_of[consumer] = consumer, share, queue
        self._buffer.setdefault(queue, [])
        channel.basic_consume(name, self._on_message, consumer_tag=consumer)

    def _buffered(self) -> int:
        return sum(map(len, self._buffer.values()))

    def _forget(self, receipt: object) -> int:
        """The delivery tag of a receipt that is not settled yet, which it is from now on; 0 for any other."""
        if not isinstance(receipt, int):
            return 0
        tag = receipt - self._first_receipt
        if tag not in self._unsettled:
            return 0
        self._unsettled.remove(tag)
        return tag

    def _advance(self) -> None:
        while self._floor <= self._last and self._floor not in self._unsettled:
            self._floor += 1

    def _on_message(self, _channel: object, method: Any, properties: Any, body: bytes) -> None:
        queue = self._queue_of.get(method.consumer_tag)
        if queue is None:
            return
        tag = self._last = method.delivery_tag
        self._unsettled.add(tag)
        self._buffer[queue].append((BANDS - 1 - (properties.priority or 0), tag, body))

    def _on_cancelled(self, frame: Any) -> None:
        """RabbitMQ ended a consumer: its queue was deleted. The next ``follow`` declares the queue and consumes it anew."""
        queue = self._queue_of.pop(frame.method.consumer_tag, None)
        if queue is not None:
            del self._consumers[queue], self._shares[queue]
            self._declared.discard(queue)


def _nothing(_frame: object) -> None:
    """What is done with a reply that says nothing new."""


def _rotated(queues: list[str], turn: int) -> list[str]:
    at = turn % len(queues)
    return queues[at:] + queues[:at]


def _share(level: int, queues: int) -> int:
    return max(1, level // queues) if queues else 0


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number; 0 for 0."""
    return 1 << (number - 1).bit_length() if number > 0 else 0
