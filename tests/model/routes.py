"""Model: two brokers, two processes that are restarted with another BROKER one by one, and one row.

    declare    a starting process whose broker nobody declares lets it enter; what entered last is the route. A declaration lapses a lease
               after its last process
    decide     a keeper looks who entered last, then writes the route if its version is still the one it saw
    send       to the route that the sender knows, which may be an older one
    move       a waiting row that was published elsewhere than the route says is published to the route
    work       a process takes triggers of its own broker and of the route's

A decision is a person's: BROKER changed in the settings, then every process restarted in turn, or a change of mind halfway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.model.search import Protocol, Step

OLD, NEW = "old", "new"


class Seen(NamedTuple):
    """What a keeper read before it writes the route."""

    winner: str
    version: int


class State(NamedTuple):
    """``fleet``: each process's BROKER, empty: not running. ``entered``: brokers declared, the last one last."""

    setting: str = OLD
    fleet: tuple[str, ...] = (OLD, OLD)
    entered: tuple[str, ...] = (OLD,)
    route: str = OLD
    version: int = 1
    seen: tuple[Seen | None, ...] = (None, None)
    #: The row: not sent, waiting, done. Where its trigger went, and in which brokers one lies.
    row: str = "new"
    placed: str = ""
    triggers: frozenset[str] = frozenset()
    faults: int = 0
    #: How often the route had a reason to change (a declaration that came or went), and how often the row moved since the last one.
    reasons: int = 1
    moves: int = 0


@dataclass(frozen=True)
class Rules:
    """The protocol; each switch turned the wrong way is one of its guards removed."""

    decisions: int = 2
    #: The route is written only over the version that was read.
    compare_and_set: bool = True
    #: Which broker entered last decides, not which one was heard of last.
    last_entry_wins: bool = True
    #: Relays publish to the route, not to their own process's broker.
    relay_to_route: bool = True
    #: A declaration lapses with its last process.
    lapses: bool = True
    #: Rows published elsewhere are moved at all.
    moved: bool = True


def protocol(rules: Rules) -> Protocol[State]:
    """The model under these rules."""
    return Protocol(
        State(),
        lambda state: _steps(state, rules),
        {
            "the route changes only when a declaration came or went": lambda s: s.version <= s.reasons,
            "a row moves once per version": lambda s: s.moves <= 1,
        },
        # At rest: the row has run, every process has the setting, and the route is that.
        lambda s: s.row == "done" and set(s.fleet) == {s.setting} and s.route == s.setting and s.seen == (None, None),
    )


def _at(values: tuple[str, ...], place: int, value: str) -> tuple[str, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _steps(s: State, rules: Rules) -> Iterator[Step[State]]:
    if s.faults < rules.decisions:
        other = NEW if s.setting == OLD else OLD
        yield Step(f"somebody decides: BROKER is the {other} one", s._replace(setting=other, faults=s.faults + 1), True)
    if s.row == "new":
        for broker in (OLD, NEW):
            if broker in s.entered or broker == s.route:
                sent = s._replace(row="waiting", placed=broker, triggers=frozenset({broker}))
                yield Step(f"a sender that knows this route sends to the {broker} broker", sent)
    if s.row == "waiting":
        for broker in s.triggers:
            yield Step(f"the {broker} broker loses the trigger", s._replace(triggers=s.triggers - {broker}), True)
    for place, own in enumerate(s.fleet):
        yield from _life(s, rules, place, own, f"process {place + 1}")
        if own:
            yield from _decide(s, rules, place, own, f"process {place + 1} ({own})")
            yield from _relay(s, rules, own, f"process {place + 1} ({own})")
            yield from _work(s, own, f"process {place + 1} ({own})")
    for broker in s.entered:
        if broker not in s.fleet and rules.lapses and len(s.entered) > 1:
            left = tuple(name for name in s.entered if name != broker)
            yield Step(
                f"a lease later: nobody declares the {broker} broker any more", s._replace(entered=left, reasons=s.reasons + 1)
            )


def _life(s: State, rules: Rules, place: int, own: str, name: str) -> Iterator[Step[State]]:
    if own and own != s.setting:
        seen = tuple(None if at == place else value for at, value in enumerate(s.seen))
        yield Step(f"{name} stops, to be restarted", s._replace(fleet=_at(s.fleet, place, ""), seen=seen))
    if not own:
        after = s._replace(fleet=_at(s.fleet, place, s.setting))
        if s.setting not in s.entered:
            after = after._replace(entered=(*s.entered, s.setting), reasons=s.reasons + 1)
        yield Step(f"{name} starts with the {s.setting} broker", after)


def _decide(s: State, rules: Rules, place: int, own: str, name: str) -> Iterator[Step[State]]:
    seen = s.seen[place]
    if seen is None:
        winner = s.entered[-1] if rules.last_entry_wins else own
        if winner != s.route:
            looked = tuple(Seen(winner, s.version) if at == place else value for at, value in enumerate(s.seen))
            yield Step(f"{name}: sees that the route should be the {winner} broker", s._replace(seen=looked))
        return
    after = s._replace(seen=tuple(None if at == place else value for at, value in enumerate(s.seen)))
    if seen.version == s.version or not rules.compare_and_set:
        after = after._replace(route=seen.winner, version=s.version + 1, moves=0)
        yield Step(f"{name}: writes the route: the {seen.winner} broker, version {after.version}", after)
    else:
        yield Step(f"{name}: the route has changed meanwhile, leaves it", after)


def _relay(s: State, rules: Rules, own: str, name: str) -> Iterator[Step[State]]:
    if s.row != "waiting":
        return
    target = s.route if rules.relay_to_route else own
    if s.placed != target:
        if rules.moved:
            moved = s._replace(placed=target, triggers=s.triggers | {target}, moves=s.moves + 1)
            yield Step(f"{name}: moves the row to the {target} broker", moved)
    elif target not in s.triggers:
        yield Step(f"{name}: publishes the lost trigger again", s._replace(triggers=s.triggers | {target}))


def _work(s: State, own: str, name: str) -> Iterator[Step[State]]:
    for broker in s.triggers & {own, s.route}:
        after = s._replace(triggers=s.triggers - {broker}, row="done")
        yield Step(f"{name}: takes the {broker} broker's trigger, the job runs" if s.row == "waiting" else "drops it", after)
