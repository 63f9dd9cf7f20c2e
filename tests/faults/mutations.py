"""Mutations: one guard of the protocol taken out of a worker, so that the checker can be seen to notice.

``MUTATION=name`` in a worker's environment; ``python -m tests.faults --mutations`` runs each with a scenario that needs the guard, once
with it and once without. A scenario that stays green without its guard proves nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keeper.loop
import ledger.write
from ledger.sql import SQL


def _edit(statement: str, old: str, new: str) -> None:
    text: Any = SQL[statement]
    if old not in text:
        raise ValueError(f"MUTATION: {old!r} does not stand in the statement {statement}")
    SQL[statement] = text.replace(old, new)


def _no_fence() -> None:
    """A finish is accepted whoever holds the job by now."""
    for statement in ("finish_completed", "finish_otherwise"):
        _edit(statement, " AND j.token = f.token", "")


def _no_transaction_fence() -> None:
    """A finish that matched no row passes for a success, so job.transaction() commits the effects of a job that was lost."""
    finish = ledger.write.finish

    def trusting(connection: Any, finishes: Any) -> set[int]:
        entries = list(finishes)
        return finish(connection, entries) | {entry.id for entry in entries}

    ledger.write.finish = trusting


def _no_relay() -> None:
    """Nothing that is due is ever published again."""
    ledger.write.relay_due = lambda *_, **__: []


def _no_rescue() -> None:
    """The jobs of a dead worker stay with it."""
    ledger.write.expired_workers = lambda *_, **__: []


def _no_search() -> None:
    """A trigger that was sent counts as there for ever, whatever became of the broker."""
    names = vars(keeper.loop)
    left = tuple(duty for duty in names["DUTIES"] if duty.name != "lost")
    if len(left) == len(names["DUTIES"]):
        raise ValueError("MUTATION: the keeper has no duty of the name lost")
    names["DUTIES"] = left


def _no_release() -> None:
    """A worker that is told to stop keeps what it has not started until its lease ends."""

    vars(ledger.write)["release_unstarted"] = lambda _, claims: {id_ for id_, _ in claims}


def _no_claim_guard() -> None:
    """A trigger for a job that runs already claims it again."""
    _edit("claim_by_id", "state = 'pending'", "state IN ('pending', 'running')")


def _no_tick_key() -> None:
    """Whoever looks at a schedule makes the job of its tick, whether somebody else did or does."""
    _edit("due_schedules", "FOR UPDATE SKIP LOCKED", "")
    _edit("take_tick", "DO NOTHING", "DO UPDATE SET message_id = excluded.message_id")


@dataclass(frozen=True)
class Mutation:
    """A guard, how to take it out, and where its absence shows."""

    apply: Callable[[], None]
    scenario: str
    broker: str
    #: What the checker's complaint has to say.
    complaint: str


MUTATIONS: dict[str, Mutation] = {
    "fence": Mutation(_no_fence, "F5", "postgres", "holds the result of another claim"),
    "transaction": Mutation(_no_transaction_fence, "F5", "redis", "committed effects"),
    "relay": Mutation(_no_relay, "F3", "redis", "still active"),
    "rescue": Mutation(_no_rescue, "F1", "postgres", "still active"),
    "search": Mutation(_no_search, "F6", "redis", "still active"),
    "release": Mutation(_no_release, "F4", "postgres", "waited for a lease"),
    "tick": Mutation(_no_tick_key, "F16", "postgres", "ticks have several jobs"),
    "claim": Mutation(_no_claim_guard, "F13", "redis", "while it ran"),
}


def install() -> None:
    """Take out the guard that the environment names, if it names one."""
    name = os.environ.get("MUTATION")
    if name:
        MUTATIONS[name].apply()
