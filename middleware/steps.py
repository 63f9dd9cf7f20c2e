"""``job.step()``: what an actor did once is not done again by a later attempt of the same job.

    charge = job.step("charge", provider.charge, card, 1200)     does it, stores what it returned, and returns that
                                                                 later attempts, and replays: returns what is stored

Store: the table ``job_step``, one row per step, guarded by the claim's token: a worker that lost the job stores nothing and learns that
(``LeaseLost``). If the process dies between the effect and its row, or Postgres is away then (``LedgerUnavailable``), the step is done
again: give the other side a key of its own, such as ``f"{job.id}:charge"``.
"""

from __future__ import annotations

import json
from typing import Any, Final

from errors import LeaseLost
from ledger import steps
from ledger.database import Database
from runtime.claims import Claim
from runtime.encoding import encode_result

#: Longest name of a step, in characters.
MAX_NAME: Final = 200


class Steps:
    """What one execution of a job knows of its steps: asked of the ledger once, when the first one comes."""

    def __init__(self, database: Database, claim: Claim, max_result_bytes: int) -> None:
        self._database = database
        self._claim = claim
        self._limit = max_result_bytes
        self._known: dict[str, str] | None = None

    def known(self, name: str) -> str | None:
        """The stored result of a step as JSON text; None when it is still to be done. Raises: LedgerUnavailable."""
        if self._known is None:
            self._known = self._database.run(lambda c: steps.remembered(c, self._claim.job.id))
        return self._known.get(name)

    def store(self, name: str, result: Any) -> str:
        """Store what a step returned; returns the JSON text that counts.

        Raises:
            ValueError: it is not JSON, or too large.
            LeaseLost: another worker may own the job.
            LedgerUnavailable: Postgres was lost.
        """
        text = encode_result(result, self._limit) or "null"
        claim = self._claim
        stored = None if claim.lost else self._database.run(lambda c: steps.remember(c, claim.job.id, claim.token, name, text))
        if stored is None:
            claim.lost = True
            raise LeaseLost(claim.job.message_id)
        if self._known is not None:
            self._known[name] = stored
        return stored


def checked_name(name: Any) -> str:
    """Raises: ValueError: no step can be called that."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or "\x00" in name:
        raise ValueError(f"step: {name!r:.50} is no name (a text of 1 to {MAX_NAME} characters)")
    return name


def decoded(text: str) -> Any:
    """What a step returns, now and later: what its stored text says."""
    return json.loads(text)
