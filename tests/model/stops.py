"""Model: one job that somebody asks to stop, and whose queue somebody pauses and resumes, at any moment.

    cancel    what waits ends; what runs is asked, and its worker is told, unless the notification is lost
    pause     a row of its own; workers are told. Whoever finds the job paused parks it: the relay, the fetcher, a keeper
    resume    the row goes, then what is parked is due; the process that resumes dies between
    worker    fetches a trigger, claims, learns the answer, looks at its orders, starts, ends; is killed anywhere

A body that was asked to stop ends by being interrupted and in no other way, so that a request that nobody hears of shows. Time is not in
it: a lease may end at any moment after its holder's death.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step


class Row(NamedTuple):
    """``due``: the relay has to look. ``held``: its worker lives. ``asked``: cancel_requested_at."""

    state: str = "pending"
    due: bool = True
    parked: bool = False
    held: bool = False
    asked: bool = False


class Worker(NamedTuple):
    """idle → fetched → claimed (the answer is under way) → held → running → ending; ``told``: it knows that its job is to stop."""

    doing: str = "idle"
    told: bool = False
    end: str = ""


class State(NamedTuple):
    """``news``: a notification is under way. ``resuming``: somebody is about to unpark."""

    row: Row = Row()
    worker: Worker = Worker()
    trigger: bool = False
    news: bool = False
    paused: bool = False
    resuming: bool = False
    faults: int = 0
    decisions: int = 0
    #: What was found wrong in a step.
    claimed_paused: bool = False
    published_paused: bool = False
    began_told: bool = False


WAITING = ("pending", "retrying")
TERMINAL = ("completed", "cancelled")


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 2
    decisions: int = 3
    #: A claim refuses what is paused in its own statement, and the relay parks it instead of publishing it.
    claim_looks: bool = True
    relay_looks: bool = True
    #: A request is seen by the statement that ends an execution, gives back a claim, takes one back.
    finish_looks: bool = True
    release_looks: bool = True
    rescue_looks: bool = True
    #: Every beat looks, whatever was heard.
    beat_looks: bool = True
    #: A thread looks at its claim once more before it starts.
    start_looks: bool = True
    #: Keepers go on with what a resume left behind.
    keeper_unparks: bool = True
    #: A trigger that led to nothing because of a pause has its row parked, or a keeper does that.
    refused_is_parked: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {
            "nothing paused is claimed": lambda s: not s.claimed_paused,
            "nothing paused is published": lambda s: not s.published_paused,
            "what was asked to stop does not wait again": lambda s: not (s.row.asked and s.row.state in WAITING),
            "what is known to stop does not begin": lambda s: not s.began_told,
            "only what waits is parked": lambda s: not s.row.parked or (s.row.state == "pending" and not s.row.due),
        },
        lambda s: s.row.state in TERMINAL,
    )


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    yield from _people(s, rules)
    yield from _keepers(s, rules)
    yield from _worker(s, rules)
    if s.faults < rules.faults:
        tired = s._replace(faults=s.faults + 1)
        if s.news:
            yield Step("the notification is lost", tired._replace(news=False), True)
        if s.trigger:
            yield Step("the broker loses the trigger", tired._replace(trigger=False, row=_missed(s.row)), True)
        if s.resuming:
            yield Step("the process that resumes dies", tired._replace(resuming=False), True)
        if s.worker.doing != "idle":
            row = s.row._replace(held=False) if s.row.state == "running" else _missed(s.row)
            yield Step(f"the worker is killed while {s.worker.doing}", tired._replace(worker=Worker(), row=row), True)


def _missed(row: Row) -> Row:
    """A trigger is gone: it is found missing, and the row is due."""
    return row._replace(due=True) if row.state == "pending" and not row.parked else row


def _people(s: State, rules: Rules) -> Iterator[Step[State]]:
    if s.decisions < rules.decisions:
        decided = s._replace(decisions=s.decisions + 1)
        if s.row.state in WAITING:
            yield Step("cancel: the job waits, and ends", decided._replace(row=Row("cancelled", due=False)), True)
        elif s.row.state == "running" and not s.row.asked:
            yield Step("cancel: the job runs, and is asked", decided._replace(row=s.row._replace(asked=True), news=True), True)
        if not s.paused:
            yield Step("pause", decided._replace(paused=True, news=True), True)
    if s.paused:
        yield Step("resume: the pause is over", s._replace(paused=False, resuming=True))
    if s.resuming:
        yield Step("resume: what is parked is due", s._replace(resuming=False, row=_unparked(s)))


def _unparked(s: State) -> Row:
    return s.row._replace(parked=False, due=True) if s.row.parked and not s.paused else s.row


def _keepers(s: State, rules: Rules) -> Iterator[Step[State]]:
    row = s.row
    if row.state in WAITING and row.due:
        if s.paused and rules.relay_looks:
            yield Step("relay: parks the row", s._replace(row=Row("pending", due=False, parked=True)))
        else:
            wrong = s.published_paused or s.paused
            out = Row("pending", due=False)
            yield Step("relay: publishes the row", s._replace(row=out, trigger=True, published_paused=wrong))
    if row.state == "pending" and s.paused and not row.parked:
        yield Step("keeper: parks the row", s._replace(row=Row("pending", due=False, parked=True)))
    if rules.keeper_unparks and row.parked and not s.paused:
        yield Step("keeper: what is parked is due", s._replace(row=_unparked(s)))
    if row.state == "running" and not row.held:
        back = Row("cancelled", due=False) if row.asked and rules.rescue_looks else Row(asked=row.asked)
        yield Step("rescue: the lease has ended", s._replace(row=back))


def _worker(s: State, rules: Rules) -> Iterator[Step[State]]:
    w, row = s.worker, s.row
    if w.doing == "idle":
        if s.trigger:
            yield Step("worker: fetches the trigger", s._replace(trigger=False, worker=Worker("fetched")))
    elif w.doing == "fetched":
        yield from _claim(s, rules)
    elif w.doing == "claimed":
        yield Step("worker: has the claim in hand", s._replace(worker=w._replace(doing="held")))
    elif w.doing == "held":
        if not (w.told and rules.start_looks):
            began = s._replace(worker=w._replace(doing="running"), began_told=s.began_told or w.told)
            yield Step("worker: the body starts", began)
    elif w.doing == "running":
        if w.told:
            yield Step("worker: the body is interrupted", s._replace(worker=Worker("ending", True, "cancelled")))
        elif not row.asked:
            yield Step("worker: the body returns", s._replace(worker=Worker("ending", end="completed")))
            yield Step("worker: the body raises", s._replace(worker=Worker("ending", end="failed")), True)
    elif w.doing == "ending":
        ends = {"completed": Row("completed", False), "cancelled": Row("cancelled", False), "failed": Row("retrying")}
        end = ends[w.end]
        if row.asked and w.end != "completed":
            end = Row("cancelled", False) if rules.finish_looks else end._replace(asked=True)
        yield Step("worker: writes the end", s._replace(worker=Worker(), row=end))
    if s.news:
        yield Step("worker: looks, as it was told to", _look(s._replace(news=False), rules))
    if rules.beat_looks and w.doing in ("held", "running"):
        yield Step("worker: looks at a beat", _look(s, rules))


def _claim(s: State, rules: Rules) -> Iterator[Step[State]]:
    if s.row.state != "pending":
        yield Step("worker: the trigger leads to nothing", s._replace(worker=Worker()))
    elif s.paused and rules.claim_looks:
        # It lost its trigger: were it not parked, nobody would look at it again.
        row = Row("pending", due=False, parked=rules.refused_is_parked)
        yield Step("worker: the row is paused, parks it", s._replace(worker=Worker(), row=row))
    else:
        taken = Row("running", due=False, held=True)
        wrong = s.claimed_paused or s.paused
        yield Step("worker: claims the row", s._replace(worker=Worker("claimed"), row=taken, claimed_paused=wrong))


def _look(s: State, rules: Rules) -> State:
    """What the process does when it looks: it learns of a request; what has not started goes back if it is to stop, or is paused."""
    if s.worker.doing not in ("held", "running"):
        return s
    told = s.worker.told or s.row.asked
    if s.worker.doing == "running":
        return s._replace(worker=s.worker._replace(told=told))
    if not told and not s.paused:
        return s
    if not rules.start_looks and told:
        return s._replace(worker=s.worker._replace(told=True))
    back = Row("cancelled", due=False) if s.row.asked and rules.release_looks else Row(asked=s.row.asked)
    return s._replace(worker=Worker(), row=back)
