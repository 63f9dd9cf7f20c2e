"""Model: a broker that is wiped, its epoch, and the search for lost triggers that leaves rows with a waiting trigger alone.

    send      the row is committed as *sent*, then its trigger is published; the sender dies between
    wipe      the broker forgets triggers and epoch
    epoch     a keeper finds none: sets a new one if there is none yet, then stores it in the ledger if that still holds the old one, in
              one transaction with making the rows due. A difference between the two is repaired by the same transaction
    look      a sent row whose trigger is not in the broker is due
    relay     what is due is published, and *sent* again
    worker    takes a trigger, claims; dies between

Two keepers, which may die between any two of their statements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step


class Keeper(NamedTuple):
    """Where a keeper is: idle, missing (the broker has no epoch), set (it has this one now), stored (in the ledger; the broker's turn)."""

    doing: str = "idle"
    #: The ledger's epoch when it looked, and the one to be stored.
    old: int = 0
    new: int = 0


class State(NamedTuple):
    """``row``: sent, due or done. An epoch of 0 is none."""

    row: str = "new"
    publishing: bool = False
    trigger: bool = False
    in_hand: bool = False
    broker: int = 1
    ledger: int = 1
    keepers: tuple[Keeper, ...] = (Keeper(), Keeper())
    faults: int = 0
    #: The trigger lay in the broker when it was wiped, and the row has not been made due since.
    wiped: bool = False
    #: The row's trigger was seen, and it is not looked for any more.
    passed: bool = False


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    faults: int = 3
    #: A new epoch is in the broker before it is in the ledger.
    broker_first: bool = True
    #: Storing an epoch and making the rows due is one transaction.
    one_transaction: bool = True
    #: Whether a sent row's trigger is there is asked each time, not once.
    verified_again: bool = True
    #: Rows are looked for at all (without it the epoch alone has to tell).
    looked_for: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {"equal epochs mean that nothing was wiped since": lambda s: not (s.wiped and s.broker == s.ledger)},
        lambda s: s.row == "done" and s.broker == s.ledger,
    )


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    if s.row == "new":
        yield Step("the sender commits the row", s._replace(row="sent", publishing=True))
    if s.publishing:
        yield Step("its trigger is published", s._replace(publishing=False, trigger=True, wiped=False))
        yield Step("the sender dies before it published", s._replace(publishing=False), True)
    if s.faults < rules.faults:
        wiped = s.wiped or (s.trigger and s.row == "sent")
        yield Step("the broker is wiped", s._replace(trigger=False, broker=0, faults=s.faults + 1, wiped=wiped), True)
    yield from _rows(s, rules)
    for place, keeper in enumerate(s.keepers):
        if not place or keeper != s.keepers[0]:
            yield from _epoch(s, rules, place, keeper)


def _rows(s: State, rules: Rules) -> Iterator[Step[State]]:
    if s.row == "sent" and not s.passed:
        if not s.trigger and rules.looked_for:
            yield Step("look: the trigger is not in the broker, the row is due", s._replace(row="due", wiped=False))
        elif s.trigger and not rules.verified_again:
            yield Step("look: the trigger is there, the row is left alone for good", s._replace(passed=True))
    if s.row == "due":
        yield Step("relay: publishes the row", s._replace(row="sent", publishing=True, passed=False))
    if s.trigger and not s.in_hand:
        yield Step("a worker takes the trigger", s._replace(trigger=False, in_hand=True))
    if s.in_hand:
        done = s.row in ("sent", "due")
        yield Step("the worker claims and runs the job", s._replace(in_hand=False, row="done" if done else s.row, wiped=False))
        if s.faults < rules.faults:
            yield Step("the worker dies with the trigger in hand", s._replace(in_hand=False, faults=s.faults + 1), True)


def _put(s: State, place: int, keeper: Keeper) -> State:
    return s._replace(keepers=tuple(sorted((*s.keepers[:place], *s.keepers[place + 1 :], keeper))))


def _store(s: State, new: int, rules: Rules) -> State:
    """The ledger's transaction."""
    if rules.one_transaction:
        return _due(s._replace(ledger=new))
    return s._replace(ledger=new)


def _due(s: State) -> State:
    return s._replace(row="due" if s.row == "sent" else s.row, wiped=False, passed=False)


def _epoch(s: State, rules: Rules, place: int, k: Keeper) -> Iterator[Step[State]]:
    idle = _put(s, place, Keeper())
    if k.doing != "idle" and s.faults < rules.faults:
        yield Step(f"a keeper dies ({k.doing})", idle._replace(faults=s.faults + 1), True)
    if k.doing == "idle":
        if not s.broker:
            yield Step("a keeper finds no epoch in the broker", _put(s, place, Keeper("missing", s.ledger)))
        elif s.broker != s.ledger:
            words = "a keeper finds another epoch in the broker than in the ledger"
            yield Step(words, _put(s, place, Keeper("set", s.ledger, s.broker)))
    elif k.doing == "missing":
        # A number that nobody remembers is as good as a random one.
        known = {s.broker, s.ledger, *(n for keeper in s.keepers for n in keeper[1:])}
        new = next(number for number in range(1, 9) if number not in known)
        if not rules.broker_first:
            after = _store(_put(s, place, Keeper("stored", k.old, new)), new, rules) if s.ledger == k.old else idle
            yield Step(f"the keeper stores epoch {new} in the ledger, the rows are due", after)
        elif s.broker:
            yield Step("the keeper's new epoch comes too late, another one is there", idle)
        else:
            after = _put(s._replace(broker=new), place, Keeper("set", k.old, new))
            yield Step(f"the keeper sets epoch {new} in the broker", after)
    elif k.doing == "set":
        if s.ledger != k.old:
            yield Step("the ledger's epoch has changed meanwhile, the keeper leaves it", idle)
        else:
            after = _store(idle, k.new, rules)
            if not rules.one_transaction:
                after = _put(after, after.keepers.index(Keeper()), Keeper("rows", k.old, k.new))
            yield Step(f"the keeper stores epoch {k.new} in the ledger" + ", the rows are due" * rules.one_transaction, after)
    elif k.doing == "rows":
        yield Step("the keeper makes the rows due", _due(idle))
    elif s.broker:
        yield Step("another epoch is in the broker already", idle)
    else:
        yield Step(f"the keeper sets epoch {k.new} in the broker", idle._replace(broker=k.new))
