"""The private servers of a run: on ports of their own, with data of their own, for the scenarios to kill, freeze, flush and fill."""

from __future__ import annotations

import shutil
from typing import Any

import migrations
from tests.rig.postgres import Databases, PrivatePostgres
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.redis import PrivateRedis
from tests.rig.service import PrivateServer


class Servers:
    """The three servers of a run, each started when it is first asked for."""

    def __init__(self) -> None:
        self._started: dict[str, PrivateServer] = {}
        self._databases: Databases | None = None

    @property
    def postgres(self) -> PrivatePostgres:
        """The ledger's server."""
        found: PrivatePostgres = self._get(PrivatePostgres)
        return found

    @property
    def redis(self) -> PrivateRedis:
        """A Redis that forgets everything when it stops."""
        found: PrivateRedis = self._get(PrivateRedis)
        return found

    @property
    def rabbitmq(self) -> PrivateRabbit:
        """A RabbitMQ node."""
        found: PrivateRabbit = self._get(PrivateRabbit)
        return found

    @property
    def databases(self) -> Databases:
        """Makes migrated databases."""
        if self._databases is None:
            self._databases = Databases(self.postgres.url, migrations.upgrade)
        return self._databases

    def named(self, name: str) -> Any:
        """The server that is a broker's."""
        return getattr(self, name)

    def _get(self, kind: type[Any]) -> Any:
        if kind.name not in self._started:
            server = kind()
            self._started[kind.name] = server
            server.start()
        return self._started[kind.name]

    def mend(self) -> None:
        """Have every server up again, whatever the last scenario left."""
        for server in self._started.values():
            if server.child is not None:
                server.thaw()
            server.start()

    def close(self) -> None:
        """Stop them all and remove their data."""
        for server in self._started.values():
            server.stop()
            shutil.rmtree(server.directory, ignore_errors=True)
