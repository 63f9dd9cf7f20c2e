"""Who this process is: the name under which it claims jobs."""

from __future__ import annotations

import os
import secrets
import socket


def worker_id() -> str:
    """A name for this process that no other ever has: host, pid, and chance."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
