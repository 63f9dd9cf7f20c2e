"""What the embedded servers share: a port that stays the same, a password of their own, programs that come in packages.

They listen on the loopback only, but so does everybody else's browser and shell on a shared machine: hence the password, which
is made on the first start and readable by the owner alone.
"""

from __future__ import annotations

import os
import secrets
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from zlib import crc32

from cli.processes import StackError

#: Ports below the range that kernels give to outgoing connections, so that they are free again after a restart.
_LOWEST, _SPAN = 20_000, 10_000
#: How many ports are tried, from the preferred one upwards.
_TRIES: Final = 200


def stable_port(folder: Path, name: str) -> int:
    """A free loopback port, the same for the same folder and name unless somebody else has taken it."""
    first = crc32(f"{folder} {name}".encode()) % _SPAN
    for offset in range(_TRIES):
        port = _LOWEST + (first + offset) % _SPAN
        with socket.socket() as probe:
            # As servers do: connections of the last run that are still being closed do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise StackError(f"no free port for {name} between {_LOWEST} and {_LOWEST + _SPAN}")


def own_prefix(folder: Path) -> str:
    """A BROKER_PREFIX for a ledger that lives in a folder: its triggers must not reach workers of another ledger."""
    return f"switchyard-{crc32(str(folder).encode()):08x}"


def password(path: Path) -> str:
    """The password in a file, made on the first call."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        found = secrets.token_urlsafe(24)
    write_private(path, found + "\n")
    return found


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def package_folder(name: str) -> Path | None:
    """Where a package is installed; None: it is not. It is not imported: some do things on import."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None
