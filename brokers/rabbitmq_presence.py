"""Who watches over a prefix in RabbitMQ: a queue that holds one message for each ledger's keeper, which expires when it is not renewed.

    <prefix>.ledgers    classic, durable, gone after an hour in which nobody looked; a message is a presence (brokers.presence)

It is read by taking everything and putting it back. Two that look at once may therefore miss each other's for a moment, and nothing may be
concluded from one look that found nothing. The arguments of a queue can never be changed, so they are fixed here.
"""

from __future__ import annotations

from time import sleep
from typing import Any, Final

from pika import BasicProperties
from pika.spec import Basic

from brokers.amqp import Link, ask, ask_if_there, opened
from brokers.presence import Presence, decode, encode

#: The most that are read, and kept: more than any operator has systems, and few enough for a sweep.
_MOST: Final = 50
#: For how long somebody else's look may hide what is there, in seconds, and how often to look for one that should be there.
_HIDDEN: Final = 0.05
_LOOKS: Final = 3
_ARGUMENTS: Final = {"x-queue-type": "classic", "x-expires": 3_600_000, "x-max-length": _MOST, "x-overflow": "drop-head"}


def presence_queue(prefix: str) -> str:
    """The name of the queue."""
    return f"{prefix}.ledgers"


def be_present(link: Link, prefix: str, own: Presence) -> list[Presence]:
    """Say that a ledger's keeper is here. Returns what the others said. Raises: TransportDown."""
    name = presence_queue(prefix)
    ask(link, lambda channel, answer: channel.queue_declare(name, durable=True, arguments=_ARGUMENTS, callback=answer))
    found = _take_all(link, name)
    others = {tag: presence for tag, presence in found.items() if presence is not None and presence.keeper != own.keeper}
    # A duration in milliseconds, as text.
    properties = BasicProperties(content_type="application/json", expiration=str(round(own.seconds * 1000)))
    with link.writing() as channel:
        # What was said before, and what is nobody's.
        for tag in found.keys() - others.keys():
            channel.basic_ack(tag)
        for tag in others:
            channel.basic_nack(tag, requeue=True)
        channel.basic_publish("", name, encode(own).encode(), properties)
    # Its reply comes last: until then the others are hidden from each other.
    ask(link, lambda channel, answer: channel.queue_declare(name, passive=True, callback=answer))
    return list(others.values())


def find_presence(url: str, prefix: str, keeper: str) -> Presence | None:
    """What the keeper of this name says; None: nothing, in several looks. Raises: TransportDown."""
    name = presence_queue(prefix)
    link = opened(url, "presence")
    try:
        for look in range(_LOOKS):
            if look:
                # This puts back what was taken, too.
                link.renew_channel()
                sleep(_HIDDEN)
            if ask_if_there(link, lambda channel, answer: channel.queue_declare(name, passive=True, callback=answer)) is None:
                return None
            for presence in _take_all(link, name).values():
                if presence is not None and presence.keeper == keeper:
                    return presence
        return None
    finally:
        link.close()


def _take_all(link: Link, name: str) -> dict[int, Presence | None]:
    """Everything in the queue, by delivery tag, unsettled."""
    found: dict[int, Presence | None] = {}
    replies: list[tuple[int, bytes] | None] = []

    def on_message(_channel: object, method: Any, _properties: object, body: bytes) -> None:
        replies.append((method.delivery_tag, body))

    def on_empty(_frame: object) -> None:
        replies.append(None)

    channel = link.channel
    channel.add_callback(on_empty, [Basic.GetEmpty], one_shot=False)
    try:
        while len(found) < _MOST:
            with link.writing():
                channel.basic_get(name, on_message)
            link.turn_until(lambda: bool(replies), "no answer")
            reply = replies.pop()
            if reply is None:
                break
            found[reply[0]] = decode(reply[1])
    finally:
        channel.callbacks.remove(channel.channel_number, Basic.GetEmpty, on_empty)
    return found
