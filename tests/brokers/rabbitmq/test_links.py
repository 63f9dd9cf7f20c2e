"""Links that failed in a way that nobody thought of are not used again."""

from __future__ import annotations

import pytest

from brokers.amqp import opened
from brokers.rabbitmq_inspector import RabbitmqInspector
from brokers.transport import TransportDown
from settings import Settings


def test_a_connection_that_goes_with_its_channel_is_not_forgiven(rabbit_settings: Settings) -> None:
    # A vhost that is wiped closes the channel for what it no longer finds, and at once the connection.
    link = opened(rabbit_settings.rabbitmq_url.get_secret_value(), "test")
    try:
        with link.writing() as channel:
            channel.exchange_declare("nobody", passive=True)
        with pytest.raises(TransportDown, match="404"):
            link.turn_until(lambda: False, "the channel is closed")
        link._wire.cut()
        link._wind_up(10.0)
        assert link._wire.is_closed

        with pytest.raises(TransportDown):
            link.renew_channel()

        with pytest.raises(TransportDown):
            link.turn(0.0)
        with pytest.raises(TransportDown), link.writing():
            pass
    finally:
        link.abandon()


def test_an_inspector_asks_nothing_more_on_a_link_that_failed_unforeseen(rabbit_settings: Settings) -> None:
    inspector = RabbitmqInspector(rabbit_settings)
    try:
        epoch = inspector.epoch("default", None)
        for link in (inspector._link, None):
            inspector._link = link
            with pytest.raises(ZeroDivisionError):
                inspector._asking(lambda _: 1 / 0)
            assert inspector._link is None

        assert inspector.epoch("default", epoch) == epoch
    finally:
        inspector.close()
