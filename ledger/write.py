"""The write path: each function is one guarded statement on the connection it is given.

Whoever calls decides about transactions and repeats; every statement here is safe to repeat after a lost reply (ids are made by
the caller, tokens guard the rest). Multi-row statements get their rows sorted by id, so that two of them lock in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from time import monotonic
from typing import Any, Final

from psycopg import Connection, Cursor, Pipeline
from psycopg.errors import UniqueViolation

from ledger import batches, keys
from ledger.arrays import plain, texts, words
from ledger.batches import Together
from ledger.database import BoundedConnection
from ledger.fingerprint import failure_kind
from ledger.limits import free_slots
from ledger.prepared import Prepared
from ledger.records import ClaimedJob, DueJob, Enqueued, Finish, JobControl, NewJob, Rescued, Unclaimed, WorkerRow
from ledger.repeats import recognise, sorted_out
from ledger.sql import SQL
from ledger.states import State

Conn = Connection[Any]

#: How long a published trigger may take to be claimed before it is looked for, in seconds, where nobody says LEASE.
PUBLISH_GRACE: Final = 30.0
#: Longest pause before a job runs again, in seconds: a hundred years. Far beyond it Postgres has no dates left, and the end of the
#: execution could not be written.
MAX_DELAY: Final = 100 * 365 * 86_400.0
#: Rows per statement of the keepers.
CHUNK: Final = 1_000
#: Rows per statement of a bulk insert: few enough that the server soon has something to do, enough that a statement's own cost is nothing.
PART: Final = 250

_by_id = attrgetter("id")
#: What of a job's control stands in its row.
_CONTROL: Final = tuple(field.name for field in fields(JobControl) if field.name not in ("sent", "unique"))


_ENQUEUE: Final = Prepared("switchyard_enqueue", SQL["enqueue"])


def enqueue(connection: BoundedConnection, job: NewJob) -> Enqueued:
    """Write one job on a connection that commits by itself, or recognise that this very send wrote it before.

    Within a transaction it is ``enqueue_many`` that leaves the caller able to go on when an id is taken.

    Raises:
        JobExists: another job, or one that has ended, has this message id.
    """
    if job.has_keys:
        return keys.enqueue_one(connection, job, _insert_controlled, recognise)
    if job.control is not None:
        return _written(connection, [job], _insert_controlled(connection, [job]).fetchall())[0]
    try:
        id_ = _ENQUEUE.run(
            connection,
            {
                "message_id": job.message_id,
                "queue": job.queue,
                "actor": job.actor,
                "priority": str(job.priority),
                "payload": job.payload,
                "options": job.options,
                "max_attempts": None if job.max_attempts is None else str(job.max_attempts),
                "max_lost": None if job.max_lost is None else str(job.max_lost),
                "parent_id": job.parent_id,
                "tags": None if job.tags is None else texts(job.tags),
                "broker": job.broker,
                "delay": str(job.delay),
                "grace": None if job.grace is None else str(job.grace),
                "max_age": None if job.max_age is None else str(job.max_age),
            },
        )
    except UniqueViolation as error:
        if error.diag.constraint_name != "job_message_id_key":
            raise
        return recognise(connection, [job])[0]
    return Enqueued(int(id_ or 0), job.message_id, True)


def enqueue_many(
    connection: Conn, jobs: Iterable[NewJob], whole: Together | None = None, *, lenient: bool = False
) -> list[Enqueued]:
    """Write many jobs in the order given, in one transaction: all or none.

    They are taken from ``jobs`` a few hundred at a time, while the server is at work on those before: making a row costs the sender more
    than writing it costs the server, and the two overlap (but for a part with keys). What ``jobs`` raises ends the transaction.

    Parameters:
        lenient: an idempotency key that stands for another payload is no error; the job it stands for is.

    Raises:
        JobExists, IdempotencyConflict: as ``enqueue``; then nothing was written.
    """
    written: list[Enqueued] = []
    rest = iter(jobs)
    with _pipelined(connection), connection.transaction():
        if whole is not None:
            whole.before(connection)
        sent: list[tuple[list[NewJob], Cursor[Any] | list[Enqueued]]] = []
        while part := list(islice(rest, PART)):
            if any(job.has_keys for job in part):
                sent.append((part, keys.enqueue_batch(connection, part, _insert_controlled, recognise, lenient=lenient)))
            else:
                sent.append((part, _insert(connection, part)))
        for part, answer in sent:
            written += answer if isinstance(answer, list) else _written(connection, part, answer.fetchall())
        if whole is not None:
            keys.refuse_others(written)
            whole.after(connection, written)
    return written


def _pipelined(connection: Conn) -> AbstractContextManager[object]:
    """Send statements without waiting for the answers to those before, where the connection is ours and libpq can (14 and later)."""
    return connection.pipeline() if isinstance(connection, Connection) and Pipeline.is_supported() else nullcontext()


def controlled_rows(jobs: Iterable[NewJob]) -> list[dict[str, Any]]:
    """Jobs in the form that ``enqueue_controlled`` takes, and that a batch keeps its callbacks in."""
    rows = []
    for job in jobs:
        row = job._asdict()
        control = row.pop("control") or JobControl()
        rows.append(row | {name: value for name in _CONTROL if (value := getattr(control, name)) is not None})
    return rows


def _insert_controlled(connection: Conn, jobs: Sequence[NewJob], taking: Sequence[dict[str, Any]] = ()) -> Cursor[Any]:
    parameters = {"rows": json.dumps(controlled_rows(jobs)), "keys": json.dumps(taking)}
    return connection.execute(SQL["enqueue_controlled"], parameters)


def _insert(connection: Conn, jobs: Sequence[NewJob]) -> Cursor[Any]:
    control = jobs[0].control
    # Children of one group share what is special about them.
    if any(job.control is not control for job in jobs) or (control is not None and not control.is_membership):
        return _insert_controlled(connection, jobs)
    return connection.execute(
        SQL["enqueue_many"],
        {
            "message_ids": texts(job.message_id for job in jobs),
            "queues": words(job.queue for job in jobs),
            "actors": words(job.actor for job in jobs),
            "priorities": plain(job.priority for job in jobs),
            "payloads": texts(job.payload for job in jobs),
            "options": texts(job.options for job in jobs),
            "max_attempts": plain(job.max_attempts for job in jobs),
            "max_losts": plain(job.max_lost for job in jobs),
            "parent_ids": words(job.parent_id for job in jobs),
            # An array of arrays must be rectangular, so each job's tags travel as the text of one.
            "tags": texts(None if job.tags is None else texts(job.tags) for job in jobs),
            "brokers": words(job.broker for job in jobs),
            "delays": plain(job.delay for job in jobs),
            "graces": plain(job.grace for job in jobs),
            "max_ages": plain(job.max_age for job in jobs),
            "batch_id": None if control is None else control.batch_id,
        },
    )


def _written(connection: Conn, jobs: Sequence[NewJob], rows: Sequence[tuple[int, str]]) -> list[Enqueued]:
    ids = {message_id: id_ for id_, message_id in rows}
    if len(ids) == len(jobs):
        # A KeyError: an id that Postgres writes in another form, or one that stands in the batch twice.
        with suppress(KeyError):
            return [Enqueued(ids[job.message_id], job.message_id, True) for job in jobs]
    return sorted_out(connection, jobs, ids)


def claim_by_id(
    connection: Conn, ids: Sequence[int], *, actors: Sequence[str], worker: str, token: str, lease: float, suspects: bool = False
) -> list[ClaimedJob]:
    """Claim those of the rows that are pending, of a known actor, and (not) suspects; the rest stays as it is."""
    rows = connection.execute(
        SQL["claim_by_id"],
        {
            "ids": plain(sorted(set(ids))),
            "actors": actors,
            "worker": worker,
            "token": token,
            "lease": lease,
            "suspects": suspects,
        },
    ).fetchall()
    # The update returns rows by id; the triggers came in the order they should run in.
    position = {id_: place for place, id_ in enumerate(ids)}
    return [ClaimedJob(*row) for row in sorted(rows, key=lambda row: position[row[0]])]


def claim_next(
    connection: Conn,
    queue: str,
    limit: int,
    *,
    actors: Sequence[str],
    worker: str,
    token: str,
    lease: float,
    suspects: bool = False,
) -> list[ClaimedJob]:
    """Claim up to ``limit`` rows of one queue of the Postgres broker, best priority and oldest first."""
    rows = connection.execute(
        SQL["claim_next"],
        {
            "queue": queue,
            "limit": limit,
            "actors": actors,
            "worker": worker,
            "token": token,
            "lease": lease,
            "suspects": suspects,
        },
    ).fetchall()
    rows.sort(key=lambda row: (row[-1], row[0]))
    return [ClaimedJob(*row[:-1]) for row in rows]


def claimed_with_token(connection: Conn, *, worker: str, token: str) -> list[ClaimedJob]:
    """What a claim took whose reply was lost."""
    rows = connection.execute(SQL["claimed_with_token"], {"worker": worker, "token": token}).fetchall()
    return [ClaimedJob(*row) for row in rows]


def ready_queues(connection: Conn, queues: Sequence[str], actors: Sequence[str]) -> list[tuple[str, bool]]:
    """The queues of the Postgres broker that hold something claimable, each with whether it is a suspect."""
    rows = connection.execute(SQL["ready_queues"], {"queues": queues, "actors": actors}).fetchall()
    return [(row[0], row[1]) for row in rows]


def why_not_claimed(connection: Conn, ids: Sequence[int]) -> dict[int, Unclaimed]:
    """Rows that a claim left alone; ids that no row has are missing."""
    rows = connection.execute(SQL["why_not_claimed"], {"ids": list(ids)}).fetchall()
    return {row[0]: Unclaimed(State(row[1]), *row[2:]) for row in rows}


def postpone_suspects(connection: Conn, ids: Sequence[int], delay: float) -> None:
    """Push back the repair of suspects that this process keeps in mind (``delay`` in seconds)."""
    connection.execute(SQL["postpone_suspects"], {"ids": sorted(ids), "delay": delay})


def postpone_unknown(connection: Conn, ids: Sequence[int], actors: Sequence[str], delay: float) -> None:
    """Have the relay offer jobs of an unknown actor again, after ``delay`` seconds doubling up to a minute."""
    connection.execute(SQL["postpone_unknown"], {"ids": sorted(ids), "actors": actors, "delay": delay})


def record_start(connection: Conn, id_: int, token: str, lease: float) -> bool:
    """Commit that a suspect, or a job that may not be lost twice, starts. False: the claim is lost and it must not."""
    return connection.execute(SQL["record_start"], {"id": id_, "token": token, "lease": lease}).fetchone() is not None


def finish(connection: Conn, finishes: Iterable[Finish]) -> set[int]:
    """Write how a batch of executions ended, the jobs that follow from it, and what it hands to those that wait for it, in one transaction.

    Returns the ids that were still ours; of the others nothing was written, neither end nor children.
    """
    completed: list[Finish] = []
    otherwise: list[Finish] = []
    more = False
    for entry in sorted(finishes, key=_by_id):
        (completed if entry.state is State.COMPLETED else otherwise).append(entry)
        more = more or entry.limited or bool(entry.children) or entry.upstream is not None
    if not otherwise and not more:
        return _finish_completed(connection, completed)
    with connection.transaction():
        if completed and otherwise:
            # Two statements, one order: whoever locks many rows by their ids meets this batch without a deadlock.
            ids = plain(sorted(entry.id for entry in (*completed, *otherwise)))
            connection.execute(SQL["lock_in_order"], {"ids": ids})
        done = _finish_completed(connection, completed) if completed else set()
        outcomes, cancelled = _finish_otherwise(connection, otherwise) if otherwise else ({}, [])
        done |= outcomes.keys()
        # What follows from an end does not follow if the job was cancelled instead.
        following = [
            child
            for entry in (*completed, *otherwise)
            if entry.id in done and outcomes.get(entry.id, entry.outcome) == entry.outcome
            for child in entry.children
        ]
        if following:
            # The end stands whatever a follower's key stands for.
            enqueue_many(connection, following, lenient=True)
        batches.follow(
            connection,
            completed=[entry for entry in completed if entry.upstream is not None and entry.id in done],
            # Whoever noted the end: a foreign middleware that skips a step knows of none behind it.
            cancelled=cancelled,
        )
        # Last, since it waits for whoever decides about a key: the locks of one batch are held for no longer than they must.
        if freed := [entry.id for entry in (*completed, *otherwise) if entry.limited and entry.id in done]:
            free_slots(connection, freed)
    return done


def _finish_completed(connection: Conn, entries: list[Finish]) -> set[int]:
    now = monotonic()
    rows = connection.execute(
        SQL["finish_completed"],
        {
            "ids": plain(entry.id for entry in entries),
            "tokens": plain(entry.token for entry in entries),
            "results": texts(entry.result for entry in entries),
            # In whole microseconds: Python writes an integer in a third of the time that it takes for a float.
            "started_us": plain(int((now - entry.started) * 1e6) for entry in entries),
            "finished_us": plain(int((now - entry.finished) * 1e6) for entry in entries),
        },
    ).fetchall()
    return {row[0] for row in rows}


def _finish_otherwise(connection: Conn, entries: list[Finish]) -> tuple[dict[int, str], list[str]]:
    """Returns the outcomes that were written, by row, and the message ids of jobs that are cancelled."""
    now = monotonic()
    rows = connection.execute(
        SQL["finish_otherwise"],
        {
            "ids": [entry.id for entry in entries],
            "tokens": [entry.token for entry in entries],
            "states": [entry.state.value for entry in entries],
            "outcomes": [entry.outcome for entry in entries],
            "delays": [min(entry.delay, MAX_DELAY) for entry in entries],
            "started_ages": [now - entry.started for entry in entries],
            "finished_ages": [now - entry.finished for entry in entries],
            "error_types": [entry.error_type for entry in entries],
            "errors": [entry.error for entry in entries],
            "tracebacks": [entry.traceback for entry in entries],
            "dead_reasons": [entry.dead_reason for entry in entries],
            "kinds": [
                failure_kind(entry.dead_reason, entry.error, entry.traceback) if entry.state is State.DEAD else None
                for entry in entries
            ],
        },
    ).fetchall()
    return {row[0]: row[1] for row in rows}, [row[2] for row in rows if row[2] is not None]


def own_commits(connection: Conn, finishes: Sequence[Finish]) -> set[int]:
    """Of finishes that matched no row: those that an earlier try committed, its reply lost."""
    parameters = {"ids": [entry.id for entry in finishes], "tokens": [entry.token for entry in finishes]}
    return {row[0] for row in connection.execute(SQL["own_commits"], parameters).fetchall()}


def release_unstarted(connection: Conn, claims: Sequence[tuple[int, str]]) -> set[int]:
    """Give back claims (id, token) that never started; no attempt is spent. Returns the ids that were still ours."""
    ordered = sorted(claims)
    parameters = {"ids": [id_ for id_, _ in ordered], "tokens": [token for _, token in ordered]}
    with connection.transaction():
        rows = connection.execute(SQL["release_unstarted"], parameters).fetchall()
        _take_along(connection, rows)
        ours = {id_ for id_, *_ in rows}
        free_slots(connection, ours)
    return ours


def beat(connection: Conn, worker: WorkerRow) -> None:
    """Say that a worker process lives."""
    connection.execute(
        SQL["beat"],
        {
            "id": worker.id,
            "host": worker.host,
            "pid": worker.pid,
            "broker": worker.broker,
            "queues": worker.queues,
            "threads": worker.threads,
            "running": worker.running,
            "counters": json.dumps(worker.counters),
            "version": worker.version,
            "lease": worker.lease,
            "actors": worker.actors,
            "routes": json.dumps(worker.routes),
            "consumes": worker.consumes,
        },
    )


def extend_leases(connection: Conn, claims: Sequence[tuple[int, str, float | None]], lease: float) -> set[int]:
    """Extend the leases of claims (id, token, seconds since the start or None). Returns the ids that are still ours."""
    ordered = sorted(claims, key=lambda claim: claim[0])
    ids, tokens = [claim[0] for claim in ordered], [claim[1] for claim in ordered]
    parameters = {"ids": ids, "tokens": tokens, "started_ages": [claim[2] for claim in ordered], "lease": lease}
    ours = {row[0] for row in connection.execute(SQL["extend_leases"], parameters).fetchall()}
    if len(ours) < len(ids):
        ours |= {row[0] for row in connection.execute(SQL["still_held"], {"ids": ids, "tokens": tokens}).fetchall()}
    return ours


def retire_worker(connection: Conn, worker_id: str) -> None:
    """Remove the row of a process that leaves in good order."""
    connection.execute(SQL["retire_worker"], {"id": worker_id})


def record_progress(connection: Conn, id_: int, token: str, progress: float, stage: str | None) -> bool:
    """Store a running job's progress. False: the claim is lost."""
    parameters = {"id": id_, "token": token, "progress": progress, "stage": stage}
    return connection.execute(SQL["record_progress"], parameters).fetchone() is not None


