"""Sends that have keys: one key, one job, whoever else sends with the same at the same moment.

    sender's key    ``idempotency_key``: table ``idempotency``, until it expires; compares payloads
    actor's key     for a period: the same table, without comparing; while active: the index ``job_unique_active``

A round inserts first. What is refused waited for its rival, and is asked about in a statement of its own, which sees what the rival
committed, or that it was rolled back; then the next round inserts again. So a send ends with a job that is committed, its own or
another's, and never with one that was rolled back. Keys go before rows: a key is never bound to a job that does not exist, since both are
written by one statement, or in one transaction where a job has several keys or comes with others.

Postgres away: nothing is written, or the reply is lost; the same send repeated finds its own key and job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeVar
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation

from errors import IdempotencyConflict, JobExists, LedgerUnavailable
from ledger.records import Enqueued, First, NewJob
from ledger.rekeying import Keys, KeyTaken, LockedJob, PeriodKey, lock_waiting, refuse_without_actor, rekey, wake_line
from ledger.sql import SQL
from ledger.states import WAITING, State

Conn = Connection[Any]
T = TypeVar("T")
Kind = Literal["idempotency", "unique"]
#: Writes rows together with keys (as JSON rows of ``take_keys``); those whose id or key is in the way are missing from what it returns.
Insert = Callable[[Conn, Sequence[NewJob], Sequence[dict[str, Any]]], Cursor[Any]]
#: Tells repeated sends from other jobs by their message ids; raises JobExists.
Recognise = Callable[[Conn, Sequence[NewJob]], list[Enqueued]]

#: How often a send looks again, because what was in its way has gone, before it gives up.
ROUNDS: Final = 5
#: Options by which a message says what limits its job counts against.
LIMIT_OPTIONS: Final = frozenset({"rate_limit_key", "rate_limit_cost", "concurrency_key", "fair_key", "fair_weight"})
#: How many times its delay a debounced job is put off at most, where nobody says how long.
MAX_WAIT_DELAYS: Final = 10


def refuse_others(written: Iterable[Enqueued]) -> None:
    """A place in a workflow is for a job of its own: what waits for it, or counts it, knows it by its id.

    Raises:
        JobExists: a key led one of these to another job.
    """
    for entry in written:
        if entry.replayed:
            raise JobExists(
                entry.message_id, "a key of a step or of a group's job stands for it, and a workflow needs jobs of its own"
            )


def undisturbed(work: Callable[[], T]) -> T:
    """Call ``work``, one whole transaction, again when it met another in a circle of keys; the last error goes up."""
    for _ in range(ROUNDS - 1):
        try:
            return work()
        except (DeadlockDetected, SerializationFailure):
            continue
    return work()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBinding:
    """Which job a key stands for. ``expires_at`` is None for a key that lasts as long as its job is active."""

    actor: str
    key: str
    #: ``idempotency`` (a sender's) or ``unique`` (an actor's).
    kind: str
    job_id: str
    #: None where the job's row was removed, which the key outlives.
    state: State | None
    #: Of the payload; None where payloads are not compared.
    fingerprint: str | None
    created_at: datetime
    expires_at: datetime | None


def find(connection: Conn, kind: Kind, actor: str, key: str) -> KeyBinding | None:
    """Which job a key stands for; None when it is free."""
    row = connection.execute(SQL["find_key"], {"kind": kind, "actor": actor, "key": key}).fetchone()
    if row is None:
        return None
    return KeyBinding(
        actor=actor,
        key=key,
        kind=row[0],
        job_id=row[1],
        state=None if row[5] is None else State(row[5]),
        fingerprint=row[2],
        created_at=row[3],
        expires_at=row[4],
    )


def forget(connection: Conn, kind: Kind, actor: str, key: str) -> bool:
    """Make a key free. False: it was."""
    parameters = {"kind": kind, "actor": actor, "key": key}
    with connection.transaction():
        gone = connection.execute(SQL["forget_key"], parameters).fetchall()
        if kind == "unique":
            gone += connection.execute(SQL["release_unique_key"], parameters).fetchall()
    return any(not row[1] for row in gone)


def period_key(connection: Conn, actor: str, message_id: str) -> str | None:
    """The key of its actor's that a job has for a period, if that has not passed."""
    row = connection.execute(SQL["period_key"], {"actor": actor, "message_id": message_id}).fetchone()
    return None if row is None else str(row[0])


