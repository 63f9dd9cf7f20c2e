"""Legal rows in any state, each reached by the same functions that the product uses."""

from __future__ import annotations

from time import monotonic
from typing import Any
from uuid import uuid4

from psycopg import Connection

from ledger import control, write
from ledger.records import ClaimedJob, DueJob, Finish, NewJob, WorkerRow
from ledger.states import State
from ledger.tables import job

Conn = Connection[Any]

LEASE = 30.0
PAYLOAD = '{"args": [], "kwargs": {}}'


def new_job(**fields: Any) -> NewJob:
    """A job of actor ``work`` on queue ``default`` of the Postgres broker, unless told otherwise."""
    defaults: dict[str, Any] = {
        "message_id": str(uuid4()), "queue": "default", "actor": "work", "payload": PAYLOAD, "broker": "postgres",
        "max_attempts": 3,
    }  # fmt: skip
    return NewJob(**(defaults | fields))


def token() -> str:
    """A claim's token."""
    return str(uuid4())


def add(ledger: Conn, **fields: Any) -> int:
    """Enqueue one job and return its row's id."""
    return write.enqueue(ledger, new_job(**fields)).id


def claim(
    ledger: Conn, *ids: int, holder: str = "w1", by: str | None = None, lease: float = LEASE, suspects: bool = False
) -> str:
    """Claim rows by id, make sure that it worked, and return the token."""
    by = by or token()
    got = write.claim_by_id(ledger, ids, actors=["work"], worker=holder, token=by, lease=lease, suspects=suspects)
    assert sorted(job.id for job in got) == sorted(ids)
    return by


def claim_next(ledger: Conn, limit: int = 1, *, queue: str = "default", **fields: Any) -> list[ClaimedJob]:
    """Claim from the Postgres broker's queue."""
    arguments: dict[str, Any] = {"actors": ["work"], "worker": "w1", "token": token(), "lease": LEASE}
    return write.claim_next(ledger, queue, limit, **(arguments | fields))


def completed(id_: int, by: str, result: str | None = None) -> Finish:
    """An execution of half a second that ended well."""
    return Finish(id=id_, token=by, state=State.COMPLETED, started=monotonic() - 0.5, finished=monotonic(), result=result)


def failed(id_: int, by: str, *, state: State = State.RETRYING, delay: float = 60.0, **fields: Any) -> Finish:
    """An execution that failed, to be tried again in a minute."""
    defaults: dict[str, Any] = {
        "outcome": "failed", "error_type": "ValueError", "error": "no", "traceback": "Traceback …",
        "dead_reason": "max_retries" if state is State.DEAD else None,
    }  # fmt: skip
    now = monotonic()
    return Finish(id=id_, token=by, state=state, started=now - 0.5, finished=now, delay=delay, **(defaults | fields))


def released(id_: int, by: str) -> Finish:
    """An execution that was cut short by a shutdown."""
    return Finish(id=id_, token=by, state=State.PENDING, started=monotonic(), finished=monotonic(), outcome="released")


def die(ledger: Conn, error: str = "no", *, reason: str = "max_retries", error_type: str = "ValueError", **fields: Any) -> int:
    """A job whose worker ended it as dead, its row's id."""
    id_ = add(ledger, **fields)
    by = claim(ledger, id_)
    write.finish(ledger, [failed(id_, by, state=State.DEAD, error=error, error_type=error_type, dead_reason=reason)])
    return id_


def name_of(ledger: Conn, id_: int) -> str:
    """The message id of a row."""
    return str(fetch(ledger, id_, "message_id"))


def add_in(ledger: Conn, state: State, **fields: Any) -> int:
    """A job in the given state."""
    id_ = add(ledger, **({"delay": 3_600.0} if state is State.SCHEDULED else {}), **fields)
    if state in (State.SCHEDULED, State.PENDING):
        return id_
    if state is State.CANCELLED:
        message_id = fetch(ledger, id_, "message_id")
        assert control.cancel(ledger, str(message_id)) is State.CANCELLED
        return id_
    by = claim(ledger, id_)
    if state is State.COMPLETED:
        write.finish(ledger, [completed(id_, by)])
    elif state in (State.RETRYING, State.DEAD):
        write.finish(ledger, [failed(id_, by, state=state)])
    return id_


def row(ledger: Conn, id_: int) -> dict[str, Any]:
    """Every column of a job's row."""
    cursor = ledger.execute("SELECT * FROM switchyard.job WHERE id = %s", [id_])
    values = cursor.fetchone()
    assert values is not None
    assert cursor.description is not None
    return {column.name: value for column, value in zip(cursor.description, values, strict=True)}


def fetch(ledger: Conn, id_: int, column: str) -> Any:
    """One column of a job's row."""
    if column not in job.c:
        raise KeyError(column)
    found = ledger.execute(f"SELECT {column} FROM switchyard.job WHERE id = %s".encode(), [id_]).fetchone()  # noqa: S608
    assert found is not None
    return found[0]


def history(ledger: Conn, id_: int) -> list[tuple[int, int, str]]:
    """Generation, attempt and outcome of each row of a job's history."""
    return ledger.execute(
        "SELECT generation, attempt, outcome FROM switchyard.attempt WHERE job_id = %s ORDER BY 1, 2", [id_]
    ).fetchall()


def clear(ledger: Conn) -> None:
    """Empty the ledger, also of active jobs, whose removal is refused."""
    with ledger.transaction():
        ledger.execute("SET LOCAL session_replication_role = replica")
        for table in ("job_log", "attempt", "job", "batch", "pause", "dead_notice"):
            ledger.execute(f"DELETE FROM switchyard.{table}")  # noqa: S608


def worker_row(id_: str = "w1", *, lease: float = LEASE) -> WorkerRow:
    """A worker process's account of itself."""
    return WorkerRow(id=id_, host="here", pid=1, broker="postgres", queues=["default"], threads=8, lease=lease)


def relay_due(ledger: Conn, broker: str = "postgres", **fields: Any) -> list[DueJob]:
    """Relay as a keeper whose settings name ``broker`` and that reaches every broker."""
    everywhere = {"carrying": ["redis", "rabbitmq"], "reachable": ["postgres", "redis", "rabbitmq"]}
    return write.relay_due(ledger, own=broker, **(everywhere | fields))


def age_lease(ledger: Conn, *ids: int, seconds: float = 3_600.0) -> None:
    """Let the leases of these rows have run out long ago."""
    ledger.execute(
        "UPDATE switchyard.job SET lease_until = lease_until - make_interval(secs => %s) WHERE id = ANY(%s)", [seconds, list(ids)]
    )
