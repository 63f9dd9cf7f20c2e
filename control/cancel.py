"""Stopping jobs: one, or all that meet a filter.

What waits ends at once. What runs is asked to stop, and its worker hears that within a second (``runtime.orders``): ``Cancelled`` is raised
in a sync actor, an async actor's task is cancelled, and ``current_job().cancelled`` says so to code that neither reaches. Once asked, a
job ends in cancelled whatever becomes of it, unless it succeeds first. With Postgres away nothing is cancelled, and the caller hears so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from dramatiq import Message

from control import access
from ledger import control, read
from ledger.control import CancelCount
from ledger.states import ACTIVE, State, states_named
from ledger.write import CHUNK

#: How long the search for the jobs of a filter may take, in seconds: among millions it is no matter of one index probe.
SEARCH_TIMEOUT: Final = 60.0


def cancel(job: str | Message[Any]) -> bool:
    """Cancel a job, from any process.

    A job that waits is cancelled when this returns. A running one is asked to stop, which it does within a second if it can be interrupted;
    if it completes before that, it is completed. A job that has ended stays as it is.

    Parameters:
        job: its id, or the message that ``send()`` returned.

    Returns:
        Whether the job is cancelled, or running and asked to stop. False: it has ended.

    Raises:
        JobNotFound: no job has this id.
        LedgerUnavailable: Postgres did not answer; asking again does no harm.
    """
    id_ = access.job_id(job)
    access.require_job(id_)
    return access.ask(lambda connection: control.cancel(connection, id_)) is not None


def cancel_many(
    *,
    actor: str | None = None,
    queue: str | None = None,
    tag: str | None = None,
    state: State | str | Iterable[State | str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    batch: str | None = None,
    all: bool = False,
    dry_run: bool = False,
) -> CancelCount:
    """Cancel every job that meets all of the filters, as ``cancel`` does one; jobs sent while this works are not among them.

    A thousand at a time, so that nobody waits long for a lock, and what was cancelled stays so if this fails midway.

    Parameters:
        state: scheduled, pending, retrying or running, another queue's word for one, or several; default all four.
        created_after: not older than this; aware.
        created_before: older than this; aware.
        batch: the id of a group.
        all: without any filter: yes, everything.
        dry_run: cancel nothing, count only.

    Returns:
        How many waited and are cancelled, and how many run and were asked to stop.

    Raises:
        ValueError: there is no filter and not ``all``, or a filter's value is wrong; the text names it.
        LedgerUnavailable: Postgres did not answer.
    """
    filters = {
        "actor": actor, "queue": queue, "tag": tag, "created_after": created_after, "created_before": created_before, "batch": batch,
    }  # fmt: skip
    if not all and state is None and not any(value is not None for value in filters.values()):
        raise ValueError("cancel_many() without a filter would cancel every job; say all=True if that is what you want")
    states = _active(state)
    found = access.database().run(lambda connection: read.matching(connection, states=states, **filters), SEARCH_TIMEOUT)
    if dry_run:
        counts = Counter(state is State.RUNNING for _, state in found)
        return CancelCount(cancelled=counts[False], asked=counts[True])
    ids, wanted = [id_ for id_, _ in found], sorted(states)
    cancelled = asked = 0
    for first in range(0, len(ids), CHUNK):
        chunk = ids[first : first + CHUNK]
        count = access.ask(lambda connection, chunk=chunk: control.cancel_rows(connection, chunk, wanted))  # type: ignore[misc]
        cancelled += count.cancelled
        asked += count.asked
    return CancelCount(cancelled=cancelled, asked=asked)


def _active(state: State | str | Iterable[State | str] | None) -> frozenset[State]:
    """The states in which jobs can be cancelled, narrowed to those asked for. Raises: ValueError."""
    if state is None:
        return ACTIVE
    words = [state] if isinstance(state, str) else list(state)
    states = frozenset().union(*(states_named(word) for word in words)) & ACTIVE
    if not states:
        raise ValueError(f"state {', '.join(words)}: such jobs have ended; use {', '.join(sorted(ACTIVE))}")
    return states
