"""Pausing: a queue, an actor, an actor in a queue, or everything, for the whole fleet and until it is resumed.

A pause is a row in the ledger, so it outlives processes and reaches those that start later. From its commit on no claim takes what it
names; what workers hold and have not started goes back within a second; what runs goes on to its end. Sends are accepted as ever, and
wait. With Postgres away nothing is paused or resumed, and the caller hears so.
"""

from __future__ import annotations

from control import access
from ledger import control
from ledger.control import EVERY, Pause
from ledger.database import BoundedConnection
from ledger.sql import SQL
from runtime.enlist import DUE_CHANNEL
from settings import check_queue


def pause(*, queue: str | None = None, actor: str | None = None) -> bool:
    """Let nothing of a queue, or of an actor, start any more; with both, of this actor in this queue; with neither, nothing at all.

    A second after this has returned nothing new starts. Running jobs go on to their end.

    Returns:
        Whether it was not paused under this very name before.

    Raises:
        ValueError: no queue or actor can be called this.
        LedgerUnavailable: Postgres did not answer; asking again does no harm.
    """
    names = _names(queue, actor)
    return access.ask(lambda connection: control.pause(connection, *names))


def resume(*, queue: str | None = None, actor: str | None = None) -> bool:
    """End the pause that ``pause`` began with the same words. Others stay: a queue that was paused by itself stays paused when everything
    is resumed.

    The jobs that waited for it go on, best priority and oldest first, a thousand at a time; should this process die meanwhile, the
    workers go on with that.

    Returns:
        Whether there was such a pause.

    Raises:
        ValueError, LedgerUnavailable: as ``pause``.
    """
    names = _names(queue, actor)
    lifted = access.ask(lambda connection: control.resume(connection, *names))
    while access.ask(_go_on):
        pass
    return lifted


def paused() -> list[Pause]:
    """What is paused, the oldest first, and how many jobs wait for the end of that. Raises: LedgerUnavailable."""
    return access.ask(control.pauses)


def _go_on(connection: BoundedConnection) -> int:
    jobs = control.unpark(connection)
    if jobs:
        connection.execute(SQL["ring_at_commit"], {"channel": DUE_CHANNEL, "payload": ""})
    return jobs


def _names(queue: str | None, actor: str | None) -> tuple[str, str]:
    if queue is not None:
        check_queue(queue)
    if actor is not None and (not isinstance(actor, str) or actor in ("", EVERY) or not actor.isprintable()):
        raise ValueError(f"{actor!r:.50} is no name of an actor")
    return queue or EVERY, actor or EVERY
