"""Model: a batch of a chain of two steps and of a job beside it, somebody who adds one more, who ends it, and what it calls back.

    finish    a job's end is committed; the step behind a completed one is fed by the same transaction
    look      whoever finished a job, and a keeper now and then, looks whether the batch has ended
    mark      what was seen is marked, and the callback sent, in one transaction, under the batch's lock after another look
    add       somebody outside adds one more job to the batch, under the same lock: refused once it is marked
    replay    a dead job runs again

Two lookers, which may die between their look and their mark. A snapshot is what a look saw; the lock makes the second one fresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step

ACTIVE = ("pending", "running")


class Looker(NamedTuple):
    """Idle, or it saw an end that is not marked yet: ``complete``, and whether that is a success."""

    doing: str = "idle"
    success: bool = False


class State(NamedTuple):
    """The chain's two steps, the job beside it, and the one that is added (``none``: not yet)."""

    first: str = "pending"
    second: str = "waiting"
    #: The second step has its result.
    fed: bool = False
    beside: str = "pending"
    added: str = "none"
    #: The transaction that adds has looked at the batch, and not committed yet.
    adding: bool = False
    lookers: tuple[Looker, ...] = (Looker(), Looker())
    #: How often each callback was sent.
    completed: int = 0
    succeeded: int = 0
    #: The batch was marked complete although one of its jobs was active, or took a job afterwards.
    early: bool = False
    late: bool = False
    faults: int = 0

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs of the batch that a snapshot sees."""
        return tuple(job for job in (self.first, self.second, self.beside, self.added) if job != "none")


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 5
    #: The step behind is fed by the transaction that completes the step before.
    one_transaction: bool = True
    #: Under the lock, what was seen is looked at again.
    looks_again: bool = True
    #: Whoever adds takes the batch's lock.
    adder_locks: bool = True
    #: Steps that wait for others keep no batch open.
    waiting_apart: bool = True
    #: A keeper looks, too.
    keeper: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {
            "each callback comes once": lambda s: s.completed <= 1 and s.succeeded <= 1,
            "a batch is complete when all its jobs have ended": lambda s: not s.early,
            "a complete batch takes no job": lambda s: not s.late,
            "no step runs without its result": lambda s: s.fed or s.second == "waiting",
        },
        _over,
    )


def _over(s: State) -> bool:
    """Everything has ended, and has been told."""
    rest = all(job in ("completed", "dead", "waiting") for job in s.jobs) and not (
        s.second == "waiting" and s.first == "completed"
    )
    return rest and s.completed == 1 and (s.succeeded == 1 or "dead" in s.jobs)


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    for name in ("first", "second", "beside", "added"):
        yield from _job(s, rules, name)
    if s.first == "completed" and not s.fed and not rules.one_transaction and s.faults < rules.faults:
        yield Step("the worker feeds the second step", s._replace(fed=True, second="pending"))
    yield from _adding(s, rules)
    for place, looker in enumerate(s.lookers):
        if not place or looker != s.lookers[0]:
            yield from _look(s, rules, place, looker)


def _job(s: State, rules: Rules, name: str) -> Iterator[Step[State]]:
    state = getattr(s, name)
    if state == "pending":
        yield Step(f"{name} is claimed", s._replace(**{name: "running"}))
    elif state == "running":
        done = s._replace(**{name: "completed"})
        if name == "first" and rules.one_transaction:
            done = done._replace(fed=True, second="pending")
        yield from _ended(Step(f"{name} completes", done), s, rules)
        if s.faults < rules.faults:
            dead = s._replace(**{name: "dead"}, faults=s.faults + 1)
            yield from _ended(Step(f"{name} dies", dead, True), s, rules)
            if name == "first" and not rules.one_transaction:
                lost = s._replace(first="completed", faults=rules.faults)
                yield Step("first completes, its worker dies before it feeds the second step", lost, True)
    elif state == "dead" and s.faults < rules.faults:
        yield Step(f"{name} is replayed", s._replace(**{name: "pending"}, faults=s.faults + 1), True)


def _ended(end: Step[State], s: State, rules: Rules) -> Iterator[Step[State]]:
    """A job ended; its worker looks next, or dies before that."""
    yield end
    seen = _seen(end.after, rules)
    if seen is not None and Looker() in s.lookers:
        place = s.lookers.index(Looker())
        yield Step(end.text + ", its worker sees the end", _put(end.after, place, seen), end.fault)


def _adding(s: State, rules: Rules) -> Iterator[Step[State]]:
    # A person's decision, which may as well not be taken.
    if s.added == "none" and not s.adding and s.completed == 0:
        if rules.adder_locks:
            # Look, insert and commit are one step for whoever takes the lock.
            yield Step("a job is added", s._replace(added="pending"), True)
        else:
            yield Step("whoever adds finds the batch open", s._replace(adding=True), True)
    if s.adding:
        yield Step("the added job is committed", s._replace(adding=False, added="pending", late=s.late or s.completed > 0))


def _seen(s: State, rules: Rules) -> Looker | None:
    """What a look finds that is not marked, if anything."""
    active = any(job in ACTIVE or (job == "waiting" and not rules.waiting_apart) for job in s.jobs)
    success = all(job == "completed" for job in s.jobs)
    if active or (s.completed and (s.succeeded or not success)):
        return None
    return Looker("saw", success)


def _put(s: State, place: int, looker: Looker) -> State:
    return s._replace(lookers=tuple(sorted((*s.lookers[:place], *s.lookers[place + 1 :], looker))))


def _look(s: State, rules: Rules, place: int, looker: Looker) -> Iterator[Step[State]]:
    if looker.doing == "idle":
        seen = _seen(s, rules) if rules.keeper else None
        if seen is not None:
            yield Step("a keeper sees the end", _put(s, place, seen))
        return
    idle = _put(s, place, Looker())
    if s.faults < rules.faults:
        yield Step("the looker dies before its mark", idle._replace(faults=s.faults + 1), True)
    found = _seen(s, rules) if rules.looks_again else looker
    if found is None:
        yield Step("under the lock there is nothing new", idle)
        return
    complete = s.completed == 0 or not rules.looks_again
    early = complete and any(job in ACTIVE for job in s.jobs)
    after = idle._replace(completed=s.completed + complete, succeeded=s.succeeded + found.success, early=s.early or early)
    yield Step("the looker marks the batch and sends its callbacks", after)
