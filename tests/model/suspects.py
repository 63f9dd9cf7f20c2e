"""Model: a job that kills its process, an innocent one beside it, two processes, and the verdict of the rescue.

    claim    ordinary jobs freely, suspects one at a time
    start    of a suspect: committed first. The heartbeat records the others' starts when it comes around, which may be too late
    death    by the poison, or from outside (kill -9, a machine that goes)
    rescue   of a dead process: a started suspect is guilty, and who is known to have run beside it becomes a suspect; where no suspect
             had started, all become suspects. Of a living process: what it does not extend, guilty if it had started

A job's losses are the deaths it was held guilty of. The verdict cannot see who really did it: an innocent suspect pays for a death from
outside during its trial. What must hold is that nothing else costs it anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step

POISON = 0
NAMES = ("poison", "innocent")
ENDED = ("completed", "dead")


class Row(NamedTuple):
    """A job's row. ``holder``: the process, -1: nobody. ``known``: the holder knows of its claim. ``started``: started_at is set."""

    state: str = "pending"
    holder: int = -1
    suspect: bool = False
    started: bool = False
    lost: int = 0
    known: bool = True


class Process(NamedTuple):
    """A process. ``leased``: its leases lie ahead. ``fresh``: so does its own heartbeat. ``runs``: bodies under way."""

    alive: bool = True
    paused: bool = False
    leased: bool = True
    fresh: bool = True
    #: Was stopped between extending its leases and saying that it lives.
    torn: bool = False
    runs: frozenset[int] = frozenset()


class State(NamedTuple):
    """The rows, the processes, and what history must not show."""

    rows: tuple[Row, ...] = (Row(),) * len(NAMES)
    processes: tuple[Process, ...] = (Process(), Process())
    faults: int = 0
    unheard: bool = False
    misjudged: bool = False
    two_trials: bool = False


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 1
    max_lost: int = 3
    #: A process holds one suspect at a time.
    one_at_a_time: bool = True
    #: A suspect's start is committed before its body begins.
    start_committed: bool = True
    #: What came back from a dead process is suspect at all.
    suspicion: bool = True
    #: Who is known to have run beside the guilty one becomes a suspect too.
    companions: bool = True
    #: Of a living process only what had started is guilty.
    heard: bool = True
    #: A claim's lost reply is read back, and a claim that commits after that was not started either.
    read_back: bool = True
    #: Leases and sign of life are written in one statement.
    one_beat: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {
            "one suspect on trial per process": lambda s: not s.two_trials,
            "nobody is guilty without having started": lambda s: not s.unheard,
            "what a living process runs is not held guilty": lambda s: not s.misjudged,
            # One for each fault, and one because the poison may run beside it once before it is a suspect itself.
            "an innocent job pays for faults only": lambda s: all(r.lost <= s.faults + 1 for r in s.rows[1:]),
            "an innocent job is never dead": lambda s: all(r.state != "dead" for r in s.rows[1:]),
            "poison never completes": lambda s: s.rows[POISON].state != "completed",
        },
        lambda s: all(row.state in ENDED for row in s.rows),
    )


def _row(s: State, job: int, row: Row) -> State:
    return s._replace(rows=(*s.rows[:job], row, *s.rows[job + 1 :]))


def _put(s: State, place: int, process: Process) -> State:
    return s._replace(processes=(*s.processes[:place], process, *s.processes[place + 1 :]))


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    for place, process in enumerate(s.processes):
        name = f"process {place + 1}"
        if not process.alive:
            if all(row.holder != place for row in s.rows):
                yield Step(f"{name} is replaced by a fresh one", _put(s, place, Process()))
        elif process.paused:
            if process.leased:
                yield Step(
                    f"{name}: its leases end while it is paused", _put(s, place, process._replace(leased=False, fresh=False))
                )
            on = process._replace(paused=False, torn=False, fresh=process.fresh or process.torn)
            yield Step(f"{name} goes on" + (" and says that it lives" if process.torn else ""), _put(s, place, on))
        else:
            yield from _beat(s, rules, place, process, name)
            yield from _faults(s, rules, place, process, name)
            for job, row in enumerate(s.rows):
                yield from _work(s, rules, place, process, job, row, name)
        yield from _rescue(s, rules, place, process, name)


def _beat(s: State, rules: Rules, place: int, process: Process, name: str) -> Iterator[Step[State]]:
    rows = tuple(
        row._replace(started=row.started or job in process.runs) if row.holder == place and row.known else row
        for job, row in enumerate(s.rows)
    )
    # Nothing may depend on its coming in time: as if it were a fault.
    after = _put(s, place, process._replace(leased=True, fresh=True))._replace(rows=rows)
    yield Step(f"{name}: heartbeat", after, process.leased)


