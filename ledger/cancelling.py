"""Ending on the server what a client has given up.

A client that closes its socket ends nothing: a session that waits for a lock, or works, does not look at its socket before it answers. Left
alone it keeps its place in the line, the locks that it has, and one of ``max_connections``; and whoever gave it up tries again, with
another. So it is cancelled, which takes a connection of its own, in a thread of its own: where the whole server is silent, so is this one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

import psycopg
from psycopg import capabilities, generators, pq, waiting
from structlog.stdlib import get_logger

logger = get_logger(__name__)

#: How long a cancellation may take, in seconds.
PATIENCE: Final = 5.0
#: Most at a time: where they get no answer, more of them get none either.
AT_A_TIME: Final = 4
_places = threading.BoundedSemaphore(AT_A_TIME)


def cancel(connection: pq.abc.PGconn) -> None:
    """Have what runs on this connection cancelled, in the background; the connection itself may be finished at once. Never raises."""
    if connection.transaction_status != pq.TransactionStatus.ACTIVE or not _places.acquire(blocking=False):
        return
    try:
        threading.Thread(target=_carry_out, args=(_cancellation(connection),), name="switchyard-cancel", daemon=True).start()
    except (psycopg.Error, RuntimeError) as error:
        # The process ends, or has no more threads.
        _places.release()
        logger.debug("a statement that was given up is not cancelled", error=str(error))


def _cancellation(connection: pq.abc.PGconn) -> Callable[[], object]:
    """What to call; it needs the connection no more."""
    if capabilities.has_cancel_safe():
        return partial(_ask, connection.cancel_conn())
    return connection.get_cancel().cancel


def _ask(request: pq.abc.PGcancelConn) -> None:
    request.start()
    waiting.wait_conn(generators.cancel(request), interval=0.1, timeout=PATIENCE)


def _carry_out(cancellation: Callable[[], object]) -> None:
    try:
        cancellation()
    except (psycopg.Error, OSError) as error:
        logger.debug("a statement that was given up is not cancelled", error=str(error).strip())
    finally:
        _places.release()


def _renew() -> None:
    # Whoever would give a place back is a thread of the parent's.
    global _places
    _places = threading.BoundedSemaphore(AT_A_TIME)


os.register_at_fork(after_in_child=_renew)
