"""Dead letters in RabbitMQ: a durable queue beside the triggers', for whoever watches the broker; nobody here consumes it.

    <prefix>.dead    the latest 10,000, for a week at most; message_id is "<job id>:<generation>"

The arguments of a queue can never be changed, so they are fixed here. What is read from it and not put back is gone from it, and nothing
else: the ledger has the dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pika import BasicProperties

from brokers.amqp import Link
from brokers.transport import TransportDown
from ledger.dead import DeadNotice

#: How many are kept, and for how long, in milliseconds.
KEPT: Final = 10_000
KEPT_MS: Final = 7 * 86_400_000
ARGUMENTS: Final = {"x-max-length": KEPT, "x-overflow": "drop-head", "x-message-ttl": KEPT_MS}

_NAME: Final = "rabbitmq"


def dead_queue(prefix: str) -> str:
    """The name of the dead letters' queue."""
    return f"{prefix}.dead"


def put_dead(link: Link, prefix: str, notices: Sequence[DeadNotice]) -> None:
    """Publish them on a new link, and wait until the server has them all. Raises: TransportDown."""
    if not notices:
        return
    name = dead_queue(prefix)
    # Delivery tags count the publishes of a channel from 1.
    unconfirmed = set(range(1, len(notices) + 1))
    refused = False

    def on_confirm(frame: Any) -> None:
        nonlocal refused
        refused = refused or frame.method.NAME == "Basic.Nack"
        tag = frame.method.delivery_tag
        unconfirmed.difference_update(range(1, tag + 1) if frame.method.multiple else (tag,))

    with link.writing() as channel:
        channel.confirm_delivery(on_confirm)
        channel.queue_declare(name, durable=True, arguments=ARGUMENTS)
        for notice in notices:
            properties = BasicProperties(
                delivery_mode=2, content_type="application/json", message_id=notice.key, timestamp=int(notice.died_at.timestamp())
            )
            channel.basic_publish("", name, notice.text.encode(), properties)
    link.turn_until(lambda: refused or not unconfirmed or link.blocked is not None, "no confirm")
    if refused or unconfirmed:
        raise TransportDown(_NAME, "dead letters were refused" if refused else f"publishing is blocked: {link.blocked}")
