"""The doorbell's connection, on which nothing is said for hours: a firewall that forgets it must not leave it deaf for ever."""

from __future__ import annotations

import socket

from brokers.postgres import PostgresTransport


def test_a_doorbell_asks_whether_its_server_is_still_there(settings):
    doorbell = PostgresTransport(settings).doorbell()
    try:
        doorbell.wait(0.5)
        connection = doorbell._link._connection
        assert connection is not None
        with socket.socket(fileno=connection.fileno()) as wire:
            asked = [
                wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
                for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT")
            ]
            wire.detach()
    finally:
        doorbell.close()

    assert asked == [10, 5, 3]
