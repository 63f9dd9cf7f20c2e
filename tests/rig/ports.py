"""Free local ports, and whether somebody listens on one.

Ports come from below the range that the kernel gives to outgoing connections, so that a server which a fault test kills finds its
port still free when it is started again. Processes that share a run (``pytest -n``) take theirs from parts that do not overlap,
since a port is free until its server listens.
"""

from __future__ import annotations

import os
import random
import re
import socket

_LOWEST, _HIGHEST = 15_000, 30_000
_given: set[int] = set()


def _part() -> range:
    """This process's ports."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # Numbers go on where a process that crashed is replaced.
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "gw0"))) % count
    size = (_HIGHEST - _LOWEST) // count
    return range(_LOWEST + number * size, _LOWEST + (number + 1) * size)


def free_port() -> int:
    """A local TCP port that nobody listens on, and that this run has not given out before."""
    while True:
        port = random.choice(_part())
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def listening(port: int, host: str = "127.0.0.1", timeout: float = 0.5) -> bool:
    """Whether a TCP connection to the port is accepted."""
    try:
        with socket.create_connection((host, port), timeout):
            return True
    except OSError:
        return False
