"""What follows from a death: the job of its ``on_dead``, and an entry in the broker's own dead-letter place.

Every death left its notices in the transaction that wrote it, whoever that was. A hook's notice is removed in the transaction that writes
the hook's job, so there is exactly one, however many keepers look and whichever dies midway; only the keeper of a process that knows the
hook takes it, the others leave it. A broker's notice is removed when the broker has the entry; a keeper that dies in between makes
another put it again, which Redis takes for the same and RabbitMQ gives the same message id. While a broker is down its notices wait, and
nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, Final, Protocol, cast

import psycopg
from dramatiq import Broker
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import MiddlewareError
from structlog.stdlib import get_logger

from brokers.transport import TransportDown
from errors import SwitchyardError
from keeper.duty import Keeping
from ledger import dead, write
from ledger.database import BoundedConnection
from ledger.dead import DeadNotice
from ledger.records import NewJob
from runtime.outage import Outage

logger = get_logger(__name__)

#: Notices of one turn, per consumer.
CHUNK: Final = 500
#: Seconds until the next turn while there may be more.
SOON: Final = 0.05
#: First and longest pause while a broker does not take them, in seconds.
RETRY_MIN: Final = 1.0
RETRY_MAX: Final = 60.0
#: What nobody could act on for so long is given up; the dead letter itself stays for as long as RETAIN_DEAD says.
KEEP: Final = timedelta(days=7)
#: How often it looks for those, while there is nothing else to do for the notices that wait, in seconds.
FORGET_EVERY: Final = 60.0


class WritesJobs(Protocol):
    """The broker, as far as hooks need it."""

    def new_job(self, message: Any, delay: float = 0.0) -> NewJob:
        """The row of a message."""


@dataclass(slots=True)
class _Retry:
    """When a broker that failed is tried again."""

    outage: Outage
    at: float = 0.0
    pause: float = RETRY_MIN


def sweep(connection: BoundedConnection, keeping: Keeping) -> float | None:
    """The duty: tell the deaths that wait to be told."""
    if not keeping.seen.deaths:
        return None
    taken = [call_hooks(connection, cast("Broker", keeping.broker))]
    broker, retries = keeping.broker, cast("dict[str, _Retry]", keeping.memory.setdefault("dead_letters", {}))
    for name in sorted(broker.routes.brokers & broker.carriers.keys()):
        retry = retries.get(name) or retries.setdefault(name, _Retry(Outage(f"dead letters to {name}")))
        if monotonic() >= retry.at and not broker.publisher.is_open(name):
            taken.append(_try_to_put(connection, keeping, name, retry))
    if not any(taken) and monotonic() >= keeping.memory.get("dead_letters_forget", 0.0):
        keeping.memory["dead_letters_forget"] = monotonic() + FORGET_EVERY
        _forget(connection)
    return SOON if CHUNK in taken else None


def call_hooks(connection: BoundedConnection, broker: Broker) -> int:
    """Write the jobs of the hooks that this process knows. Returns how many notices were taken."""
    with connection.transaction():
        notices = dead.take_hooks(connection, sorted(broker.actors), CHUNK)
        jobs = [job for notice in notices if (job := _hook_job(broker, notice)) is not None]
        try:
            with connection.transaction():
                write.enqueue_many(connection, jobs)
        except (SwitchyardError, psycopg.IntegrityError, psycopg.DataError):
            # One of them is to blame, and must not keep the others.
            for job in jobs:
                _write_alone(connection, job)
    return len(notices)


def put_in_place(connection: BoundedConnection, keeping: Keeping, name: str) -> int:
    """Put dead letters into a broker's own place. Returns how many. Raises: TransportDown: then all of them wait."""
    transport = keeping.broker.transport(name)
    with connection.transaction():
        notices = dead.take_for_broker(connection, name, own=keeping.settings.broker, limit=CHUNK)
        if notices and transport.dead_letter_place is not None:
            transport.put_dead(notices)
    return len(notices)


def _try_to_put(connection: BoundedConnection, keeping: Keeping, name: str, retry: _Retry) -> int:
    try:
        taken = put_in_place(connection, keeping, name)
    except TransportDown as error:
        retry.outage.failed(error)
        retry.at = monotonic() + retry.pause
        retry.pause = min(retry.pause * 2, RETRY_MAX)
        return 0
    retry.outage.over()
    retry.pause = RETRY_MIN
    return taken


def _hook_job(broker: Broker, notice: DeadNotice) -> NewJob | None:
    """The job of a notice's hook; None, and a line in the log, when it cannot be made."""
    try:
        message = broker.get_actor(notice.hook or "").message(notice.context())
        broker.emit_before("enqueue", message, None)
        # Due at once, as followers are: this process may not live to publish it.
        return cast("WritesJobs", broker).new_job(message)._replace(grace=0.0, parent_id=notice.id)
    except (ActorNotFound, MiddlewareError) as error:
        logger.error("hook of a dead job not sent", job_id=notice.id, hook=notice.hook, error=str(error))
        return None


def _write_alone(connection: BoundedConnection, job: NewJob) -> None:
    try:
        with connection.transaction():
            write.enqueue_many(connection, [job])
    except (SwitchyardError, psycopg.IntegrityError, psycopg.DataError) as error:
        # The dead job stays what it is, on view; only its hook does not run.
        logger.error("hook of a dead job not sent", job_id=job.parent_id, hook=job.actor, error=str(error).strip())


def _forget(connection: BoundedConnection) -> None:
    for consumer, hook in dead.forget_notices(connection, KEEP):
        logger.warning("gave up telling a death that nobody could be told of for a week", consumer=consumer, hook=hook)
