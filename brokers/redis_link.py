"""One connection to Redis, and the scripts that are run on it.

Nothing is repeated behind the caller's back: a script whose reply was lost may have run, and is reported as such. Redis away, or a command
that it refuses: ``TransportDown``, and the next command connects anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from brokers.transport import SOCKET_TIMEOUT, TransportDown
from errors import SettingsError
from settings import Settings

_NAME: Final = "redis"

#: What one call gives a script: its keys, and its arguments.
Call = tuple[Sequence[str], Sequence[Any]]


class Script:
    """A Lua script beside this module, called by its digest."""

    def __init__(self, file: str) -> None:
        self.source = (Path(__file__).parent / "lua" / file).read_bytes()
        # Redis names scripts by SHA-1; nothing secret hangs on it.
        self.digest = sha1(self.source, usedforsecurity=False).hexdigest()


class Link:
    """One connection to Redis, used by one thread: connects by itself, repeats nothing, answers errors with TransportDown."""

    def __init__(self, settings: Settings) -> None:
        try:
            client: dict[str, Any] = parse_url(settings.redis_url.get_secret_value())  # type: ignore[no-untyped-call]
        except ValueError:
            # The cause is left out, because it quotes the URL, which may hold a password.
            raise SettingsError("REDIS_URL", "write redis://user:password@host:port/database") from None
        kind = client.pop("connection_class", Connection)
        # What is meant for a pool of connections, which this is not.
        for name in ("max_connections", "timeout"):
            client.pop(name, None)
        # RESP2 needs no HELLO and is what every Redis and every release of the driver speaks alike.
        client |= {
            "protocol": 2,
            "decode_responses": False,
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            # A repeated script would have run twice: what becomes of a lost reply is for the caller to say.
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        #: Where it leads, for people.
        self.place = str(
            client.get("path") or f"{client.get('host', 'localhost')}:{client.get('port', 6379)}/{client.get('db', 0)}"
        )
        try:
            self._connection = kind(**client)
        except TypeError:
            raise SettingsError("REDIS_URL", "what follows the ? is no parameter of a connection to Redis") from None
        self._used = False

    def run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send the commands in one write and read all replies; a refused command's reply is its ResponseError.

        Raises: TransportDown: the connection broke, so that it is unknown which of the commands were executed.
        """
        connection = self._connection
        self._drop_if_closed()
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            replies = [self._read() for _ in commands]
            self._used = True
            return replies
        except (RedisError, OSError) as error:
            self.close()
            raise TransportDown(_NAME, str(error) or type(error).__name__) from error
        except BaseException:
            # An exception from outside (a signal) between request and reply: the next reader must not get this reply.
            self.close()
            raise

    def one(self, command: tuple[Any, ...]) -> Any:
        """Run one command. Raises: TransportDown: also when it was refused."""
        return self.checked(self.run([command])[0])

    def call(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script once per call, as ``run`` does. After a restart Redis does not know it: then the source goes along."""
        replies = self.run([("EVALSHA", script.digest, len(keys), *keys, *arguments) for keys, arguments in calls])
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = self.run([("EVAL", script.source, len(calls[at][0]), *calls[at][0], *calls[at][1]) for at in unknown])
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        return replies

    def checked(self, reply: Any) -> Any:
        """The reply, unless it is an error. Raises: TransportDown: and reconnects next time, perhaps to a new primary."""
        if isinstance(reply, ResponseError):
            self.close()
            raise TransportDown(_NAME, str(reply)) from reply
        return reply

    def close(self) -> None:
        """Disconnect, quietly; the next command connects anew."""
        self._connection.disconnect()
        self._used = False

    def _drop_if_closed(self) -> None:
        """Notice a restart, or Redis' own idle time-out, before the commands are sent and their fate is unknown."""
        if self._used:
            try:
                closed = self._connection.can_read()
            except (RedisError, OSError):
                closed = True
            if closed:
                self.close()

    def _read(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error
