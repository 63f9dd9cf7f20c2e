"""A stored job that gets other arguments, by an edit or a replay: its row as a send would make it, and what it counts as.

    limits          rate_limit_key, rate_limit_cost, concurrency_key, fair_key, fair_weight: as a send with these arguments would have them
    unique_key      the same, while the job is active and for a period; a key that was let go (``forget_key``) stays so until another is due
    idempotency_key stays: it is the sender's, and stands for what was sent

What the message itself said (``send_with_options(concurrency_key=...)``) is an option of the job and stays. A process that does not know
the actor cannot work keys out, so it is refused where the job has one: it would go on counting as what it is no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from dramatiq import Message

from brokers.broker import SwitchyardBroker
from control import access
from control.secrets import kept_secrets
from errors import JobNotFound, KeyInUse, LedgerUnavailable, OptionError, PayloadError
from ledger import keys, read
from ledger.database import BoundedConnection
from ledger.records import JobControl, NewJob
from ledger.rekeying import Keys, KeyTaken, LockedJob, PeriodKey, refuse_without_actor
from middleware.payload import CheckedPayload

T = TypeVar("T")


def tell_of_limits(id_: str) -> None:
    """A job is about to count against its actor's limits anew: the ledger has to know them, as at a send. Raises: JobNotFound."""
    job = access.ask(lambda connection: read.get_job(connection, id_))
    if job is None:
        raise JobNotFound(id_)
    broker = _broker()
    broker.limits.tell_of([Message(job.queue, job.actor, (), {}, {})], broker.database)


def settled(connection: BoundedConnection, id_: str, change: Callable[[], T]) -> T:
    """Change a job by one whole transaction, or say who has the key that it would have.

    Raises:
        KeyInUse: somebody has.
        LedgerUnavailable: the key changed hands too often to tell.
    """
    for _ in range(keys.ROUNDS):
        try:
            return keys.undisturbed(change)
        except KeyTaken as taken:
            holder = keys.find(connection, "unique", taken.actor, taken.key)
            if holder is not None and holder.job_id != id_:
                raise KeyInUse(id_, taken.actor, taken.key, holder.job_id) from None
        # Its holder has ended meanwhile: it is free.
    raise LedgerUnavailable(f"the key that job {id_} would have changed hands {keys.ROUNDS} times while it was being changed")


def row_of(
    job: LockedJob,
    id_: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    queue: str | None = None,
) -> NewJob:
    """The row that a send with these arguments would have.

    Parameters:
        args, kwargs: None: its own; both None: they are not checked against the actor again.
        options: beside its own.
        queue: None: its own.

    Raises:
        PayloadError, OptionError: there could be none.
    """
    broker = _broker()
    stays = args is None and kwargs is None
    new_args = job.payload["args"] if args is None else args
    new_kwargs = job.payload["kwargs"] if kwargs is None else kwargs
    new_args, new_kwargs = kept_secrets(job.actor, job.payload, new_args, new_kwargs, id_, broker.settings.secret_key_bytes)
    message: Message[Any] = Message(
        queue_name=queue or job.queue,
        actor_name=job.actor,
        args=tuple(new_args),
        kwargs=new_kwargs,
        options={**(job.options or {}), **(options or {})},
        message_id=id_,
    )
    for middleware in broker.middleware:
        if isinstance(middleware, CheckedPayload) and not stays:
            middleware.before_enqueue(broker, message, None)
    return broker.new_job(message)


def keys_of(
    connection: BoundedConnection, job: LockedJob, id_: str, new: NewJob, way: str
) -> tuple[Keys | None, PeriodKey | None]:
    """What a job that becomes ``new`` counts as, and how the key that it has for a period is to change; None: that stays.

    Parameters:
        way: what to do where the actor is not known.

    Raises:
        OptionError: this process does not know the actor, and the job has keys.
    """
    period_key = keys.period_key(connection, job.actor, id_)
    if job.actor not in _broker().actors:
        refuse_without_actor(job, period_key, way)
        return None, None
    return _new_keys(job, new, lambda: row_of(job, id_)), _moved_period(job, id_, period_key, new)


def _new_keys(job: LockedJob, new: NewJob, old: Callable[[], NewJob]) -> Keys:
    """The keys of a job that becomes ``new``.

    Parameters:
        old: makes the row of the job as it is.
    """
    control = new.control or JobControl()
    unique_key = control.unique_key
    if job.unique_key is None and unique_key is not None and _key_now(old) == unique_key:
        # It was taken away from the job, which goes on without it.
        unique_key = None
    return Keys(unique_key, control.rate_key, control.rate_cost, control.concurrency_key, control.fair_key, control.fair_weight)


def _moved_period(job: LockedJob, id_: str, key: str | None, new: NewJob) -> PeriodKey | None:
    """How the key that a job has for a period is to change; None: it has none, or the same."""
    unique = None if new.control is None else new.control.unique
    to = None if unique is None else unique.key
    return None if key is None or key == to else PeriodKey(job.actor, id_, key, to)


def _key_now(old: Callable[[], NewJob]) -> str | None:
    # Arguments that fit no more have no key: they are why they are changed.
    with suppress(OptionError, PayloadError):
        control = old().control
        return None if control is None else control.unique_key
    return None


def _broker() -> SwitchyardBroker:
    broker = access.broker()
    if not isinstance(broker, SwitchyardBroker):
        raise RuntimeError("BROKER=stub keeps no jobs that could be changed")
    return broker
