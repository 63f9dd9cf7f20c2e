"""Dead letters: look at them, group them, replay them as they are, edited or throttled, and remove them.

A verb that changes something says what it did and is safe to repeat. A replay is a new generation of the same job: the same id, counters
at zero, its history kept. What a throttled replay leaves behind are rows with due times of their own, so nothing is lost or doubled when
the caller dies at any moment: each dead letter is still dead, or on its way once. The next call takes the rest.
Postgres down: ``LedgerUnavailable``, and what was committed before stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypedDict, Unpack

from dramatiq import Message
from structlog.stdlib import get_logger

from control import access, edited_job
from errors import JobNotFound
from ledger import batches, dead, read
from ledger.database import BoundedConnection
from ledger.dead import DeadFilter
from ledger.job import DeadGroup, DeadPage
from ledger.rekeying import lock_ended
from ledger.sql import SQL
from ledger.states import State
from runtime.enlist import DUE_CHANNEL
from settings import check_queue

logger = get_logger(__name__)

#: How long one chunk of a replay or a removal may take, in seconds.
CHUNK_TIMEOUT: Final = 60.0
#: How long after the call the first of a throttled replay is due, in seconds per row of its first chunk: by then the chunk is written, on a
#: busy machine too. Were it due before, those that came due meanwhile would all start at once.
LEAD: Final = 3e-4
#: Fastest and slowest rate of a replay, in jobs a second: below a microsecond apart, and beyond years, times mean nothing.
MAX_RATE: Final = 1e6
MIN_RATE: Final = 1e-6

#: How to give other arguments where a process that does not know the actor may not.
_WAY: Final = "replay it in a program that imports it"
_STRANDED: Final = "it is a step of a workflow, and a job that it waits for was removed"
_PRUNED: Final = (
    "retention has begun to remove its workflow, which cannot be completed any more; send what is missing as new jobs"
)
_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|sec|second|m|min|minute|h|hour|d|day)\s*", re.IGNORECASE)
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class Filters(TypedDict, total=False):
    """Which dead letters are meant: those that meet every filter given. None is as good as not given."""

    actor: str | None
    queue: str | None
    reason: str | None
    fingerprint: str | None
    error_type: str | None
    search: str | None
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What became of the replay of one job."""

    #: Whether it is on its way.
    done: bool
    #: Why not, in a sentence; None: it is.
    refused: str | None = None
    #: The active job that has its key, if that is why.
    holder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replays:
    """What became of the replay of many."""

    #: Dead letters that were meant, counted before the first was replayed.
    matched: int
    #: How many are on their way; none in a dry run.
    replayed: int = 0
    #: When the last of them is due, on the database's clock; None: none is.
    last_due: datetime | None = None

    @property
    def left(self) -> int:
        """How many stay dead: their key is in use by an active job or by an earlier one of this replay, their workflow is not whole any
        more, or they were beyond the limit."""
        return max(0, self.matched - self.replayed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discards:
    """What became of the removal of many."""

    #: Dead letters that were meant, counted before the first was removed.
    matched: int
    #: How many are gone; none in a dry run.
    discarded: int = 0


def dead_letters(*, limit: int = read.DEFAULT_LIMIT, after: str | None = None, **filters: Unpack[Filters]) -> DeadPage:
    """One page of dead letters, the latest death first, each with the traceback of its last execution.

    Parameters:
        limit: letters on the page, 1 to 200, default 50.
        after: ``next`` of the page before.
        filters: ``actor``, ``queue``, ``reason`` (such as ``max_retries``), ``fingerprint`` (of a group), ``error_type``, ``search`` (a
            part of the error's text or type, or of the actor's name, in any case), ``since`` and ``until`` (of the death; aware times).

    Raises:
        ValueError: a filter's value is wrong; the text names it.
    """
    wanted = DeadFilter(**filters)
    return access.ask(lambda connection: dead.page(connection, wanted, limit=limit, after=after))


def dead_groups(*, limit: int = read.DEFAULT_LIMIT, **filters: Unpack[Filters]) -> list[DeadGroup]:
    """The dead letters by what they have in common, the largest group first.

    Failures are of one kind when actor, reason and type of the error are the same, and the error's text and the innermost functions of
    its traceback are alike: numbers, ids, addresses, quoted values and line numbers do not count.

    Parameters:
        limit: groups, 1 to 200, default 50.
        filters: as ``dead_letters``.

    Raises:
        ValueError: a filter's value is wrong.
    """
    wanted = DeadFilter(**filters)
    return access.ask(lambda connection: dead.groups(connection, wanted, limit=limit))


def replay(
    id: str | Message[Any],
    *,
    to_queue: str | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> bool:
    """Run a dead or cancelled job again, at once: the same id, a new generation, its history kept.

    With other arguments it counts as what the actor makes of them, as after ``edit``: the limits' keys and the ``unique_key``. A job that
    has such keys is given other arguments where its actor is known.

    Parameters:
        to_queue: another queue than its own; some worker has to consume it.
        args: positional arguments instead of those sent; default: those.
        kwargs: keyword arguments instead of those sent; default: those.

    Returns: False: it is neither dead nor cancelled, or another active job has its key, or it is a step of a workflow and what it waits for
        was removed, or retention has begun to remove its workflow; ``try_replay`` says which.

    Raises:
        JobNotFound: no job has this id.
        PayloadError, OptionError: a send with these arguments would be refused, or keys cannot be told here; nothing was changed.
        KeyInUse: with the arguments given it would be the same as another active job, or one of its period; nothing was changed.
        ValueError: no queue can have this name.
    """
    return try_replay(id, to_queue=to_queue, args=args, kwargs=kwargs).done


def try_replay(
    id: str | Message[Any],
    *,
    to_queue: str | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Replay:
    """As ``replay``, and say why not."""
    job_id = access.job_id(id)
    if to_queue is not None:
        check_queue(to_queue)
    if args is not None or kwargs is not None:
        return _replay_changed(job_id, args, kwargs, to_queue)
    access.require_job(job_id)

    def again(connection: BoundedConnection) -> bool:
        with connection.transaction():
            done = dead.replay(connection, job_id, queue=to_queue)
            if done:
                _wake(connection)
            return done

    return Replay(done=True) if access.ask(again) else _refusal(job_id)


def _replay_changed(job_id: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, to_queue: str | None) -> Replay:
    edited_job.tell_of_limits(job_id)

    def again(connection: BoundedConnection) -> bool | None:
        with connection.transaction():
            ended = lock_ended(connection, job_id)
            if ended is None:
                return None
            new = edited_job.row_of(ended, job_id, args, kwargs, queue=to_queue)
            keys, period = edited_job.keys_of(connection, ended, job_id, new, _WAY)
            change: Any = {"payload": new.payload, "keys": keys, "period": period}
            done = dead.replay_changed(connection, ended, job_id, queue=to_queue, **change)
            if done:
                _wake(connection)
            return done

    done = access.ask(lambda connection: edited_job.settled(connection, job_id, lambda: again(connection)))
    if done is None:
        return _refusal(job_id)
    return Replay(done=True) if done else Replay(done=False, refused=_why_stranded(job_id))


def _refusal(job_id: str) -> Replay:
    """Why a job was not replayed. Raises: JobNotFound."""
    job = access.ask(lambda connection: read.get_job(connection, job_id))
    if job is None:
        raise JobNotFound(job_id)
    if job.state not in (State.DEAD, State.CANCELLED):
        return Replay(done=False, refused=f"it is {job.state}; only a dead or cancelled job is replayed")
    holder = access.ask(lambda connection: dead.key_holder(connection, job_id))
    if holder is None:
        return Replay(done=False, refused=_why_stranded(job_id))
    return Replay(done=False, refused=f"its key is in use by job {holder}", holder=holder)


def _why_stranded(job_id: str) -> str:
    """What its workflow lacks."""
    return _PRUNED if access.ask(lambda connection: batches.was_pruned(connection, job_id)) else _STRANDED


def replay_many(
    *,
    rate: str | float | None = None,
    to_queue: str | None = None,
    all: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    **filters: Unpack[Filters],
) -> Replays:
    """Replay every dead letter that meets the filters, in the order in which they died.

    Parameters:
        rate: how many of them become due in a time, such as ``"50/s"`` or ``"1000/hour"``, or a number a second; None: all at once.
            Each row is given its own due time, so nothing has to stay running.
        to_queue: another queue than their own.
        all: without any filter: yes, all dead letters.
        dry_run: only count them.
        limit: at most so many.
        filters: as ``dead_letters``.

    Raises:
        ValueError: there is no filter and not ``all``; or a filter, the rate, the limit or the queue's name is wrong.
    """
    wanted, interval = _wanted("replay_many", filters, all), 0.0 if rate is None else 1.0 / rate_per_second(rate)
    _check_limit(limit)
    if to_queue is not None:
        check_queue(to_queue)
    database = access.database()
    matched = database.run(lambda connection: dead.count(connection, wanted), CHUNK_TIMEOUT)
    if dry_run:
        return Replays(matched=matched)
    replayed, lead, base, last_due = 0, 0.0, None, None
    with database.connection(CHUNK_TIMEOUT) as connection:
        for ids in dead.chunks(connection, wanted, size=dead.REPLAY_CHUNK, limit=limit):
            with connection.transaction():
                lead = LEAD * len(ids) if base is None and interval else lead
                ahead = lead + interval * replayed
                chunk = dead.replay_rows(connection, ids, interval=interval, ahead=ahead, base=base, queue=to_queue)
                _wake(connection)
            replayed, base, last_due = replayed + chunk.replayed, chunk.base, chunk.last_due or last_due
    logger.info("replayed dead letters", jobs=replayed, of=matched, rate=rate, **_said(filters))
    return Replays(matched=matched, replayed=replayed, last_due=last_due)


def discard(id: str | Message[Any]) -> bool:
    """Remove a dead or cancelled job for good, with its attempts and its log; what waited for its completion is cancelled. False: it is
    neither; nothing else may be removed.

    Raises:
        JobNotFound: no job has this id.
    """
    job_id = access.job_id(id)
    access.require_job(job_id)
    gone = access.ask(lambda connection: dead.discard(connection, job_id))
    if gone is not None:
        actor, queue, state, reason = gone
        logger.info("discarded a job", job_id=job_id, actor=actor, queue=queue, state=state, reason=reason)
    return gone is not None


def discard_many(*, all: bool = False, dry_run: bool = False, limit: int | None = None, **filters: Unpack[Filters]) -> Discards:
    """Remove every dead letter that meets the filters for good, with attempts and logs, in the order in which they died.

    Parameters:
        all: without any filter: yes, all dead letters.
        dry_run: only count them.
        limit: at most so many.
        filters: as ``dead_letters``.

    Raises:
        ValueError: there is no filter and not ``all``; or a filter or the limit is wrong.
    """
    wanted, discarded = _wanted("discard_many", filters, all), 0
    _check_limit(limit)
    database = access.database()
    matched = database.run(lambda connection: dead.count(connection, wanted), CHUNK_TIMEOUT)
    if dry_run:
        return Discards(matched=matched)
    with database.connection(CHUNK_TIMEOUT) as connection:
        for ids in dead.chunks(connection, wanted, size=dead.DISCARD_CHUNK, limit=limit):
            discarded += dead.discard_rows(connection, ids)
    logger.info("discarded dead letters", jobs=discarded, of=matched, **_said(filters))
    return Discards(matched=matched, discarded=discarded)


def _wanted(function: str, filters: Filters, everything: bool) -> DeadFilter:
    """The filter, which has to say something where the caller has not said that all are meant. Raises: ValueError."""
    wanted = DeadFilter(**filters)
    if wanted == DeadFilter() and not everything:
        raise ValueError(f"{function}() without a filter would take every dead letter; say all=True if that is what you want")
    return wanted


def rate_per_second(rate: str | float) -> float:
    """A rate such as ``"50/s"``, ``"100/minute"`` or ``"1000/h"``, or a number a second, in jobs a second. Raises: ValueError."""
    found = None
    if isinstance(rate, str):
        read_ = _RATE.fullmatch(rate)
        if read_ is not None:
            found = float(read_[1]) / _SECONDS[read_[2][0].lower()]
    elif not isinstance(rate, bool):
        found = float(rate)
    if found is None or not math.isfinite(found) or not MIN_RATE <= found <= MAX_RATE:
        raise ValueError(f"rate {rate!r} cannot be kept; write for example '50/s', '100/minute' or '1000/hour'")
    return found


def _wake(connection: BoundedConnection) -> None:
    """Have a keeper publish what is due with the commit, and not at its next poll."""
    connection.execute(SQL["ring_at_commit"], {"channel": DUE_CHANNEL, "payload": ""})


def _check_limit(limit: int | None) -> None:
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise ValueError(f"limit {limit!r} is out of range: 1 or more")


def _said(filters: Filters) -> dict[str, Any]:
    return {name: value for name, value in filters.items() if value is not None}