def append_log(connection: Conn, id_: int, token: str, lines: Sequence[str], ages: Sequence[float]) -> bool:
    """Store lines of a running job's log, each with its age in seconds. False: the claim is lost."""
    parameters = {"id": id_, "token": token, "lines": list(lines), "ages": list(ages)}
    return connection.execute(SQL["append_log"], parameters).fetchone() is not None


def relay_due(
    connection: Conn,
    *,
    own: str,
    carrying: Sequence[str],
    reachable: Sequence[str],
    refused: Iterable[tuple[str, str]] = (),
    grace: float = PUBLISH_GRACE,
    limit: int = CHUNK,
    age: float | None = None,
    now: object = None,
) -> list[DueJob]:
    """Make up to ``limit`` due rows pending, each at the route of its queue, and push back their next look; the caller publishes those
    that are not parked.

    Parameters:
        own: the broker of the caller's settings, for queues that have no route yet.
        carrying: the brokers that carry triggers; at the others rows need no further look.
        reachable: the brokers that the caller can publish to; rows of the others are left alone.
        refused: brokers with queues that they refuse; these rows are left alone, too.
        grace: seconds after which a trigger that was not claimed is looked for; LEASE.
        age: only rows that became due at most so many seconds ago, where the caller has seen what was left alone before; None: all.
        now: a ``datetime`` instead of the database's clock, for tests.
    """
    parameters = {
        "own": own,
        "carrying": list(carrying),
        "reachable": list(reachable),
        # A broker's name has no space.
        "refused": [f"{broker} {queue}" for broker, queue in refused],
        "limit": limit,
        "grace": grace,
        "age": age,
        "now": now,
    }
    return [DueJob(*row) for row in connection.execute(SQL["relay_due"], parameters).fetchall()]


