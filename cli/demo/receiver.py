"""Somebody's server: takes the demo's webhook on a free loopback port, and verifies its signature as a real one would.

Nothing of Switchyard is used here, for a receiver of webhooks has nothing but the documentation.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request that arrived with a valid signature."""

    id: str
    event: str
    data: dict[str, Any]


class Receiver:
    """Listens while the ``with`` block lasts; ``deliveries`` are those with a valid signature, ``refused`` counts the others."""

    def __init__(self, secret: str) -> None:
        self.deliveries: list[Delivery] = []
        self.refused = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, secret.encode()))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="receiver", daemon=True)

    @property
    def address(self) -> str:
        """``host:port``, as OUTBOUND_ALLOW wants it."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(receiver: Receiver, secret: bytes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if _signed(secret, self.headers.get("X-Switchyard-Signature", ""), body):
                receiver.deliveries.append(Delivery(**json.loads(body)))
                self.send_response(204)
            else:
                receiver.refused += 1
                self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the demo's table is on the screen."""

    return Handler


def _signed(secret: bytes, header: str, body: bytes) -> bool:
    """Whether ``t=TIME,v1=DIGEST`` is the signature of this body; the time's age is not the demo's concern."""
    fields = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    expected = hmac.new(secret, fields.get("t", "").encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, fields.get("v1", ""))
