"""``job.step()``: what an actor did once is not done again by a later attempt of the same job.

    charge = job.step("charge", provider.charge, card, 1200)     does it, stores what it returned, and returns that
                                                                 later attempts, and replays: returns what is stored

Store: the table ``job_step``, one row per step, guarded by the claim's token: a worker that lost the job stores nothing and learns that
(``LeaseLost``). If the process dies between the effect and its row, or Postgres is away then (``LedgerUnavailable``), the step is done
again: give the other side a key of its own, such as ``f"{job.id}:charge"``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from errors import LeaseLost
from ledger import steps
from ledger.database import Database
from runtime.claims import Claim
from runtime.encoding import encode_result

P = ParamSpec("P")
T = TypeVar("T")

#: Longest name of a step, in characters.
MAX_NAME: Final = 200


class Remembers(ABC):
    """A job as far as its steps go; where they are kept is for its kinds to say."""

    def step(self, name: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something once for this job, however often the job is executed: the first time call ``fn(*args, **kwargs)`` and store what it
        returns, later return what is stored. Attempts, replays and other workers count as later.

        Parameters:
            name: the step's name, unique within the job.
            fn: what to do; it returns JSON. What comes back is what was stored (a tuple is a list), also the first time.

        Raises:
            ValueError: the name cannot be one, or the result is not JSON or larger than MAX_RESULT_BYTES.
            LeaseLost: another worker may own the job; nothing was stored.
            LedgerUnavailable: Postgres was lost; a later attempt does the step again.
        """
        known = self._known_step(_checked_name(name))
        if known is None:
            result = fn(*args, **kwargs)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"step {name!r}: {fn!r} is asynchronous, use `await job.step_async(...)`")
            known = self._store_step(name, result)
        return cast("T", json.loads(known))

    async def step_async(self, name: str, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """As ``step``, with a coroutine function, for async actors; the event loop goes on meanwhile."""
        known = await asyncio.to_thread(self._known_step, _checked_name(name))
        if known is None:
            known = await asyncio.to_thread(self._store_step, name, await fn(*args, **kwargs))
        return cast("T", json.loads(known))

    @abstractmethod
    def _known_step(self, name: str) -> str | None:
        """The stored result of a step as JSON text, or None."""

    @abstractmethod
    def _store_step(self, name: str, result: Any) -> str:
        """Store a step's result; returns the JSON text that counts."""


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


def _checked_name(name: Any) -> str:
    """Raises: ValueError: no step can be called that."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or "\x00" in name:
        raise ValueError(f"step: {name!r:.50} is no name (a text of 1 to {MAX_NAME} characters)")
    return name
