"""A TCP proxy between one process and one server, whose faults can be turned on and off while bytes flow.

    delay      every chunk waits so many seconds (and up to as many again, by chance)
    hold       one direction, or both: nothing passes until ``release``, as when packets are dropped and TCP sends them again later
    drop_reply a request that holds certain bytes reaches the server; its reply does not come back, and the connection is reset
    reset      RST on every connection
    cut_after  after so many more bytes from the server, in the middle of whatever it says, RST
    target     where new connections lead; changing it is a failover

One asyncio loop in a thread of its own serves all proxies of a run.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

UP, DOWN = "up", "down"


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="proxies", daemon=True).start()
    return loop


class _Pair:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        #: Set by a request whose reply must not come back.
        self.swallow = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None:
                with suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """A listening port that leads to another port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.dropped = 0
        self._open: dict[str, asyncio.Event] = {}
        self._drop: bytes | None = None
        self._cut_after: int | None = None
        self._pairs: set[_Pair] = set()
        self._server, self.port = self._in_loop(self._listen)

    def hold(self, *directions: str) -> None:
        """Let nothing pass in these directions (default: both)."""
        self._soon(lambda: [self._open[direction].clear() for direction in directions or (UP, DOWN)])

    def release(self) -> None:
        """Let everything pass, also what was held."""
        self.delay = 0.0
        self._soon(lambda: [event.set() for event in self._open.values()])

    def drop_reply(self, request: bytes) -> None:
        """Swallow the reply to the next request that holds these bytes; ``dropped`` counts those that were."""
        self._drop = request

    def cut_after(self, count: int) -> None:
        """Reset a connection once so many more bytes have come from the server."""
        self._cut_after = count

    def reset(self) -> None:
        """RST on every connection."""
        self._soon(lambda: [pair.reset() for pair in list(self._pairs)])

    def close(self) -> None:
        """Stop listening and end every connection."""
        self.release()
        self.reset()
        self._soon(self._server.close)

    def _soon(self, action: Callable[[], Any]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        _loop().call_soon_threadsafe(act)
        done.wait(5)

    def _in_loop(self, coroutine: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine(), _loop()).result(10)

    async def _listen(self) -> tuple[asyncio.Server, int]:
        self._open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        for event in self._open.values():
            event.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A partition also keeps connections from being made.
        await self._open[UP].wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, far_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(UP, reader, far_writer, pair), self._pump(DOWN, far_reader, writer, pair))
        finally:
            self._pairs.discard(pair)
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while chunk := await reader.read(65_536):
                await self._open[direction].wait()
                if self.delay:
                    await asyncio.sleep(self.delay * random.uniform(1, 2))
                if direction == UP:
                    if self._drop is not None and self._drop in chunk:
                        self._drop, pair.swallow = None, True
                elif pair.swallow:
                    self.dropped += 1
                    pair.reset()
                    return
                elif self._cut_after is not None:
                    self._cut_after -= len(chunk)
                    if self._cut_after <= 0:
                        writer.write(chunk[: max(0, len(chunk) + self._cut_after)])
                        self._cut_after = None
                        self.dropped += 1
                        await asyncio.sleep(0.01)
                        pair.reset()
                        return
                writer.write(chunk)
                await writer.drain()
        if not writer.transport.is_closing():
            writer.transport.close()
