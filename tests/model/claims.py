"""Model: one job from its send to its end, on a broker that loses and repeats triggers, with two worker processes.

    sender   insert, then hand over to the broker; dies between
    relay    a row that waits comes due: commit, then publish; dies between
    worker   fetch a trigger, claim, learn the answer (or read it back), start, end, write the end; dies, is paused beyond its lease
             or gets SIGTERM anywhere
    rescue   a running row whose lease has ended goes back

Time is not in it: whatever waits for a time may happen at any moment from then on. Each statement is what its SQL does to one row.
Processes are alike, so their order does not matter and a dead one is replaced by a fresh one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step


class Row(NamedTuple):
    """The job's row. ``due``: next_publish_at is set. ``leased``: lease_until lies ahead."""

    state: str = "none"
    attempt: int = 0
    failures: int = 0
    token: int = 0
    last_token: int = 0
    leased: bool = False
    due: bool = False
    #: Not in the ledger: its holder was killed, so nobody has to know of the claim.
    orphaned: bool = False


class Worker(NamedTuple):
    """A process: what it does, with which claim.

    idle → fetched → held → running → ending (the end is on its way into the ledger)
    asked: a claim was sent, its answer has not come. unsure: an end was sent, its answer has not come.
    """

    doing: str = "idle"
    token: int = 0
    #: The attempt's number that the claim came with.
    attempt: int = 0
    #: The claim's own view: its lease has not ended.
    trusted: bool = False
    paused: bool = False
    end: str = ""


class State(NamedTuple):
    """Everything, and what history must not show (the last ones)."""

    sender: str = "new"
    row: Row = Row()
    triggers: int = 0
    workers: tuple[Worker, ...] = (Worker(), Worker())
    faults: int = 0
    #: Attempts whose body began, as bits; claims that counted (ended by anything but a release).
    begun: int = 0
    counted: int = 0
    #: What was found wrong in a step.
    stale_write: bool = False
    begun_twice: bool = False
    begun_late: bool = False
    terminal: int = 0


WAITING = ("pending", "retrying")
TERMINAL = ("completed", "dead")
MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 3
    #: The end is written only with the row's own token.
    fenced: bool = True
    #: last_token takes part in the guard of a write, not only in recognising an own commit.
    last_token_guards: bool = False
    #: Rows that wait are offered again.
    relay: bool = True
    #: Rows whose lease has ended go back.
    rescue: bool = True
    #: A claim takes pending rows only.
    claim_guarded: bool = True
    #: A release before the start gives the attempt's number back; one of what runs does not.
    release_returns_number: bool = True
    running_release_keeps_number: bool = True
    #: The row is committed before its trigger is published.
    commit_first: bool = True
    #: A claim whose reply was lost is read back by its token.
    read_back: bool = True
    #: A thread looks at its lease before it starts.
    margin: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {
            "a trigger never comes before its row": lambda s: not s.triggers or s.row.state != "none",
            "at most one valid claim": lambda s: (
                sum(w.trusted and w.doing in ("held", "running", "ending") for w in s.workers) <= 1
            ),
            "a claim is known to its holder": _known,
            "no write with a token that is not the row's": lambda s: not s.stale_write,
            "an attempt's number is used once": lambda s: not s.begun_twice,
            "no body begins on a lease that has ended": lambda s: not s.begun_late,
            "a release spends no attempt": lambda s: s.row.attempt == s.counted + (s.row.state == "running"),
            "a job ends once": lambda s: s.terminal <= 1,
            "a row that waits is reachable": lambda s: s.row.state not in WAITING or s.row.due,
        },
        lambda s: s.row.state in TERMINAL or (s.row.state == "none" and s.sender == "dead"),
    )


def _known(s: State) -> bool:
    """A running row is in some worker's hands, or its worker was killed."""
    holders = {w.token for w in s.workers if w.doing not in ("idle", "fetched")}
    return s.row.state != "running" or s.row.token in holders or s.row.orphaned


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    yield from _sender(s, rules)
    yield from _broker(s, rules)
    yield from _keeper(s, rules)
    for place, worker in enumerate(s.workers):
        if place and worker == s.workers[place - 1]:
            continue
        yield from _worker(s, rules, place, worker)


