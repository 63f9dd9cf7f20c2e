"""PgBouncer for the tests: a private one in transaction mode, in front of whatever Postgres a run has."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.rig.ports import listening
from tests.rig.processes import Child, base_environment, unprivileged_user
from tests.rig.service import PrivateServer, Unavailable

#: What to do where there is none; the reason of the tests that are skipped then.
ADVICE = "these tests need the pgbouncer program and it is not on this machine: `apt-get install pgbouncer` (or brew, or dnf)"


class PrivatePgBouncer(PrivateServer):
    """A PgBouncer with the defaults of its version but for the mode; as root it runs as an unprivileged user, for it refuses root.

    Parameters:
        postgres: the URL of the server behind it; whatever database a client names is looked for there.
        pool: most server connections per database.
        config: more lines for the section ``[pgbouncer]``; the last of two with one name counts.
    """

    name = "pgbouncer"
    start_timeout = 20.0
    # SIGTERM waits for clients in newer versions.
    stop_signal = signal.SIGQUIT

    def __init__(self, postgres: str, *, pool: int = 20, config: tuple[str, ...] = ()) -> None:
        found = find_binary()
        if found is None:
            raise Unavailable(ADVICE)
        self.binary = found
        self.pool = pool
        self.config = config
        with psycopg.connect(postgres, connect_timeout=10) as connection:
            info = connection.info
            self._behind = {"host": info.host, "port": str(info.port), "user": info.user, "password": info.password}
        super().__init__(user=unprivileged_user())
        #: The configuration; a test may write another before the start.
        self.ini = self._ini()

    @property
    def url(self) -> str:
        """PgBouncer's own console."""
        return self.through("/pgbouncer")

    def through(self, url: str) -> str:
        """The URL that leads to the same database as another one, by way of PgBouncer."""
        return f"postgresql://{quote(self._behind['user'])}@127.0.0.1:{self.port}/{url.rpartition('/')[2]}"

    def ready(self) -> bool:
        return listening(self.port)

    def console(self, command: str) -> list[dict[str, object]]:
        """What the console answers to SHOW POOLS, SHOW VERSION and the like, a dictionary a row."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            # The console knows the simple protocol only, and psycopg's client-side binding speaks that.
            cursor = psycopg.ClientCursor(connection).execute(command.encode())
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _ini(self) -> str:
        target = " ".join(f"{name}='{_quoted(value)}'" for name, value in self._behind.items() if value)
        lines = [
            "[databases]",
            f"* = {target}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            # Whoever may connect here is who is named above, so it asks nobody.
            "auth_type = any",
            f"admin_users = {self._behind['user']}",
            "pool_mode = transaction",
            f"default_pool_size = {self.pool}",
            *self.config,
        ]
        return "\n".join(lines) + "\n"

    def _spawn(self) -> Child:
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text(self.ini)
        if self.user is not None:
            shutil.chown(configuration, self.user)
        return Child(
            [str(self.binary), str(configuration)], log=self.log, env=base_environment(), cwd=self.directory, user=self.user
        )


def find_binary() -> Path | None:
    """The machine's pgbouncer program, or None. Debian puts it where only root's PATH leads."""
    candidates = [Path(found) for found in [shutil.which("pgbouncer")] if found]
    return next((path for path in [*candidates, Path("/usr/sbin/pgbouncer")] if path.exists()), None)


def _quoted(value: str) -> str:
    return value.replace("'", "''")
