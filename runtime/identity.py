"""Who this process is: the name under which it claims jobs, and the version that it runs."""

from __future__ import annotations

import os
import secrets
import socket
from importlib.metadata import PackageNotFoundError, version


def worker_id() -> str:
    """A name for this process that no other ever has: host, pid, and chance."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def own_version() -> str:
    """Which version of Switchyard this is."""
    try:
        return version("switchyard")
    except PackageNotFoundError:
        # A checkout on the path that was never installed.
        return "unknown (not installed)"
