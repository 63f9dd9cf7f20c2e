"""A wire to Postgres on which one commit can be lost: not delivered, delivered with its reply lost, held up, or swallowed."""

from __future__ import annotations

import socket
import threading
from typing import Literal

from psycopg.conninfo import conninfo_to_dict, make_conninfo

Fault = Literal["undelivered", "unanswered", "held", "swallowed"]

#: How long a held COMMIT is held, in seconds.
HELD = 1.0


class Wire:
    """Forwards TCP to a Postgres. A fault befalls the next COMMIT of one of the connections of ``job.transaction()``.

    undelivered  the connection ends before the COMMIT arrives
    unanswered   the COMMIT arrives, the connection ends before its reply
    held         the COMMIT arrives late
    swallowed    the COMMIT never arrives, and nobody notices: both ends stay connected
    """

    def __init__(self, conninfo: str) -> None:
        parts = conninfo_to_dict(conninfo)
        self._server = (str(parts.get("host") or "127.0.0.1"), int(parts.get("port") or 5432))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._fault: Fault | None = None
        self._closed = False
        self.struck = threading.Event()
        self._sockets: list[socket.socket] = []
        name = f"postgresql://{parts.get('user', 'postgres')}@127.0.0.1:{self._listener.getsockname()[1]}/{parts['dbname']}"
        self.url = name if not parts.get("password") else make_conninfo(name, password=str(parts["password"]))
        threading.Thread(target=self._accept, daemon=True).start()

    def strike(self, fault: Fault) -> None:
        """Let the fault befall the next COMMIT."""
        self.struck.clear()
        self._fault = fault

    def close(self) -> None:
        """End every connection."""
        self._closed = True
        for one in (self._listener, *self._sockets):
            _end(one)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
                host = self._server[0]
                server = (
                    _unix(f"{host}/.s.PGSQL.{self._server[1]}")
                    if host.startswith("/")
                    else socket.create_connection(self._server)
                )
            except OSError:
                return
            self._sockets += [client, server]
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        ours = False
        while data := _received(client):
            ours = ours or b"switchyard transaction\x00" in data
            fault = self._fault if ours and b"COMMIT" in data else None
            if fault is not None:
                self._fault = None
                if fault == "unanswered":
                    # Nothing comes back any more; the server reads the COMMIT all the same.
                    _quietly_shut(client)
                if fault == "held":
                    threading.Event().wait(HELD)
                if fault in ("unanswered", "held"):
                    server.sendall(data)
                self.struck.set()
                if fault in ("unanswered", "undelivered"):
                    break
                continue
            try:
                server.sendall(data)
            except OSError:
                break
        if not self._closed:
            _quietly_shut(server, socket.SHUT_WR)
            _end(client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    while data := _received(source):
        try:
            target.sendall(data)
        except OSError:
            break
    _end(target)
    _end(source)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65_536)
    except OSError:
        return b""


def _quietly_shut(one: socket.socket, how: int = socket.SHUT_WR) -> None:
    try:
        one.shutdown(how)
    except OSError:
        return


def _end(one: socket.socket) -> None:
    _quietly_shut(one, socket.SHUT_RDWR)
    one.close()


def _unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(path)
    return made
