"""Model: a queue that cannot be asked what is in it, two rows, and marks that are sent behind their triggers.

    send      the row is committed as sent, then its trigger is published; the sender dies between
    mark      a keeper puts a mark at the end of the queue, which speaks for the rows sent long enough before it that their triggers are
              out if they ever will be
    receive   two receivers take from the head: a trigger is claimed, a mark tells that everything it speaks for has passed
    look      a sent row whose mark has passed has lost its trigger: due, published again, and sent anew

The queue keeps its order. It loses what it likes; a receiver that dies gives back what it held to where that was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step

#: A mark speaks for rows; a trigger is a row's number.
Item = int | frozenset[int]


class Row(NamedTuple):
    """``out``: its trigger is published, or nobody is left to do it. ``passed``: a mark behind it was received."""

    state: str = "new"
    out: bool = False
    passed: bool = False
    #: A mark was sent for it.
    marked: bool = False


class State(NamedTuple):
    """``hands``: what each receiver has taken, triggers not claimed yet; -1 is nothing."""

    rows: tuple[Row, ...] = (Row(), Row())
    queue: tuple[Item, ...] = ()
    hands: tuple[int, ...] = (-1, -1)
    faults: int = 0
    #: A row was made due whose trigger lay in the queue.
    in_vain: bool = False


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 2
    #: A mark speaks for rows of a certain age alone.
    aged: bool = True
    #: Marks are sent again as long as rows wait.
    again: bool = True
    #: A row that is sent anew is not spoken for by marks from before.
    anew: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {"what waits in the queue is not published again": lambda s: not s.in_vain},
        lambda s: all(row.state == "done" for row in s.rows),
    )


def _row(s: State, number: int, row: Row) -> State:
    return s._replace(rows=(*s.rows[:number], row, *s.rows[number + 1 :]))


def _hand(s: State, place: int, value: int) -> State:
    return s._replace(hands=tuple(sorted((*s.hands[:place], *s.hands[place + 1 :], value))))


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    for number, row in enumerate(s.rows):
        yield from _send(s, rules, number, row)
    yield from _mark(s, rules)
    if s.faults < rules.faults:
        for place in range(len(s.queue)):
            what = "a mark" if isinstance(s.queue[place], frozenset) else f"row {s.queue[place]}'s trigger"
            left = (*s.queue[:place], *s.queue[place + 1 :])
            yield Step(f"the queue loses {what}", s._replace(queue=left, faults=s.faults + 1), True)
    yield from _receive(s, rules)


def _mark(s: State, rules: Rules) -> Iterator[Step[State]]:
    old_enough = {n for n, row in enumerate(s.rows) if row.state == "sent" and (row.out or not rules.aged)}
    waiting = frozenset(n for n in old_enough if rules.again or not s.rows[n].marked)
    if waiting and not any(isinstance(item, frozenset) for item in s.queue):
        rows = tuple(row._replace(marked=row.marked or (n in waiting and not rules.again)) for n, row in enumerate(s.rows))
        yield Step(f"a mark is sent behind the rows {sorted(waiting)}", s._replace(rows=rows, queue=(*s.queue, waiting)))


def _send(s: State, rules: Rules, number: int, row: Row) -> Iterator[Step[State]]:
    if row.state in ("new", "due"):
        told = s if not rules.anew else _silenced(s, number)
        yield Step(f"row {number} is committed as sent", _row(told, number, Row("sent")))
    elif row.state == "sent" and not row.out:
        published = _row(s, number, row._replace(out=True))
        yield Step(f"row {number}'s trigger is published", published._replace(queue=(*s.queue, number)))
        if s.faults < rules.faults:
            yield Step(f"the sender of row {number} dies before it published", published._replace(faults=s.faults + 1), True)
    elif row.state == "sent" and row.passed:
        vain = s.in_vain or number in s.queue
        yield Step(f"look: row {number}'s mark has passed, it is due", _row(s, number, Row("due"))._replace(in_vain=vain))


def _silenced(s: State, number: int) -> State:
    """Marks in the queue are older than what is sent now."""
    queue = tuple(item - {number} if isinstance(item, frozenset) else item for item in s.queue)
    return s._replace(queue=queue)


def _receive(s: State, rules: Rules) -> Iterator[Step[State]]:
    for place, held in enumerate(s.hands):
        if place and held == s.hands[place - 1]:
            continue
        if held < 0 and s.queue:
            head, rest = s.queue[0], s._replace(queue=s.queue[1:])
            if isinstance(head, frozenset):
                # It speaks only for triggers that are in nobody's hands: those are on their way to their claim.
                rows = tuple(
                    row._replace(passed=row.passed or (row.state == "sent" and n in head)) for n, row in enumerate(s.rows)
                )
                yield Step("a receiver gets the mark", rest._replace(rows=rows))
            else:
                yield Step(f"a receiver takes row {head}'s trigger", _hand(rest, place, head))
        elif held >= 0:
            row, empty = s.rows[held], _hand(s, place, -1)
            claimed = Row("done") if row.state in ("sent", "due") else row
            yield Step(f"row {held} is claimed and runs", _row(empty, held, claimed))
            # Had its mark passed meanwhile, it would be published once more in vain: that is the price of a dead receiver.
            if s.faults < rules.faults and not row.passed:
                back = empty._replace(queue=(held, *s.queue), faults=s.faults + 1)
                yield Step(f"a receiver dies, row {held}'s trigger is where it was", _row(back, held, row), True)
