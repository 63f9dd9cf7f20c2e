"""The way from a verb to the database and the broker of this process, injected by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dramatiq import Broker, Message

from errors import JobNotFound
from ledger import read
from ledger.database import BoundedConnection, Database

T = TypeVar("T")

_provide: Callable[[], tuple[Database, Broker]] | None = None


def provide(provider: Callable[[], tuple[Database, Broker]]) -> None:
    """Say where database and broker come from; ``switchyard`` does, when it is imported."""
    global _provide
    _provide = provider


def database() -> Database:
    """The ledger of this process, configured from its environment if nobody did so before."""
    return _provided()[0]


def broker() -> Broker:
    """The broker of this process."""
    return _provided()[1]


def ask(work: Callable[[BoundedConnection], T]) -> T:
    """Run ``work`` on a connection to the ledger. Raises: LedgerUnavailable."""
    return database().run(work)


def job_id(job: str | Message[Any]) -> str:
    """The id of what verbs take: an id, or the message that ``send()`` returned."""
    return job.message_id if isinstance(job, Message) else job


def require_job(id: str) -> None:
    """Raises: JobNotFound: no job has this id."""
    if not ask(lambda connection: read.exists(connection, id)):
        raise JobNotFound(id)


def _provided() -> tuple[Database, Broker]:
    assert _provide is not None, "import switchyard first"
    return _provide()
