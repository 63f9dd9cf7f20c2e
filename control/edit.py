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

from brokers.broker import SwitchyardBroker
from control import access
from control.edited_keys import moved_period, new_keys, refuse_without_actor
from control.secrets import kept_secrets
from errors import JobNotFound, KeyInUse, LedgerUnavailable, OptionError
from ledger import control, keys, read
from ledger.control import Change, KeyTaken, WaitingJob
from ledger.database import BoundedConnection
from ledger.records import NewJob
from ledger.sql import SQL
from middleware.payload import CheckedPayload
from middleware.tags import check_tags
from runtime.enlist import DUE_CHANNEL

#: Longest delay, in seconds, as for a send: beyond it Postgres has no dates left.
MAX_DELAY: Final = 100 * 365 * 86_400.0


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
        _tell_of_limits(id_)
    else:
        access.require_job(id_)

    def wanted(connection: BoundedConnection, waiting: WaitingJob) -> Change:
        if tags is not None:
            check_tags(waiting.actor, tags)
        change = Change(priority=priority, delay=_seconds(waiting, run_at, delay), tags=tags)
        if others or priority is not None:
            # Of a priority alone nothing is taken, but that it is one.
            new = _row(waiting, id_, args, kwargs, priority)
            change = _rekeyed(connection, waiting, id_, replace(change, payload=new.payload), new) if others else change
        return change

    return access.ask(lambda connection: _settled(connection, id_, wanted))


def _settled(connection: BoundedConnection, id_: str, wanted: Callable[[BoundedConnection, WaitingJob], Change]) -> bool:
    """Change the job, or say who has the key that it would have. Raises: KeyInUse."""
    for _ in range(keys.ROUNDS):
        try:
            return keys.undisturbed(lambda: _change(connection, id_, wanted))
        except KeyTaken as taken:
            holder = keys.find(connection, "unique", taken.actor, taken.key)
            if holder is not None and holder.job_id != id_:
                raise KeyInUse(id_, taken.actor, taken.key, holder.job_id) from None
        # Its holder has ended meanwhile: it is free.
    raise LedgerUnavailable(f"the key that job {id_} would have changed hands {keys.ROUNDS} times while it was being changed")


def _change(connection: BoundedConnection, id_: str, wanted: Callable[[BoundedConnection, WaitingJob], Change]) -> bool:
    with connection.transaction():
        waiting = control.lock_waiting(connection, id_)
        if waiting is None or not control.edit(connection, waiting.id, wanted(connection, waiting)):
            return False
        connection.execute(SQL["ring_at_commit"], {"channel": DUE_CHANNEL, "payload": ""})
        return True


def _tell_of_limits(id_: str) -> None:
    """A job is about to count against its actor's limits anew: the ledger has to know them, as at a send. Raises: JobNotFound."""
    job = access.ask(lambda connection: read.get_job(connection, id_))
    if job is None:
        raise JobNotFound(id_)
    broker = _broker()
    broker.limits.tell_of([Message(job.queue, job.actor, (), {}, {})], broker.database)


def _rekeyed(connection: BoundedConnection, waiting: WaitingJob, id_: str, change: Change, new: NewJob) -> Change:
    """The change, with the keys that follow from the arguments. Raises: OptionError: they cannot be told here."""
    period_key = keys.period_key(connection, waiting.actor, id_)
    if waiting.actor not in _broker().actors:
        refuse_without_actor(waiting, period_key)
        return change
    return replace(
        change,
        keys=new_keys(waiting, new, lambda: _row(waiting, id_)),
        period=moved_period(waiting, id_, period_key, new),
    )


def _row(
    waiting: WaitingJob,
    id_: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    priority: int | None = None,
) -> NewJob:
    """The row that a send with these arguments would have; None: with its own. Raises: PayloadError, OptionError."""
    broker = _broker()
    stays = args is None and kwargs is None
    new_args = waiting.payload["args"] if args is None else args
    new_kwargs = waiting.payload["kwargs"] if kwargs is None else kwargs
    new_args, new_kwargs = kept_secrets(
        waiting.actor, waiting.payload, new_args, new_kwargs, id_, broker.settings.secret_key_bytes
    )
    message: Message[Any] = Message(
        queue_name=waiting.queue,
        actor_name=waiting.actor,
        args=tuple(new_args),
        kwargs=new_kwargs,
        options=(waiting.options or {}) | ({} if priority is None else {"priority": priority}),
        message_id=id_,
    )
    for middleware in broker.middleware:
        if isinstance(middleware, CheckedPayload) and not stays:
            middleware.before_enqueue(broker, message, None)
    return broker.new_job(message)


def _broker() -> SwitchyardBroker:
    broker = access.broker()
    if not isinstance(broker, SwitchyardBroker):
        raise RuntimeError("BROKER=stub keeps no jobs that could be changed")
    return broker


def _seconds(waiting: WaitingJob, run_at: datetime | None, delay: float | timedelta | None) -> float | None:
    """The delay in seconds, on the database's clock. Raises: OptionError."""
    if run_at is not None:
        return min((run_at - waiting.now).total_seconds(), MAX_DELAY)
    if delay is None:
        return None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds <= MAX_DELAY:
        raise OptionError(waiting.actor, "delay", f"{delay!r:.50} is neither seconds (at most 100 years) nor a timedelta")
    return float(seconds)