def move_period_key(connection: Conn, period: PeriodKey) -> None:
    """Have a job's key for a period be another one, for the rest of it, or be free. Within the caller's transaction.

    Raises:
        KeyTaken: another job has that one.
    """
    actor, message_id, key, to = period
    if to is None:
        # Of this job alone: its period may have passed since it was read, and the key be somebody else's.
        connection.execute(SQL["free_key"], {"actor": actor, "message_id": message_id, "key": key}).fetchall()
        return
    expired = {"kind": "unique", "keys": json.dumps([{"scope": actor, "key": to}])}
    connection.execute(SQL["drop_expired_keys"], expired).fetchall()
    try:
        connection.execute(SQL["move_key"], {"actor": actor, "message_id": message_id, "key": key, "to": to}).fetchall()
    except UniqueViolation:
        raise KeyTaken(actor, to) from None


class _Found(NamedTuple):
    """What stands in the way of a send; without a row (``id`` None) its job was removed long ago."""

    scope: str
    key: str
    fingerprint: str | None
    message_id: str
    expired: bool
    id: int | None
    queue: str | None
    state: str | None
    payload: str | None
    options: str | None
    created_ms: int | None
    #: A limit decides when its job may run.
    limited: bool | None


def enqueue_one(connection: Conn, job: NewJob, insert: Insert, recognise: Recognise) -> Enqueued:
    """Write a job with keys, or find the one they stand for: one statement if it is new, as a rule two if it is not.

    Raises:
        IdempotencyConflict: its sender's key stands for another payload.
        JobExists: another job has its message id.
        LedgerUnavailable: what was in the way changed so often that it cannot be told.
    """
    sorting = _Sorting(connection, [job], insert, recognise)
    if not sorting.at_once():
        with connection.transaction():
            sorting.run()
    sorting.wake()
    return sorting.done[0]


def enqueue_batch(
    connection: Conn, jobs: Sequence[NewJob], insert: Insert, recognise: Recognise, *, lenient: bool = False
) -> list[Enqueued]:
    """The same for many, inside the caller's transaction; of equal keys among them the first counts.

    Parameters:
        lenient: a key that stands for another payload leads to its job instead of an error.
    """
    # Who has left a line in it wakes nobody: the caller has rows to lock yet, so the keepers' next look does.
    return _Sorting(connection, jobs, insert, recognise, lenient=lenient).run()


