"""F10: a full disk under the ledger. Sends fail cleanly, and nothing that was accepted is lost when there is room again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.faults.rig import Rig, pause
from tests.faults.scenarios import Plan, scenario
from tests.faults.servers import Servers
from tests.rig.postgres import PrivatePostgres
from tests.rig.service import Unavailable

#: Of the file system that the ledger lives on, in MB: an empty cluster takes some 40, its log of writes up to 64.
SIZE = 192


class CrampedPostgres(PrivatePostgres):
    """A Postgres on a small file system of its own. Raises: Unavailable: only root may mount one."""

    def __init__(self) -> None:
        super().__init__(options=("min_wal_size=32MB", "max_wal_size=64MB"))
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(self.directory)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Unavailable(f"a full disk needs a small file system, and root to mount it: {done.stderr.strip()}")
        if self.user is not None:
            shutil.chown(self.directory, self.user)

    @property
    def ballast(self) -> Path:
        """What takes the room."""
        return self.directory / "ballast"

    def fill(self) -> None:
        """Take every byte that is left."""
        with self.ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                return

    def unmount(self) -> None:
        """Stop, and give the file system back."""
        self.stop()
        subprocess.run(["umount", "--lazy", str(self.directory)], capture_output=True, check=False)


class CrampedServers(Servers):
    """The servers of a run, but for the ledger's."""

    def __init__(self, others: Servers) -> None:
        super().__init__()
        self._others = others
        self._cramped = CrampedPostgres()

    @property
    def postgres(self) -> CrampedPostgres:
        """The ledger's server, on its small disk."""
        self._cramped.start()
        return self._cramped

    def named(self, name: str) -> Any:
        """The server that is a broker's."""
        return self.postgres if name == "postgres" else self._others.named(name)

    def mend(self) -> None:
        """Make room, and have every server up again."""
        self._cramped.ballast.unlink(missing_ok=True)
        self._cramped.start()
        self._others.mend()

    def close(self) -> None:
        """End what is not shared."""
        self._cramped.unmount()


@scenario("F10", "the disk of Postgres is full", unit="times full", full=30, servers=CrampedServers)
def fill_disk(rig: Rig, plan: Plan) -> None:
    """A ballast takes the last byte; Postgres may even end over it. Then there is room again, and it is started where it ended."""
    rig.staff(1)
    rig.stream()
    assert isinstance(rig.servers, CrampedServers)
    server = rig.servers.postgres
    for _ in plan:
        with rig.faulty("disk full"):
            server.fill()
            before = rig.count("info")
            rig.until(lambda before=before: rig.count("info") > before, 90, "a send is told that the disk is full")
            pause(1.0)
            server.ballast.unlink()
            if not server.ready():
                server.stop(10.0)
            server.start()
        rig.flowing(10)
