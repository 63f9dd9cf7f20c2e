"""What the keeper asks RabbitMQ: whether its queues are still those that the triggers went to, and which triggers are gone.

Epoch. RabbitMQ has no place for a name of a queue's life, but it has something that ends with it: an exchange that deletes itself when its
last binding goes. Each life of a queue gets one, ``<prefix>.<queue>.epoch.<name>``, durable, bound to the queue alone, and nothing is
published to it. It survives what the queue survives, a restart or a crash of the node, and goes when the queue is deleted or the vhost
wiped; whether it is there is one cheap question.

Lost triggers. A queue cannot be asked for its members, but it is first in, first out for each priority. So a mark is published among the
triggers, and where a receiver gets it, every trigger published before it has been received as well: rows from before it that are still
pending have none. A queue that nobody consumes gets no mark, since nothing can be learned from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TypeVar
from uuid import uuid4

from pika import BasicProperties

from brokers.amqp import Link, ask, ask_if_there, declare, opened, queue_name, refused_queue, waiting_in
from brokers.presence import Presence
from brokers.rabbitmq_presence import be_present
from brokers.transport import BANDS, Inspector, Mark, QueueRefused, Sent, TransportDown, band
from brokers.wire import encode_mark
from settings import Settings

T = TypeVar("T")

#: How much later than a trigger a mark must have been published to tell something about it, as a part of the lease (5 s of 30): rows are
#: written before they are published, on connections of their own.
SLACK = 1 / 6

#: Marks need not survive a restart: the next one tells as much.
_MARK_PROPERTIES = [BasicProperties(priority=BANDS - 1 - number) for number in range(BANDS)]


class RabbitmqInspector(Inspector):
    """One connection, opened when something is asked."""

    wants_marks = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = settings.broker_prefix
        self._link: Link | None = None

    def epoch(self, queue: str, known: str | None) -> str:
        """The name of this life of the queue; see ``Inspector.epoch``. Raises: TransportDown, QueueRefused."""
        try:
            return self._asking(lambda link: self._epoch(link, queue, known))
        except TransportDown as error:
            refused = refused_queue(error, self._prefix, [queue])
            if refused is None:
                raise
            raise refused from error

    def mark(self, marks: Sequence[Mark]) -> list[Mark]:
        """Publish marks to queues that somebody consumes; see ``Inspector.mark``. Raises: TransportDown."""
        return self._asking(lambda link: self._mark(link, marks))

    def lost(self, sent: Sequence[Sent], passed: Mapping[tuple[str, int], float]) -> list[int]:
        """Those that a mark from after them has passed; see ``Inspector.lost``."""
        reached = _reached(passed)
        slack = SLACK * self._settings.lease
        return [
            trigger.job_id for trigger in sent if trigger.at + slack < reached.get((trigger.queue, band(trigger.priority)), 0.0)
        ]

    def meet(self, own: Presence) -> list[Presence]:
        """By a queue of one message each; see ``Inspector.meet``. Raises: TransportDown."""
        return self._asking(lambda link: be_present(link, self._prefix, own))

    def close(self) -> None:
        """Close the connection, quietly."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _asking(self, question: Callable[[Link], T]) -> T:
        link = self._link
        if link is not None:
            try:
                return question(link)
            except TransportDown:
                # Nothing answers heartbeats between two calls, so the server may have closed the connection meanwhile.
                self.close()
            except BaseException:
                # Whatever became of the link, nothing is asked on it again.
                self.close()
                raise
        try:
            self._link = opened(self._settings.rabbitmq_url.get_secret_value(), "inspector")
            return question(self._link)
        except BaseException:
            self.close()
            raise

    def _epoch(self, link: Link, queue: str, known: str | None) -> str:
        if known is not None:
            name = self._exchange(queue, known)
            if ask_if_there(link, lambda channel, answer: channel.exchange_declare(name, passive=True, callback=answer)):
                return known
        new = uuid4().hex
        name, bound_to = self._exchange(queue, new), queue_name(self._prefix, queue)
        with link.writing() as channel:
            declare(channel, bound_to)
            channel.exchange_declare(name, "fanout", durable=True, auto_delete=True, internal=True, callback=_nothing)
        # Its reply comes last: then all three are there.
        ask(link, lambda channel, answer: channel.queue_bind(bound_to, name, callback=answer))
        return new

    def _mark(self, link: Link, marks: Sequence[Mark]) -> list[Mark]:
        under_way: list[Mark] = []
        for queue, group in groupby(sorted(marks), key=attrgetter("queue")):
            name = queue_name(self._prefix, queue)
            try:
                found = waiting_in(link, self._prefix, queue)
            except QueueRefused:
                # Nobody of ours consumes it either.
                continue
            if found is not None and found[1]:
                with link.writing() as channel:
                    for mark in group:
                        channel.basic_publish("", name, encode_mark(mark.at).encode(), _MARK_PROPERTIES[mark.band])
                        under_way.append(mark)
        link.turn(0.0)
        return under_way

    def _exchange(self, queue: str, name: str) -> str:
        return f"{self._prefix}.{queue}.epoch.{name}"


def _reached(passed: Mapping[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Up to when everything was received, per queue and band: a mark tells of its own band and of better ones, which go first."""
    reached: dict[tuple[str, int], float] = {}
    for (queue, number), at in passed.items():
        for better in range(number + 1):
            reached[queue, better] = max(at, reached.get((queue, better), 0.0))
    return reached


def _nothing(_frame: object) -> None:
    """What is done with a reply that says nothing new."""