class _Sorting:
    """Sorts a batch's jobs into new ones and those that exist."""

    def __init__(
        self, connection: Conn, jobs: Sequence[NewJob], insert: Insert, recognise: Recognise, *, lenient: bool = False
    ) -> None:
        self._connection = connection
        self._jobs = jobs
        self._insert = insert
        self._recognise = recognise
        self._lenient = lenient
        #: By position in the batch.
        self.done: dict[int, Enqueued] = {}
        self._taken: dict[Kind, set[int]] = {"idempotency": set(), "unique": set()}
        self._rounds = ROUNDS
        self._left: list[str] = []

    def at_once(self) -> bool:
        """Write the one job in one statement, or look once what its only key stands for. False: it takes ``run``."""
        job = self._jobs[0]
        keys = [row for kind in self._taken if (row := _row(job, kind)) is not None]
        if len(keys) + (_active_key(job) is not None) != 1:
            return False
        self._rounds -= 1
        rows = self._insert(self._connection, [job], keys).fetchall()
        if rows:
            self.done[0] = Enqueued(rows[0][0], job.message_id, True)
        elif keys:
            self._settle(keys[0]["kind"], [0])
        else:
            self._settle_active([0])
        return bool(self.done)

    def run(self) -> list[Enqueued]:
        """All of them, inside a transaction."""
        for _ in range(self._rounds):
            self._take("idempotency")
            self._take("unique")
            self._write()
            if len(self.done) == len(self._jobs):
                return [self.done[position] for position in range(len(self._jobs))]
        stuck = self._jobs[self._open()[0]]
        raise LedgerUnavailable(f"a key of actor {stuck.actor!r} changed hands {ROUNDS} times while it was being sent")

    def wake(self) -> None:
        """The next in each line that a job has left has its turn; last of all, since whoever holds such a key waits for no row."""
        for key in sorted(set(self._left)):
            wake_line(self._connection, key)

    def _open(self) -> list[int]:
        return [position for position in range(len(self._jobs)) if position not in self.done]

    def _ready(self, kind: Kind | None) -> list[int]:
        """The open ones that have taken every key that comes before this kind; None: all keys."""
        before: list[Kind] = []
        if kind != "idempotency":
            before.append("idempotency")
        if kind is None:
            before.append("unique")
        return [
            position
            for position in self._open()
            if all(_row(self._jobs[position], k) is None or position in self._taken[k] for k in before)
        ]

    def _take(self, kind: Kind) -> None:
        """Take the keys of one kind, and settle what they refuse."""
        wanted: dict[tuple[str, str], int] = {}
        rows: list[dict[str, Any]] = []
        asking = []
        for position in self._ready(kind):
            row = _row(self._jobs[position], kind)
            if row is None or position in self._taken[kind]:
                continue
            asking.append(position)
            name = (row["scope"], row["key"])
            if name not in wanted:
                wanted[name] = position
                rows.append(row)
        if not rows:
            return
        for scope, key in self._connection.execute(SQL["take_keys"], {"keys": json.dumps(rows)}).fetchall():
            self._taken[kind].add(wanted[scope, key])
        self._settle(kind, [position for position in asking if position not in self._taken[kind]])

    def _settle(self, kind: Kind, refused: Sequence[int]) -> None:
        """What do the keys of these stand for? Those past their time are removed, for the next round to take."""
        if not refused:
            return
        names = _names(_row(self._jobs[position], kind) for position in refused)
        rows = self._connection.execute(SQL["keys_taken"], {"kind": kind, "keys": names}).fetchall()
        found = {(row[0], row[1]): _Found(*row) for row in rows}
        expired = [entry for entry in found.values() if entry.expired]
        if expired:
            names = _names({"scope": entry.scope, "key": entry.key} for entry in expired)
            self._connection.execute(SQL["drop_expired_keys"], {"kind": kind, "keys": names}).fetchall()
        under_way = {_id(self._jobs[position]) for position in self._open()}
        for position in refused:
            row = _row(self._jobs[position], kind)
            assert row is not None
            entry = found.get((row["scope"], row["key"]))
            if entry is None or entry.expired or (entry.id is None and entry.message_id in under_way):
                # Gone, or another of this very batch that is not written yet: the next round tells.
                continue
            self._compare(self._jobs[position], entry)
            self._end(position, entry)

    def _compare(self, job: NewJob, entry: _Found) -> None:
        assert job.control is not None
        sent = job.control.sent
        if entry.fingerprint is None or sent is None or entry.fingerprint in (sent.fingerprint, *sent.accepted) or self._lenient:
            return
        raise IdempotencyConflict(
            entry.key, job.actor, entry.message_id, fingerprint=sent.fingerprint, existing_fingerprint=entry.fingerprint
        )

    def _write(self) -> None:
        """Write the rows of those that have all their keys."""
        ready = self._ready(None)
        if not ready:
            return
        rows = self._insert(self._connection, [self._jobs[position] for position in ready], ()).fetchall()
        ids = {message_id: id_ for id_, message_id in rows}
        for position in ready:
            job = self._jobs[position]
            if (id_ := ids.pop(_id(job), None)) is not None:
                self.done[position] = Enqueued(id_, job.message_id, True)
        self._settle_active([position for position in ready if position not in self.done])

    def _settle_active(self, refused: Sequence[int]) -> None:
        """What keeps these rows out: an active job with the same key of the actor, or their own message id?"""
        if not refused:
            return
        keyed = [position for position in refused if _active_key(self._jobs[position]) is not None]
        names = _names({"scope": self._jobs[p].actor, "key": _active_key(self._jobs[p])} for p in keyed)
        rows = self._connection.execute(SQL["holders_of_keys"], {"keys": names}).fetchall()
        holders = {(row[0], row[1]): _Found(*row) for row in rows}
        for position in refused:
            job = self._jobs[position]
            entry = holders.get((job.actor, _active_key(job) or ""))
            if entry is None:
                known = self._connection.execute(SQL["existing_jobs"], {"message_ids": [job.message_id]}).fetchall()
                if known:
                    self.done[position] = self._recognise(self._connection, [job])[0]
            elif entry.message_id == _id(job) or self._joins(job, entry):
                self._end(position, entry)

    def _joins(self, job: NewJob, entry: _Found) -> bool:
        """Whether the send is the holder's job now. False: the holder has moved on, and the next round makes a new one."""
        assert job.control is not None
        assert job.control.unique is not None
        unique = job.control.unique
        if unique.mode != "debounce":
            return True
        parameters: dict[str, Any] = {"id": entry.id, "key": unique.key}
        if entry.state not in {state.value for state in WAITING}:
            self._connection.execute(SQL["let_go_of_key"], parameters).fetchall()
            return False
        max_wait = MAX_WAIT_DELAYS * job.delay if unique.max_wait is None else unique.max_wait
        parameters |= {"payload": job.payload, "delay": job.delay, "max_wait": max_wait, "options": None, "limited": False}
        if entry.limited or job.control.limits != Keys():
            with self._connection.transaction():
                return self._rekeyed(job, entry.message_id, parameters)
        return bool(self._connection.execute(SQL["debounce"], parameters).fetchall())

    def _rekeyed(self, job: NewJob, holder: str, parameters: dict[str, Any]) -> bool:
        """Debounce a holder that limits concern: with the latest arguments it counts as what the latest send says, or its actor makes of
        them. Raises: OptionError: the sender does not know the actor."""
        assert job.control is not None
        assert job.control.unique is not None
        waiting = lock_waiting(self._connection, holder)
        if waiting is None or waiting.unique_key != job.control.unique.key:
            return False
        left = None
        if job.control.unique.known:
            options = _with_limits(waiting, job)
            parameters |= {"options": options}
            # Before its time: what it was promised is void, and then it waits for its time alone.
            left = rekey(self._connection, waiting.id, job.actor, job.control.limits._replace(unique_key=waiting.unique_key))
        elif not self._lenient:
            refuse_without_actor(waiting._replace(unique_key=None), None, "send it from a program that imports the actor")
        self._connection.execute(SQL["debounce"], parameters | {"limited": True}).fetchall()
        self._connection.execute(SQL["ring_due"])
        if left is not None:
            self._left.append(left)
        return True

    def _end(self, position: int, entry: _Found) -> None:
        """The send is another job, or is the same send made again."""
        job = self._jobs[position]
        replayed = entry.message_id != _id(job) or entry.id is None
        if replayed and position in self._taken["idempotency"]:
            assert job.control is not None
            self._connection.execute(
                SQL["bind_key"],
                {
                    "scope": job.actor,
                    "key": job.control.idempotency_key,
                    "message_id": job.message_id,
                    "to": entry.message_id,
                },
            ).fetchall()
        first = None
        if replayed and entry.payload is not None:
            debounced = job.control is not None and job.control.unique is not None and job.control.unique.mode == "debounce"
            payload = json.loads(job.payload if debounced else entry.payload)
            options = json.loads(entry.options) if entry.options else {}
            first = First(
                entry.message_id, entry.queue or job.queue, payload["args"], payload["kwargs"], options, entry.created_ms or 0
            )
        self.done[position] = Enqueued(entry.id or 0, entry.message_id, False, replayed, first)


