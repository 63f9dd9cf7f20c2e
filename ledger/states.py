"""The seven states of a job, and every legal step between them, as data.

     send ──► scheduled ──due──► pending ──claim──► running ──► completed
                  ▲                 ▲                 │ │ │
       snooze ────┤     release, rescue ◄─────────────┘ │ └──► cancelled
                  └── retrying ◄── failed, tries left ──┤
                                                        └────► dead ──replay──► pending, scheduled

scheduled   waits for its time; nothing about it is in the broker. Entered by a send with a delay, by a snooze, and by a replay whose
            turn comes later.
pending     may run now; its trigger is, or will be, in the broker. Entered by a send, by the relay when a scheduled or
            retrying job is due, by a release or a rescue, and by a replay.
running     one worker holds a claim: a token, and a lease that the heartbeat extends.
retrying    failed, with tries left; waits for its back-off. The relay makes it pending.
completed   final.
dead        a dead letter: will not run again unless it is replayed. ``dead_reason`` says why.
cancelled   given up by request; may be replayed.

The database repeats this table in a trigger (migration 0008), so not even a bug can write an illegal step; a test holds the
two against each other for all 49 pairs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """A job's state, spelled as in the ``state`` column."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


#: The states a job may still leave by itself; every "while active" rule names all four.
ACTIVE: Final = frozenset({State.SCHEDULED, State.PENDING, State.RUNNING, State.RETRYING})
#: The states in which a job has ended.
TERMINAL: Final = frozenset({State.COMPLETED, State.DEAD, State.CANCELLED})
#: The states in which no worker holds the job, so that it can be cancelled at once.
WAITING: Final = frozenset({State.SCHEDULED, State.PENDING, State.RETRYING})

#: From each state, the states one update may lead to. Staying is always legal, but for a replay (generation + 1).
LEGAL: Final[dict[State, frozenset[State]]] = {
    State.SCHEDULED: frozenset({State.PENDING, State.CANCELLED, State.DEAD}),
    State.PENDING: frozenset({State.RUNNING, State.SCHEDULED, State.CANCELLED, State.DEAD}),
    State.RETRYING: frozenset({State.PENDING, State.SCHEDULED, State.CANCELLED, State.DEAD}),
    State.RUNNING: frozenset({State.COMPLETED, State.RETRYING, State.SCHEDULED, State.PENDING, State.DEAD, State.CANCELLED}),
    State.COMPLETED: frozenset(),
    # A replay; to scheduled when it is throttled, so that no broker can hand the job out before its time.
    State.DEAD: frozenset({State.PENDING, State.SCHEDULED}),
    State.CANCELLED: frozenset({State.PENDING, State.SCHEDULED}),
}

#: Words of other queues, accepted wherever a filter takes a state.
SYNONYMS: Final[dict[str, frozenset[State]]] = {
    "waiting": frozenset({State.PENDING}),
    "active": frozenset({State.RUNNING}),
    "processing": frozenset({State.RUNNING}),
    "delayed": frozenset({State.SCHEDULED}),
    "failed": frozenset({State.RETRYING, State.DEAD}),
    "done": frozenset({State.COMPLETED}),
    "succeeded": frozenset({State.COMPLETED}),
}


#: Why a waiting job does not run, when it is not for want of its time or of a free worker: the words of ``wait_reason``, and their meaning.
WAIT_REASONS: Final[dict[str, str]] = {
    "concurrency": "in line for a slot",
    "rate_limit": "over a rate, for the time that it was promised",
    "paused": "for the end of a pause",
    "upstream": "for the job or group before it",
    "unknown_actor": "for a worker that knows its actor",
}


def _state_words() -> str:
    meant = {word: "/".join(state for state in State if state in states) for word, states in SYNONYMS.items()}
    return f"{', '.join(State)}; or another queue's word: {', '.join(f'{word} (= {states})' for word, states in meant.items())}"


#: What a filter takes, as texts of help and errors say it.
STATE_WORDS: Final = _state_words()


def is_legal(before: State, after: State) -> bool:
    """Whether one update may take a job from ``before`` to ``after``."""
    return before == after or after in LEGAL[before]


def states_named(word: str) -> frozenset[State]:
    """The states that a word names: a state of ours, or another queue's word for one or two of them.

    Raises:
        ValueError: the word names no state; the text lists those that do.
    """
    if word in SYNONYMS:
        return SYNONYMS[word]
    try:
        return frozenset({State(word)})
    except ValueError:
        raise ValueError(f"state {word!r} is unknown; use {STATE_WORDS}") from None
