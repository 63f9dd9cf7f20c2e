"""Model: two jobs that are claimed, extended, ended and released together, by two workers; the end of one of them cannot be stored.

    claim    one statement takes those of the rows that are pending, under one token; a lost reply is read back for all of them
    end      one statement writes the ends of those that are still ours; a row that Postgres refuses spoils it for all, so the batch is
             halved until that row stands alone, and its job is dead
    release  one statement gives back what has not started

One worker may still hold an older claim of both rows while the other holds the newer one of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from tests.model.search import Protocol, Step

GOOD, BAD = 0, 1
JOBS = (GOOD, BAD)
NAMES = ("the good job", "the one that cannot be stored")


class Row(NamedTuple):
    """A job's row."""

    state: str = "pending"
    token: int = 0
    attempt: int = 0
    #: Not in the ledger: its holder was killed, so nobody has to know of the claim.
    orphaned: bool = False


class Worker(NamedTuple):
    """A process with one batch: idle, asked (the reply has not come), held, ending, and which of the jobs are in it."""

    doing: str = "idle"
    token: int = 0
    jobs: tuple[int, ...] = ()
    paused: bool = False


class State(NamedTuple):
    """The rows, the workers, and what history must not show."""

    rows: tuple[Row, ...] = (Row(), Row())
    workers: tuple[Worker, ...] = (Worker(), Worker())
    faults: int = 0
    stale_write: bool = False


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 2
    #: A batch that Postgres refuses is halved until the guilty row stands alone.
    isolated: bool = True
    #: What a claim took is read back for the whole batch, not for its first trigger.
    whole_batch_read_back: bool = True
    #: Each row of a batch is guarded by its own token.
    fenced_each: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {
            "a claim is known to its holder": _known,
            "no write with a token that is not the row's": lambda s: not s.stale_write,
            "what can be stored is stored": lambda s: s.rows[GOOD].state != "dead",
        },
        lambda s: all(row.state in ("completed", "dead") for row in s.rows),
    )


def _known(s: State) -> bool:
    for job, row in enumerate(s.rows):
        holders = {w.token for w in s.workers if w.doing == "asked" or job in w.jobs}
        if row.state == "running" and row.token not in holders and not row.orphaned:
            return False
    return True


def _put(s: State, place: int, worker: Worker) -> State:
    return s._replace(workers=tuple(sorted((*s.workers[:place], *s.workers[place + 1 :], worker))))


def _write(s: State, changes: dict[int, Row]) -> State:
    return s._replace(rows=tuple(changes.get(job, row) for job, row in enumerate(s.rows)))


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    for place, w in enumerate(s.workers):
        if place and w == s.workers[0]:
            continue
        name = f"worker (claim {w.token})" if w.token else "worker"
        if w.paused:
            yield Step(f"{name}: goes on", _put(s, place, w._replace(paused=False)))
            continue
        if w.doing != "idle" and s.faults < rules.faults:
            tired = s._replace(faults=s.faults + 1)
            left = {job: row._replace(orphaned=True) for job, row in enumerate(s.rows) if row.token == w.token}
            yield Step(f"{name} is killed while {w.doing}", _put(_write(tired, left), place, Worker()), True)
            if w.doing != "asked":
                yield Step(f"{name} is paused while {w.doing}", _put(tired, place, w._replace(paused=True)), True)
        if w.doing == "idle":
            yield from _claim(s, rules, place, name)
        elif w.doing == "asked":
            took = tuple(job for job in JOBS if s.rows[job].token == w.token)
            took = took if rules.whole_batch_read_back else took[:1]
            after = _put(s, place, Worker("held", w.token, took) if took else Worker())
            yield Step(f"{name}: reads back {len(took)} of its claim", after)
        elif w.doing == "held":
            yield Step(f"{name}: its bodies return", _put(s, place, w._replace(doing="ending")))
            ours = [job for job in w.jobs if s.rows[job].token == w.token]
            back = {job: Row("pending", attempt=s.rows[job].attempt - 1) for job in ours}
            yield Step(
                f"{name}: SIGTERM, releases {len(ours)} that have not started", _put(_write(s, back), place, Worker()), True
            )
        else:
            yield from _end(s, rules, place, w, name)
    yield from _rescue(s)


def _claim(s: State, rules: Rules, place: int, name: str) -> Iterator[Step[State]]:
    known = {*(row.token for row in s.rows), *(w.token for w in s.workers)}
    token = next(number for number in range(1, 9) if number not in known)
    for wanted in product((False, True), repeat=len(JOBS)):
        taken = tuple(job for job in JOBS if wanted[job] and s.rows[job].state == "pending")
        if not any(wanted) or not taken:
            continue
        rows = {job: Row("running", token, min(3, s.rows[job].attempt + 1)) for job in taken}
        after = _write(s, rows)
        yield Step(
            f"{name}: claims {sum(wanted)}, gets {len(taken)} as claim {token}", _put(after, place, Worker("held", token, taken))
        )
        if s.faults < rules.faults:
            asked = _put(after._replace(faults=s.faults + 1), place, Worker("asked", token))
            yield Step(f"{name}: claims {sum(wanted)} as claim {token}, the reply is lost", asked, True)


def _end(s: State, rules: Rules, place: int, w: Worker, name: str) -> Iterator[Step[State]]:
    ours = [job for job in w.jobs if s.rows[job].state == "running" and s.rows[job].token == w.token]
    if not rules.fenced_each:
        ours = [job for job in w.jobs if s.rows[job].state == "running"]
    stale = any(s.rows[job].token != w.token for job in ours)
    after = s._replace(stale_write=s.stale_write or stale)
    if BAD not in ours:
        ends = {job: Row("completed", attempt=s.rows[job].attempt) for job in ours}
        yield Step(f"{name}: writes {len(ours)} ends of {len(w.jobs)}", _put(_write(after, ends), place, Worker()))
    elif rules.isolated:
        ends = {job: Row("dead" if job == BAD else "completed", attempt=s.rows[job].attempt) for job in ours}
        words = f"{name}: Postgres refuses its batch; halved, {NAMES[BAD]} is dead"
        yield Step(words, _put(_write(after, ends), place, Worker()))
    else:
        yield Step(f"{name}: Postgres refuses its batch, it tries again", s)


def _rescue(s: State) -> Iterator[Step[State]]:
    """All expired claims of one process go back together."""
    holders = {w.token for w in s.workers if w.doing != "idle" and not w.paused}
    lost = {row.token for row in s.rows if row.state == "running" and row.token not in holders}
    for token in sorted(lost):
        back = {job: Row("pending", attempt=row.attempt) for job, row in enumerate(s.rows) if row.token == token}
        yield Step(f"rescue: claim {token} has ended, {len(back)} go back", _write(s, back))
