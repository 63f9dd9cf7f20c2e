"""What a running job remembers from one execution to the next; every write carries its claim's token."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from ledger.sql import SQL

Conn = Connection[Any]


def remembered(connection: Conn, job_id: int) -> dict[str, str]:
    """The results that a job remembers, as JSON texts by the steps' names."""
    return dict(connection.execute(SQL["job_steps"], {"id": job_id}).fetchall())


def remember(connection: Conn, job_id: int, token: str, name: str, result: str) -> str | None:
    """Store a step's result, and return what is stored: that of the first one under this name. None: the claim is lost."""
    parameters = {"id": job_id, "token": token, "name": name, "result": result}
    row = connection.execute(SQL["remember_step"], parameters).fetchone()
    return None if row is None else row[0]