def _sender(s: State, rules: Rules) -> Iterator[Step[State]]:
    committed = s._replace(row=Row("pending", due=True))
    if s.sender == "new":
        if rules.commit_first:
            yield Step("the sender commits the row", committed._replace(sender="committed"))
        else:
            yield Step("the sender publishes", s._replace(sender="published", triggers=s.triggers + 1))
        yield Step("the sender dies before it did anything", s._replace(sender="dead"), True)
    elif s.sender == "committed":
        yield Step("the sender publishes", s._replace(sender="done", triggers=min(2, s.triggers + 1)))
        yield Step("the sender dies between commit and publish", s._replace(sender="done"), True)
    elif s.sender == "published":
        yield Step("the sender commits the row", committed._replace(sender="done"))
        yield Step("the sender dies between publish and commit", s._replace(sender="dead"), True)


def _broker(s: State, rules: Rules) -> Iterator[Step[State]]:
    if s.faults < rules.faults and s.triggers:
        yield Step("the broker loses a trigger", s._replace(triggers=s.triggers - 1, faults=s.faults + 1), True)
        if s.triggers < 2:
            yield Step("the broker delivers a trigger twice", s._replace(triggers=s.triggers + 1, faults=s.faults + 1), True)


def _keeper(s: State, rules: Rules) -> Iterator[Step[State]]:
    row = s.row
    if rules.relay and row.due and row.state in WAITING:
        # Between the two anything may happen; it then finds the row as if this relay had died and the next one published.
        offered = s._replace(row=row._replace(state="pending"))
        yield Step(
            "relay: the row is due; commits it as pending and publishes", offered._replace(triggers=min(2, s.triggers + 1))
        )
        yield Step("relay: commits the row as pending and dies before it publishes", offered, True)
    if rules.rescue and row.state == "running" and not row.leased:
        # last_token is cleared: a claim taken back was not committed by its holder.
        back = Row("pending", row.attempt, row.failures, due=True)
        yield Step("rescue: the lease has ended; the row goes back", s._replace(row=back, counted=s.counted + 1))
    holder = next((w for w in s.workers if w.token == row.token and w.doing not in ("idle", "fetched")), None)
    if row.state == "running" and row.leased and (holder is None or (holder.paused and not holder.trusted)):
        yield Step("the lease ends, nobody extended it", s._replace(row=row._replace(leased=False)))


def _put(s: State, place: int, worker: Worker) -> State:
    """The state with another worker in this place."""
    others = s.workers[:place] + s.workers[place + 1 :]
    return s._replace(workers=tuple(sorted((*others, worker))))


def _worker(s: State, rules: Rules, place: int, w: Worker) -> Iterator[Step[State]]:
    name = f"worker (claim {w.token})" if w.token else "worker"
    if w.paused:
        if w.trusted:
            yield Step(f"{name}: its lease ends while it is paused", _put(s, place, w._replace(trusted=False)))
        yield Step(f"{name}: goes on", _put(s, place, w._replace(paused=False)))
        return
    if s.faults < rules.faults and w.doing != "idle":
        tired = s._replace(faults=s.faults + 1)
        killed = _put(tired, place, Worker())
        if s.row.state == "running" and s.row.token == w.token:
            killed = killed._replace(row=s.row._replace(orphaned=True))
        yield Step(f"{name} is killed while {w.doing}", killed, True)
        if w.doing in ("held", "running", "ending"):
            yield Step(f"{name} is paused while {w.doing}", _put(tired, place, w._replace(paused=True)), True)
            yield from _release(tired, rules, place, w, name)
    if w.doing == "idle":
        if s.triggers:
            yield Step(f"{name}: fetches a trigger", _put(s._replace(triggers=s.triggers - 1), place, Worker("fetched")))
    elif w.doing in ("fetched", "asked"):
        yield from _claim(s, rules, place, w, name)
    elif w.doing == "held":
        yield from _start(s, rules, place, w, name)
    elif w.doing == "running":
        yield Step(f"{name}: the body returns", _put(s, place, w._replace(doing="ending", end="completed")))
        yield Step(f"{name}: the body raises", _put(s, place, w._replace(doing="ending", end="failed")), True)
    else:
        yield from _end(s, rules, place, w, name)


def _fresh(s: State) -> int:
    """A new token: a number that nobody remembers is as good as one never used."""
    known = {s.row.token, s.row.last_token, *(w.token for w in s.workers)}
    return next(number for number in range(1, 9) if number not in known)


