"""Changing a job that waits: its arguments, its priority, its time, its tags.

The row is read and locked, what it is to become is checked as a send would be, and guarded statements change it, all in one transaction: a
claim comes before that and the job runs as it was, or after it and it runs, and counts, as it is. With Postgres away nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from dramatiq import Message

from control import access, edited_job
from errors import OptionError
from ledger import control
from ledger.control import Change
from ledger.database import BoundedConnection
from ledger.records import NewJob
from ledger.rekeying import LockedJob, lock_waiting
from ledger.sql import SQL
from middleware.tags import check_tags
from runtime.enlist import DUE_CHANNEL

#: Longest delay, in seconds, as for a send: beyond it Postgres has no dates left.
MAX_DELAY: Final = 100 * 365 * 86_400.0
#: How to change what a process that does not know the actor may not.
_WAY: Final = "change the job in a program that imports it, or with `switchyard edit --actors MODULE`"


def edit(
    job: str | Message[Any],
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    priority: int | None = None,
    run_at: datetime | None = None,
    delay: float | timedelta | None = None,
    tags: Sequence[str] | None = None,
) -> bool:
    """Change a job that is scheduled, pending or retrying; what is not given stays as it is.

    Arguments are checked against the actor's signature if this process knows the actor, otherwise its worker will; ``[secret]`` stands for
    the secret that is there. With them go the keys that the actor makes of them: what limits the job counts against, and which jobs are the
    same (``unique_key``); a job that has such keys is changed where its actor is known. A better priority counts at once; a worse one may
    come too late for a job whose trigger is already at the head of a Redis or RabbitMQ queue.

    Parameters:
        job: its id, or the message that ``send()`` returned.
        args: all positional arguments.
        kwargs: all keyword arguments.
        priority: lower runs first.
        run_at: when it may run; aware. A time that has passed means now.
        delay: the same as seconds from now, or a ``timedelta``: with this, an edit snoozes a job.
        tags: all its tags; none with an empty list.

    Returns:
        Whether it was changed. False: it runs or has ended; or it waits for something else than a time (a slot, another job) and was to be
        given one.

    Raises:
        JobNotFound: no job has this id.
        PayloadError, OptionError: a send with this would be refused, or keys cannot be told here; nothing was changed.
        KeyInUse: with these arguments it would be the same as another active job, or one of its period; nothing was changed.
        ValueError: nothing is to be changed, or there are two times, or a naive one.
        LedgerUnavailable: Postgres did not answer; asking again does no harm.
    """
    if all(value is None for value in (args, kwargs, priority, run_at, delay, tags)):
        raise ValueError("edit() is told of nothing to change: give args, kwargs, priority, run_at, delay or tags")
    if run_at is not None and (delay is not None or run_at.utcoffset() is None):
        raise ValueError("give run_at or delay, and run_at with a time zone")
    id_ = access.job_id(job)
    others = args is not None or kwargs is not None
    if others:
        edited_job.tell_of_limits(id_)
    else:
        access.require_job(id_)

    def wanted(connection: BoundedConnection, waiting: LockedJob) -> Change:
        if tags is not None:
            check_tags(waiting.actor, tags)
        change = Change(priority=priority, delay=_seconds(waiting, run_at, delay), tags=tags)
        if others or priority is not None:
            # Of a priority alone nothing is taken, but that it is one.
            new = edited_job.row_of(waiting, id_, args, kwargs, {} if priority is None else {"priority": priority})
            change = _rekeyed(connection, waiting, id_, change, new) if others else change
        return change

    return access.ask(lambda connection: edited_job.settled(connection, id_, lambda: _change(connection, id_, wanted)))


def _rekeyed(connection: BoundedConnection, waiting: LockedJob, id_: str, change: Change, new: NewJob) -> Change:
    """The change, with the arguments and the keys that follow from them. Raises: OptionError: they cannot be told here."""
    keys, period = edited_job.keys_of(connection, waiting, id_, new, _WAY)
    return replace(change, payload=new.payload, keys=keys, period=period)


def _change(connection: BoundedConnection, id_: str, wanted: Callable[[BoundedConnection, LockedJob], Change]) -> bool:
    with connection.transaction():
        waiting = lock_waiting(connection, id_)
        if waiting is None or not control.edit(connection, waiting.id, wanted(connection, waiting)):
            return False
        connection.execute(SQL["ring_at_commit"], {"channel": DUE_CHANNEL, "payload": ""})
        return True


def _seconds(waiting: LockedJob, run_at: datetime | None, delay: float | timedelta | None) -> float | None:
    """The delay in seconds, on the database's clock. Raises: OptionError."""
    if run_at is not None:
        return min((run_at - waiting.now).total_seconds(), MAX_DELAY)
    if delay is None:
        return None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds <= MAX_DELAY:
        raise OptionError(waiting.actor, "delay", f"{delay!r:.50} is neither seconds (at most 100 years) nor a timedelta")
    return float(seconds)
