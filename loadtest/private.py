"""Servers of a load test's own, for those that wipe, flush or switch brokers: private ports, private data, gone at the end.

They are the test rig's, with one difference: a commit waits for the disk, as it does where figures matter. The programs of Postgres, Redis
and RabbitMQ have to be on the machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.rig.postgres import PrivatePostgres
from tests.rig.processes import GUARD
from tests.rig.rabbitmq import PrivateRabbit
from tests.rig.redis import PrivateRedis
from tests.rig.service import PrivateServer

_MAKERS: Final[dict[str, Callable[[], PrivateServer]]] = {
    "database_url": lambda: PrivatePostgres(options=("fsync=on",)),
    "redis_url": PrivateRedis,
    "rabbitmq_url": PrivateRabbit,
}


class PrivateServers:
    """The servers, by the setting that names their URL."""

    def __init__(self, started: dict[str, PrivateServer]) -> None:
        self._started = started
        #: Settings that lead to them.
        self.settings: dict[str, Any] = {name: server.url for name, server in started.items()}

    def wipe_vhost(self) -> None:
        """Remove RabbitMQ's virtual host with all that is in it, and make it anew, empty."""
        server = self._started["rabbitmq_url"]
        assert isinstance(server, PrivateRabbit)
        server.ctl("delete_vhost", "/")
        server.ctl("add_vhost", "/")
        server.ctl("set_permissions", "guest", ".*", ".*", ".*")


@contextmanager
def private_servers(*brokers: str) -> Iterator[PrivateServers]:
    """Postgres, and what these brokers need beside it."""
    wanted = ["database_url", *(f"{broker}_url" for broker in sorted(set(brokers) - {"postgres"}))]
    started: dict[str, PrivateServer] = {}
    try:
        for name in wanted:
            started[name] = _MAKERS[name]()
            started[name].start()
        yield PrivateServers(started)
    finally:
        for server in started.values():
            server.stop()
            shutil.rmtree(server.directory, ignore_errors=True)
        GUARD.dismiss()
