"""Rows of workflows: batches, their jobs, steps that wait, and bringing them to their ends."""

from __future__ import annotations

import json
from uuid import uuid4

from ledger import batches, write
from ledger.records import JobControl, NewBatch
from ledger.states import State
from tests.ledger.factory import add, claim, completed, failed, fetch, new_job


def callback(name: str) -> list[dict[str, object]]:
    """What a batch keeps of a callback."""
    return write.controlled_rows([new_job(actor=name, grace=0.0)])


def add_batch(ledger, *, total: int = 0, **fields) -> str:
    """A batch, without its jobs."""
    id_ = str(uuid4())
    given = {"on_complete": callback("complete"), "on_success": callback("success"), "on_death": callback("death")}
    batches.make(ledger, [NewBatch(**({"id": id_, "root_id": id_, "total": total} | given | fields))])
    return id_


def add_members(ledger, batch: str, count: int = 1, **fields) -> list[int]:
    """Jobs of a batch."""
    return [add(ledger, control=JobControl(batch_id=batch), **fields) for _ in range(count)]


def add_step(
    ledger, upstream: str | int, *, batch: str | None = None, piped: bool = True, followed: bool = False, **fields
) -> int:
    """A step that waits for a job, by its row's id, or for a batch."""
    waits_for = str(fetch(ledger, upstream, "message_id")) if isinstance(upstream, int) else upstream
    options = {"piped": True} if piped else {}
    options |= fields.pop("options", {}) | ({"followed": True} if followed else {})
    control = JobControl(upstream_id=waits_for, wait_reason="upstream", batch_id=batch)
    return add(ledger, control=control, options=json.dumps(options), **fields)


def end(ledger, *ids: int, state: State = State.COMPLETED, result: str = "null") -> None:
    """Run jobs, each to its end, and hand on what they returned."""
    for id_ in ids:
        by = claim(ledger, id_)
        ending = completed(id_, by, result) if state is State.COMPLETED else failed(id_, by, state=state)
        if state is State.CANCELLED:
            ending.outcome = "cancelled"
        ending.upstream, ending.handed = str(fetch(ledger, id_, "message_id")), result
        assert write.finish(ledger, [ending]) == {id_}


def replay(ledger, id_: int) -> None:
    assert write.replay(ledger, str(fetch(ledger, id_, "message_id")))


def sent(ledger, actors: tuple[str, ...] = ("complete", "success", "death")) -> list[str]:
    """The callbacks that were sent, in that order."""
    rows = ledger.execute("SELECT actor FROM switchyard.job WHERE actor = ANY(%s) ORDER BY id", [list(actors)]).fetchall()
    return [actor for (actor,) in rows]


def name_of(ledger, id_: int) -> str:
    """The message id of a row."""
    return str(fetch(ledger, id_, "message_id"))