def make_due(connection: Conn, ids: Sequence[int]) -> None:
    """Triggers that did not reach their broker: the relay publishes these rows at once."""
    connection.execute(SQL["make_due"], {"ids": sorted(ids)})


def next_due(connection: Conn) -> float | None:
    """Seconds until the relay has something to do (negative: overdue); None when nothing waits."""
    row = connection.execute(SQL["next_due"], {"actors": []}).fetchone()
    return row[0] if row else None


def expired_workers(connection: Conn, now: object = None) -> list[tuple[str, bool]]:
    """Workers with claims past their lease, each with whether its process is alive all the same."""
    return [(row[0], row[1]) for row in connection.execute(SQL["expired_workers"], {"now": now}).fetchall()]


def rescue_worker(
    connection: Conn, worker: str, *, alive: bool, max_lost: int, backoff: float = 1.0, now: object = None
) -> list[Rescued]:
    """Take back the expired claims of one worker; empty when another rescuer is at it, or a lease of a dead one still runs."""
    with connection.transaction():
        row = connection.execute(SQL["rescue_lock"], {"worker": worker}).fetchone()
        if row is None or not row[0]:
            return []
        parameters = {"worker": worker, "alive": alive, "max_lost": max_lost, "backoff": backoff, "now": now}
        rows = connection.execute(SQL["rescue_worker"], parameters).fetchall()
        _take_along(connection, rows)
        free_slots(connection, [row[0] for row in rows])
    return [Rescued(row[0], State(row[1]), row[2], row[3]) for row in rows]


def _take_along(connection: Conn, rows: Sequence[tuple[Any, ...]]) -> None:
    """Cancel what waits for jobs that were cancelled: the last column is the message id of such a row."""
    batches.follow(connection, completed=[], cancelled=[row[-1] for row in rows if row[-1] is not None])


def replay(connection: Conn, message_id: str) -> bool:
    """Begin a new generation of a dead or cancelled job, as it is (``ledger.dead`` knows more). False: it is neither."""
    values = {"message_id": message_id, "queue": None, "payload": None}
    with connection.transaction():
        done = connection.execute(SQL["replay"], values).fetchone() is not None
        if done:
            batches.wait_again(connection, [message_id])
    return done
