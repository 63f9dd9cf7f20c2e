"""What the ledger's machine is made of: the model of a job's row, the steps that can happen to it, and what has to hold after each.

The steps themselves are in ``test_machine``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ledger.database import Database
from ledger.states import TERMINAL, State, is_legal
from tests.ledger.factory import clear

#: Losses after which a job is dead, unless it says otherwise.
MAX_LOST = 2


@dataclass
class Model:
    """What one job's row has to be."""

    message_id: str
    broker: str
    priority: int
    max_attempts: int
    state: State
    due: bool
    sent: bool = False
    generation: int = 1
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    max_lost: int | None = None
    max_age: float | None = None
    suspect: bool = False
    token: str | None = None
    last_token: str | None = None
    worker: str | None = None
    dead_reason: str | None = None
    result: Any = None
    started: bool = False
    long_lease: bool = False
    asked: bool = False
    parked: bool = False
    history: list[tuple[int, int, str]] = field(default_factory=list)

    def leave_running(self, state: State, outcome: str | None, *, due: bool = False) -> None:
        """The claim ends; an outcome goes into the history."""
        if outcome is not None:
            self.history.append((self.generation, self.attempt, outcome))
        self.state, self.due, self.token, self.long_lease = state, due, None, False


#: Weight, condition, and what to draw for each thing that can happen.
STEPS: list[tuple[int, Callable[[Any], Any], Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = []


def step(*, weight: int, when: Callable[[Any], Any] = lambda _: True, **draws: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """Let a method happen ``weight`` times as often as others.

    Rules of hypothesis's own would do, but it leaves some of them out of each story, and the interesting ones need most of them.
    """

    def register(method: Callable[..., None]) -> Callable[..., None]:
        STEPS.append((weight, when, method, draws))
        return method

    return register


class Story(RuleBasedStateMachine):
    """What a machine of the ledger knows, how it chooses what happens, and what has to hold after each step."""

    database: Database

    def begin(self) -> None:
        """An empty ledger, and nothing known of it."""
        self.ledger = self.database.dedicated("machine")
        clear(self.ledger)
        self.jobs: dict[int, Model] = {}
        #: Every claim ever made, the lost ones too: zombies write with these.
        self.claims: list[tuple[int, str]] = []
        self.before: dict[int, tuple[State, int]] = {}
        self.now = datetime(2100, 1, 1, tzinfo=UTC)
        self.paused = False

    def teardown(self) -> None:
        """Let go of the ledger."""
        self.ledger.close()

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """One of the steps that are possible now."""
        possible = [entry for entry in STEPS if entry[1](self) for _ in range(entry[0])]
        _, _, method, draws = data.draw(st.sampled_from(possible))
        drawn = {name: data.draw(strategy) for name, strategy in draws.items()}
        note(f"{method.__name__} {drawn}")
        method(self, data, **drawn)

    def later(self) -> datetime:
        """A time by which every delay and every lease but the very long ones has passed."""
        self.now += timedelta(days=1)
        return self.now

    def some_claims(self, data: st.DataObject) -> list[tuple[int, str]]:
        """Up to three claims, one per job: valid ones and lost ones, rather of jobs that run."""
        pool = [claim for claim in self.claims if self.jobs[claim[0]].state is State.RUNNING] or self.claims
        return data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique_by=lambda claim: claim[0]))

    def some(self, data: st.DataObject, states: frozenset[State] | set[State]) -> list[int]:
        """Up to three jobs in these states; any jobs when there are none."""
        pool = [id_ for id_, job in self.jobs.items() if job.state in states] or list(self.jobs)
        return data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True))

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        """Every row and its history."""
        rows = self.ledger.execute(
            "SELECT id, message_id::text, broker, priority, state, next_publish_at IS NOT NULL, generation, attempt, failures, lost,"
            " suspect, token::text, last_token::text, worker, dead_reason, result, coalesce(wait_reason = 'paused', false),"
            " cancel_requested_at IS NOT NULL FROM switchyard.job"
        ).fetchall()
        assert {row[0]: row[1:] for row in rows} == {
            id_: (
                job.message_id, job.broker, job.priority, job.state, job.due, job.generation, job.attempt, job.failures, job.lost,
                job.suspect, job.token, job.last_token, job.worker, job.dead_reason, job.result, job.parked, job.asked,
            )
            for id_, job in self.jobs.items()
        }  # fmt: skip
        past = self.ledger.execute(
            "SELECT job_id, generation, attempt, outcome FROM switchyard.attempt ORDER BY 1, 2, 3"
        ).fetchall()
        assert past == [(id_, *entry) for id_, job in sorted(self.jobs.items()) for entry in sorted(job.history)]

    @invariant()
    def nothing_is_stuck(self) -> None:
        """Every job has ended, is held, or will be found."""
        for job in self.jobs.values():
            row_is_message = job.state is State.PENDING and job.broker == "postgres" and not job.parked
            assert (job.state in TERMINAL) + (job.token is not None) + (job.due or row_is_message) + job.parked == 1

    @invariant()
    def every_step_was_legal(self) -> None:
        """From state to state, and from generation to generation."""
        now = {id_: (job.state, job.generation) for id_, job in self.jobs.items()}
        for id_, (state, generation) in self.before.items():
            after, later = now[id_]
            assert is_legal(state, after)
            assert later - generation == (state in (State.DEAD, State.CANCELLED) and after is State.PENDING)
        self.before = now

    @invariant()
    def counters_stay_within_their_bounds(self) -> None:
        """Failures, losses and attempts."""
        for job in self.jobs.values():
            assert job.failures <= job.max_attempts
            assert job.lost <= (job.max_lost or MAX_LOST)
            assert job.failures + job.lost <= job.attempt