def _row(job: NewJob, kind: Kind) -> dict[str, Any] | None:
    """The row of the table ``idempotency`` for a job's key of this kind; None when it has none."""
    control = job.control
    if control is None:
        return None
    row = {"kind": kind, "scope": job.actor, "message_id": job.message_id}
    if kind == "idempotency" and control.sent is not None:
        return row | {"key": control.idempotency_key, "fingerprint": control.sent.fingerprint, "ttl": control.sent.ttl}
    if kind == "unique" and control.unique is not None and control.unique.period is not None:
        return row | {"key": control.unique.key, "fingerprint": None, "ttl": control.unique.period}
    return None


def _id(job: NewJob) -> str:
    """The message id as Postgres writes it."""
    return str(UUID(job.message_id))


def _active_key(job: NewJob) -> str | None:
    """The key of its actor that a job has while it is active."""
    return None if job.control is None else job.control.unique_key


def _names(rows: Iterable[dict[str, Any] | None]) -> str:
    """The keys of rows, each once, as JSON."""
    names = {(row["scope"], row["key"]): None for row in rows if row is not None}
    return json.dumps([{"scope": scope, "key": key} for scope, key in names])


def _with_limits(waiting: LockedJob, job: NewJob) -> str | None:
    """The options of a waiting job, with what the latest send says of limits instead of what an earlier one said; None: they stay."""
    old = waiting.options or {}
    said = json.loads(job.options) if job.options else {}
    new = {name: value for name, value in old.items() if name not in LIMIT_OPTIONS}
    new |= {name: value for name, value in said.items() if name in LIMIT_OPTIONS}
    return None if new == old else json.dumps(new)
