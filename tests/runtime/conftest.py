"""A worker process's parts on a real ledger, without broker or worker threads."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from ledger import write
from ledger.database import Database
from runtime.claims import Claim, HeldClaims
from runtime.counters import Counters
from tests.ledger.factory import new_job


class Desk:
    """Claims jobs for a process named ``me``, as its fetcher would."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.held = HeldClaims(threads=8, lease=30.0, commit_start=lambda _: True)
        self.counters = Counters()

    def claim(self, count: int = 1, *, start: bool = True) -> list[Claim]:
        """Enqueue and claim this many jobs, in hand and running unless told otherwise."""
        token = str(uuid4())
        with self.database.connection() as connection:
            ids = [write.enqueue(connection, new_job()).id for _ in range(count)]
            jobs = write.claim_by_id(connection, ids, actors=["work"], worker="me", token=token, lease=30.0)
        claims = [Claim(job, token, 0.0, 30.0) for job in jobs]
        for claim in claims:
            claim.deadline = float("inf")
        self.held.accept(claims)
        if start:
            assert all(self.held.start(claim) for claim in claims)
        return claims

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """What the database answers."""
        return self.database.run(lambda c: c.execute(statement.encode(), parameters).fetchall())

    def states(self) -> list[str]:
        """Every job's state, by age."""
        return [str(row[0]) for row in self.rows("SELECT state FROM switchyard.job ORDER BY id")]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    """The parts."""
    desk = Desk(database_url)
    yield desk
    desk.database.close()