def _claim(s: State, rules: Rules, place: int, w: Worker, name: str) -> Iterator[Step[State]]:
    row = s.row
    if w.doing == "asked":
        if not rules.read_back:
            yield Step(f"{name}: takes its claim for failed, keeps the trigger", _put(s, place, Worker("fetched")))
        elif row.token == w.token:
            held = Worker("held", w.token, row.attempt, row.leased)
            yield Step(f"{name}: reads back what its claim took", _put(s, place, held))
        else:
            yield Step(f"{name}: reads back that its claim took nothing, keeps the trigger", _put(s, place, Worker("fetched")))
        return
    if row.state == "pending" or (row.state == "running" and not rules.claim_guarded):
        token = _fresh(s)
        taken = row._replace(state="running", attempt=row.attempt + 1, token=token, leased=True, due=False)
        after = s._replace(row=taken, counted=s.counted + (row.state == "running"))
        yield Step(f"{name}: claims the row with token {token}", _put(after, place, Worker("held", token, taken.attempt, True)))
        if s.faults < rules.faults:
            after = after._replace(faults=s.faults + 1)
            asked = Worker("asked", token)
            yield Step(f"{name}: claims with token {token}, the reply is lost", _put(after, place, asked), True)
            yield Step(
                f"{name}: sends a claim that never arrives",
                _put(s._replace(faults=s.faults + 1), place, asked),
                True,
            )
    else:
        yield Step(f"{name}: the row is {row.state}, the trigger is dropped", _put(s, place, Worker()))


def _start(s: State, rules: Rules, place: int, w: Worker, name: str) -> Iterator[Step[State]]:
    if w.trusted or not rules.margin:
        bit = 1 << w.attempt
        twice, late = s.begun_twice or bool(s.begun & bit), s.begun_late or not w.trusted
        after = s._replace(begun=s.begun | bit, begun_twice=twice, begun_late=late)
        yield Step(f"{name}: the body starts as attempt {w.attempt}", _put(after, place, w._replace(doing="running")))
    else:
        yield Step(f"{name}: its lease is not to be trusted, gives the claim back", _given_back(s, rules, place, w))


def _given_back(s: State, rules: Rules, place: int, w: Worker) -> State:
    """release_unstarted, guarded by the token."""
    row = s.row
    if row.state == "running" and row.token == w.token:
        attempt = row.attempt - 1 if rules.release_returns_number else row.attempt
        row = Row("pending", attempt, row.failures, 0, w.token, False, True)
    return _put(s._replace(row=row), place, Worker())


def _release(s: State, rules: Rules, place: int, w: Worker, name: str) -> Iterator[Step[State]]:
    """SIGTERM: what has not started goes back without a trace; what runs past the grace is released and keeps its number."""
    if w.doing == "held":
        yield Step(f"{name}: SIGTERM, releases what has not started", _given_back(s, rules, place, w), True)
    elif w.doing == "running":
        row = s.row
        if row.state == "running" and row.token == w.token:
            keeps = rules.running_release_keeps_number
            attempt = row.attempt if keeps else row.attempt - 1
            row = Row("pending", attempt, row.failures, 0, w.token, False, True)
            s = s._replace(counted=s.counted + keeps)
        yield Step(f"{name}: SIGTERM, the grace is over, releases what runs", _put(s._replace(row=row), place, Worker()), True)


def _end(s: State, rules: Rules, place: int, w: Worker, name: str) -> Iterator[Step[State]]:
    row, after = s.row, s
    own = row.token == w.token or (rules.last_token_guards and row.last_token == w.token)
    if row.state == "running" and (own or not rules.fenced):
        stale = row.token != w.token
        if w.end == "completed":
            row = Row("completed", row.attempt, row.failures, 0, row.token)
        else:
            failures = row.failures + 1
            dead = failures >= MAX_ATTEMPTS
            row = Row("dead" if dead else "retrying", row.attempt, failures, 0, row.token, False, not dead)
        after = s._replace(
            row=row,
            counted=s.counted + 1,
            stale_write=s.stale_write or stale,
            terminal=s.terminal + (row.state in TERMINAL),
        )
        words = f"{name}: writes its end, the row is {row.state}"
    else:
        own = w.doing == "unsure" and row.last_token == w.token
        words = f"{name}: recognises its own commit" if own else f"{name}: its end is refused"
    yield Step(words, _put(after, place, Worker()))
    if s.faults < rules.faults and w.doing == "ending" and after.row is not s.row:
        unsure = _put(after._replace(faults=s.faults + 1), place, w._replace(doing="unsure"))
        yield Step(f"{words}; the reply is lost", unsure, True)
