"""Workflows in the ledger: what steps get from those before them, and how batches end.

A step that waits is fed in the transaction that completes what it waits for. A batch ends by a statement of its own after the commit of
whatever ended its last job: look, and only if there is news, hold the batch's row, look again, and mark it, with its callbacks and what
it hands on in the same transaction. So an end is seen once, by whoever comes first, however many look at once; and if nobody does (a
process died in between, a rescue or an expiry ended the job), the keeper's look comes. Every function may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from psycopg import Connection

from errors import BatchClosed, BatchNotFound
from ledger.records import Enqueued, Finish, NewBatch, NewJob
from ledger.sql import SQL

Conn = Connection[Any]

#: Longest arguments of a step with the result that it waited for, in bytes of JSON.
MAX_FED_BYTES: Final = 16_777_216


class Together(Protocol):
    """What jobs that are written together belong to: takes part in their transaction. All of it may be repeated after a lost reply."""

    def before(self, connection: Conn) -> None:
        """Write, or hold, what the jobs belong to."""

    def place(self, position: int, job: NewJob) -> NewJob:
        """The row of the message at this position, with its place in the whole."""

    def after(self, connection: Conn, enqueued: Sequence[Enqueued]) -> None:
        """The rows are written."""


class News(NamedTuple):
    """What a look found that nobody has marked yet."""

    id: str
    died: bool
    completed: bool
    succeeded: bool


def make(connection: Conn, batches: Sequence[NewBatch]) -> None:
    """Write batches, in the transaction that writes their jobs."""
    if batches:
        connection.execute(SQL["make_batches"], {"rows": json.dumps([batch._asdict() for batch in batches])}).fetchall()


def follow(connection: Conn, *, completed: Sequence[Finish], cancelled: Sequence[str]) -> None:
    """Move on what waits for jobs that ended, in the transaction of their ends: the completed feed it, the cancelled take it along."""
    if completed:
        feed(connection, [(entry.upstream or "", entry.handed) for entry in completed])
    if cancelled:
        cancel_followers(connection, cancelled)


def feed(connection: Conn, results: Sequence[tuple[str, str]]) -> None:
    """Give what waits for jobs or batches (id, result as JSON text) their results, and make it due."""
    upstreams = [upstream for upstream, _ in results]
    texts = [text for _, text in results]
    connection.execute(SQL["feed_steps"], {"upstreams": upstreams, "results": texts, "limit": MAX_FED_BYTES}).fetchall()
    connection.execute(SQL["begin_batches"], {"upstreams": upstreams}).fetchall()


def cancel_followers(connection: Conn, upstreams: Sequence[str]) -> int:
    """Cancel everything that waits for these jobs or batches, near and far. Returns how many jobs that were."""
    return len(connection.execute(SQL["cancel_followers"], {"upstreams": list(upstreams)}).fetchall())


def cancel_hopeless(connection: Conn, removed: Sequence[tuple[str, str | None]]) -> int:
    """Cancel everything that waits for jobs (id, batch) which were removed before they were completed, and for the batches they were in,
    which cannot succeed any more. Returns how many jobs that were."""
    ids = sorted({batch for _, batch in removed if batch is not None})
    around = [row[0] for row in connection.execute(SQL["batches_around"], {"ids": ids}).fetchall()] if ids else []
    if around:
        connection.execute(SQL["lock_shrinking"], {"ids": around}).fetchall()
        connection.execute(SQL["shrink_batches"], {"ids": ids}).fetchall()
    return cancel_followers(connection, [message_id for message_id, _ in removed] + around)


def wait_again(connection: Conn, message_ids: Sequence[str]) -> set[str]:
    """Let jobs that a replay has just made pending or scheduled take their places in their workflows again; in the replay's transaction.
    Steps wait for what they were never given.

    Returns those for which that is no use, and which the caller has to roll back: what a step waits for, near or far, was removed, so it
    would wait for ever; or retention has begun to remove the workflow, so it cannot be completed.
    """
    connection.execute(SQL["wait_again"], {"message_ids": list(message_ids)})
    rows = connection.execute(SQL["relied_on"], {"message_ids": list(message_ids)}).fetchall()
    if not rows:
        return set()
    needed = sorted({id_ for _, id_, outermost in rows if not outermost})
    roots = sorted({id_ for _, id_, outermost in rows if outermost})
    # Jobs first, as whoever discards one does. All before they are looked at, in a snapshot taken afterwards: whoever removes a job comes
    # before that, or sees the replay.
    present = {row[0] for row in connection.execute(SQL["hold_upstreams"], {"ids": needed}).fetchall()} if needed else set()
    connection.execute(SQL["hold_batches"], {"ids": sorted({*needed, *roots})}).fetchall()
    if needed:
        present |= {row[0] for row in connection.execute(SQL["hopeful_batches"], {"ids": needed}).fetchall()}
    whole = {row[0] for row in connection.execute(SQL["whole_workflows"], {"ids": roots}).fetchall()} if roots else set()
    return {replayed for replayed, id_, outermost in rows if id_ not in (whole if outermost else present)}


def was_pruned(connection: Conn, message_id: str) -> bool:
    """Whether retention has begun to remove the workflow that a job is in."""
    row = connection.execute(SQL["was_pruned"], {"message_id": message_id}).fetchone()
    return row is not None and bool(row[0])


def close(connection: Conn, ids: Sequence[str], *, now: datetime | None = None) -> bool:
    """End those of these batches that have come to an end, and those around them. Returns whether anything was made due.

    Parameters:
        now: instead of the database's clock, for tests.
    """
    moved = False
    wanted = sorted(set(ids))
    while wanted and _look(connection, wanted, now):
        with connection.transaction():
            connection.execute(SQL["lock_batches"], {"ids": wanted}).fetchall()
            # A snapshot of its own, taken after the lock was had: whoever held it before is seen.
            news = _look(connection, wanted, now)
            parents, sent = _mark(connection, news) if news else ([], False)
        moved = moved or sent
        wanted = sorted(set(parents))
    return moved


def _look(connection: Conn, ids: Sequence[str], now: datetime | None) -> list[News]:
    rows = connection.execute(SQL["look_at_batches"], {"ids": list(ids), "now": now}).fetchall()
    return [News(*row) for row in rows]


def _mark(connection: Conn, news: Sequence[News]) -> tuple[list[str], bool]:
    """Returns the batches around those marked, and whether something was sent or fed."""
    parameters: dict[str, list[Any]] = {
        "ids": [entry.id for entry in news],
        "died": [entry.died for entry in news],
        "completed": [entry.completed for entry in news],
        "succeeded": [entry.succeeded for entry in news],
    }
    marked = connection.execute(SQL["mark_batches"], parameters).fetchall()
    callbacks = [row for entry in marked for text in entry[3:6] if text is not None for row in json.loads(text)]
    if callbacks:
        connection.execute(SQL["enqueue_controlled"], {"rows": json.dumps(callbacks), "keys": "[]"}).fetchall()
    following = [id_ for id_, _, followed, *_, succeeded in marked if followed and succeeded]
    if following:
        feed(connection, [(id_, _fitting_results(connection, id_)) for id_ in following])
    return [parent for _, parent, *_ in marked if parent is not None], bool(callbacks or following)


def _fitting_results(connection: Conn, id_: str) -> str:
    """The results of a batch; where they take more than any step may get, a text that is as much too long: asked for first, since all the
    results of a large batch need not fit into the memory of a worker, and the next one would try again."""
    (size,) = connection.execute(SQL["size_of_results"], {"id": id_}).fetchall()[0]
    return _results(connection, id_) if size <= MAX_FED_BYTES else f'"{"." * MAX_FED_BYTES}"'


def _results(connection: Conn, id_: str) -> str:
    """The results of a batch as the JSON text of a list; of a batch in it, a list in the place where it stands."""
    texts = [row[0] for row in connection.execute(SQL["batch_results"], {"id": id_}).fetchall()]
    nested = connection.execute(SQL["nested_batches"], {"id": id_}).fetchall()
    for shift, (inner, place) in enumerate(nested):
        texts.insert(place + shift, _results(connection, inner))
    return f"[{','.join(texts)}]"


def set_callbacks(connection: Conn, id_: str, rows: Sequence[dict[str, Any]] | None) -> None:
    """Let a stock group know what to send when it is complete; the first child's word counts."""
    if rows:
        connection.execute(SQL["set_callbacks"], {"id": id_, "rows": json.dumps(rows)}).fetchall()


def hold_open(connection: Conn, id_: str) -> None:
    """Keep a batch from ending until the transaction is over. Raises: BatchNotFound, BatchClosed."""
    row = connection.execute(SQL["open_batch"], {"id": id_}).fetchone()
    if row is None:
        raise BatchNotFound(id_)
    if row[0] is not None:
        raise BatchClosed(id_, row[0])


def grow(connection: Conn, id_: str, count: int) -> None:
    """Count jobs that were added, in the transaction that wrote them."""
    connection.execute(SQL["grow_batch"], {"id": id_, "count": count}).fetchall()


def to_check(connection: Conn, after: int, limit: int) -> list[tuple[int, str]]:
    """A page of the batches that may have news, with their numbers."""
    return [(row[0], row[1]) for row in connection.execute(SQL["batches_to_check"], {"after": after, "limit": limit}).fetchall()]


def prune(connection: Conn, *, keep: float, limit: int, after: int = 0, now: datetime | None = None) -> int:
    """Remove batches that were complete ``keep`` seconds ago and have no jobs left. Returns how many."""
    parameters = {"keep": keep, "limit": limit, "after": after, "now": now}
    return len(connection.execute(SQL["prune_batches"], parameters).fetchall())
