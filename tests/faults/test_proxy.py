"""The proxy does to a connection what a bad network would."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import DOWN, Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    # Closing alone would leave the thread in accept.
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    proxy = Proxy(echo)
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        yield client


def test_what_is_held_comes_later(client: socket.socket, proxy: Proxy):
    proxy.hold(DOWN)
    client.sendall(b"late")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(100)

    proxy.release()

    client.settimeout(10)
    assert client.recv(100) == b"late"


def test_the_reply_to_one_request_is_dropped_and_the_connection_reset(client: socket.socket, proxy: Proxy):
    proxy.drop_reply(b"COMMIT")

    client.sendall(b"other")
    assert client.recv(100) == b"other"
    client.sendall(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    assert proxy.dropped == 1


def test_a_reply_is_cut_in_the_middle(client: socket.socket, proxy: Proxy):
    proxy.cut_after(3)

    client.sendall(b"reply")

    # What had arrived before the reset may be read, or be lost with it.
    with pytest.raises(ConnectionResetError):
        assert [client.recv(100), client.recv(100)] == []


def test_a_reset_hits_every_connection_and_new_ones_are_made(client: socket.socket, proxy: Proxy):
    proxy.reset()

    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with socket.create_connection(("127.0.0.1", proxy.port), 10) as another:
        another.sendall(b"again")
        assert another.recv(100) == b"again"