def _faults(s: State, rules: Rules, place: int, process: Process, name: str) -> Iterator[Step[State]]:
    if s.faults >= rules.faults:
        return
    tired = s._replace(faults=s.faults + 1)
    yield Step(f"{name} is killed from outside", _put(tired, place, Process(alive=False, leased=False, fresh=False)), True)
    yield Step(f"{name} is paused", _put(tired, place, process._replace(paused=True)), True)
    if not rules.one_beat:
        torn = process._replace(paused=True, torn=True)
        yield Step(f"{name} is paused between extending its leases and saying that it lives", _put(tired, place, torn), True)
    for job, row in enumerate(s.rows):
        if row.state == "pending" and job not in process.runs:
            claimed = row._replace(state="running", holder=place, started=False, known=False)
            late = "a claim commits after its process looked for it in vain"
            if rules.read_back:
                yield Step(f"{name}: {late} ({NAMES[job]})", _row(tired, job, claimed), True)
            else:
                yield Step(
                    f"{name}: a claim's reply is lost and nobody reads it back ({NAMES[job]})", _row(tired, job, claimed), True
                )


def _work(s: State, rules: Rules, place: int, process: Process, job: int, row: Row, name: str) -> Iterator[Step[State]]:
    who = NAMES[job]
    mine = row.state == "running" and row.holder == place and row.known
    if row.state == "pending" and job not in process.runs:
        trial = any(r.suspect and r.holder == place and r.known and r.state == "running" for r in s.rows)
        if not (row.suspect and trial and rules.one_at_a_time):
            claimed = row._replace(state="running", holder=place, started=False, known=True)
            yield Step(f"{name}: claims the {who} job" + (", a suspect" if row.suspect else ""), _row(s, job, claimed))
    elif mine and job not in process.runs and process.leased:
        begun = process._replace(runs=process.runs | {job})
        after = _put(s, place, begun)
        words = f"{name}: the {who} job starts"
        if row.suspect and rules.start_committed:
            after, words = _row(after, job, row._replace(started=True)), f"{name}: the {who} job's start is committed, it starts"
        trials = sum(r.suspect and r.started and r.holder == place and r.known for r in after.rows)
        yield Step(words, after._replace(two_trials=s.two_trials or trials > 1))
    if job in process.runs:
        if job == POISON:
            yield from _kill(s, rules, place, row, mine, name)
        else:
            after = _put(s, place, process._replace(runs=process.runs - {job}))
            if mine:
                yield Step(f"{name}: the {who} job completes", _row(after, job, Row("completed", lost=row.lost)))
            else:
                yield Step(f"{name}: the {who} job's end is refused", after)


def _kill(s: State, rules: Rules, place: int, row: Row, mine: bool, name: str) -> Iterator[Step[State]]:
    """The poison ends its process. Quick or lost to this process, it may hit an innocent suspect unseen, which counts as a fault."""
    dead = _put(s, place, Process(alive=False, leased=False, fresh=False))
    beside = any(r.suspect and r.started and r.holder == place and r.state == "running" for r in s.rows[1:])
    if beside and not (mine and row.started):
        if s.faults < rules.faults:
            words = f"{name}: the poison kills it beside a trial, before any heartbeat"
            yield Step(words, dead._replace(faults=s.faults + 1), True)
    else:
        yield Step(f"{name}: the poison kills it", dead)


def _rescue(s: State, rules: Rules, place: int, process: Process, name: str) -> Iterator[Step[State]]:
    held = [job for job, row in enumerate(s.rows) if row.state == "running" and row.holder == place]
    if not process.fresh and not process.leased:
        # Seen dead: all its claims together, once the last lease has ended.
        guilty = [job for job in held if s.rows[job].suspect and s.rows[job].started]
        expired = held
    else:
        expired = [job for job in held if not s.rows[job].known or not process.leased]
        guilty = [job for job in expired if s.rows[job].started or not rules.heard]
    if not expired:
        return
    after, alive = s, process.fresh
    for job in expired:
        row = s.rows[job]
        convicted = job in guilty
        lost = row.lost + convicted
        companion = rules.companions and row.started and not alive
        suspect = convicted or row.suspect or (companion if guilty else not alive and rules.suspicion)
        state = "dead" if convicted and lost >= rules.max_lost else "pending"
        after = _row(after, job, Row(state, -1, suspect and state == "pending", False, lost))
        # No job of this model outlives its own time limit, the one thing a living process is right to let go of.
        unheard, misjudged = convicted and not row.started, convicted and alive and row.started
        after = after._replace(unheard=after.unheard or unheard, misjudged=after.misjudged or misjudged)
    verdict = f"guilty: {', '.join(NAMES[job] for job in guilty)}" if guilty else "nobody guilty"
    yield Step(f"rescue of {name}, seen {'alive' if alive else 'dead'}: {verdict}", after)
