"""Changing a job that waits: its arguments, its priority, its time, its tags.

The row is read and locked, what it is to become is checked as a send would be, and one guarded statement changes it, all in one
transaction: a claim comes before that and the job runs as it was, or after it and it runs as it is. With Postgres away nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from dramatiq import Message

from brokers.broker import SwitchyardBroker
from control import access
from control.secrets import kept_secrets
from errors import OptionError
from ledger import control
from ledger.control import Change, WaitingJob
from ledger.database import BoundedConnection
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
    the secret that is there. A better priority counts at once; a worse one may come too late for a job whose trigger is already at the head
    of a Redis or RabbitMQ queue.

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
        PayloadError, OptionError: a send with this would be refused; nothing was changed.
        ValueError: nothing is to be changed, or there are two times, or a naive one.
        LedgerUnavailable: Postgres did not answer; asking again does no harm.
    """
    if all(value is None for value in (args, kwargs, priority, run_at, delay, tags)):
        raise ValueError("edit() is told of nothing to change: give args, kwargs, priority, run_at, delay or tags")
    if run_at is not None and (delay is not None or run_at.utcoffset() is None):
        raise ValueError("give run_at or delay, and run_at with a time zone")
    id_ = access.job_id(job)
    access.require_job(id_)

    def wanted(waiting: WaitingJob) -> Change:
        payload = _checked(waiting, id_, args, kwargs, priority)
        if tags is not None:
            check_tags(waiting.actor, tags)
        return Change(payload=payload, priority=priority, delay=_seconds(waiting, run_at, delay), tags=tags)

    return access.ask(lambda connection: _change(connection, id_, wanted))


def _change(connection: BoundedConnection, id_: str, wanted: Callable[[WaitingJob], Change]) -> bool:
    with connection.transaction():
        waiting = control.lock_waiting(connection, id_)
        if waiting is None or not control.edit(connection, waiting.id, wanted(waiting)):
            return False
        connection.execute(SQL["ring_at_commit"], {"channel": DUE_CHANNEL, "payload": ""})
        return True


def _checked(
    waiting: WaitingJob, id_: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, priority: int | None
) -> str | None:
    """The payload that a send with these arguments would have; None: they stay as they are. Raises: PayloadError, OptionError."""
    stays = args is None and kwargs is None
    if stays and priority is None:
        return None
    broker = access.broker()
    if not isinstance(broker, SwitchyardBroker):
        raise RuntimeError("BROKER=stub keeps no jobs that could be changed")
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
    payload = broker.new_job(message).payload
    return None if stays else payload


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
