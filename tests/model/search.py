"""An exhaustive search through a protocol: every state it can get into, and the shortest story that leads to a wrong one.

A protocol is a start, the steps that are possible in a state, what must hold in every state (safety), and what it means that all work has
ended. A step is either ordinary or a *fault*: a crash, a loss, a pause, a person's decision. Faults may happen or not. Ordinary steps
happen in the end if they stay possible, so the protocol makes progress exactly if from every reachable state, the ones after faults
included, ordinary steps alone lead to an end. That is one search forwards, breadth first, and one backwards from the ends.

What happens at the same time is one step after the other in any order, as on one row of a database or in one script of a broker.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)

#: The name of the property that is not about one state but about where it leads.
ENDS: Final = "every accepted job can still end"
#: More than this and the model is too large to be of use.
MOST_STATES: Final = 400_000


class Step(NamedTuple, Generic[S]):
    """What may happen next, in words, and the state after it."""

    text: str
    after: S
    fault: bool = False


@dataclass(frozen=True)
class Protocol(Generic[S]):
    """One model.

    Parameters:
        start: the first state.
        steps: what may happen in a state.
        invariants: what holds in every state, by name.
        ended: whether all work has reached its end.
    """

    start: S
    steps: Callable[[S], Iterator[Step[S]]]
    invariants: Mapping[str, Callable[[S], bool]]
    ended: Callable[[S], bool]


@dataclass(frozen=True)
class Found:
    """What the search saw: how many states, and the first violation, if any."""

    states: int
    steps: int
    violated: str | None = None
    story: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.violated is None:
            return f"{self.states:,} states, {self.steps:,} steps, no violation"
        lines = [f"{number:>3}. {text}" for number, text in enumerate(self.story, 1)]
        return "\n".join([f"violated: {self.violated}", *lines, f"({self.states:,} states seen)"])


def brief(value: object) -> str:
    """A state in short: of each part only what differs from how it begins."""
    fields, defaults = getattr(value, "_fields", None), getattr(value, "_field_defaults", {})
    if fields is not None:
        parts = ((name, getattr(value, name)) for name in fields)
        told = " ".join(f"{name}={brief(part)}" for name, part in parts if name not in defaults or part != defaults[name])
        return f"{type(value).__name__}({told})"
    if type(value) is tuple:
        return "(" + ", ".join(brief(part) for part in value) + ")"
    return str(value)


class Search(Generic[S]):
    """One search; states are known by the number in which they were found."""

    def __init__(self, protocol: Protocol[S]) -> None:
        self.protocol = protocol
        self.numbers: dict[S, int] = {protocol.start: 0}
        self.found: list[S] = [protocol.start]
        self.parents = array("l", [-1])
        self.texts: list[str] = ["the beginning"]
        #: Ordinary steps only, as two columns: from, to.
        self.sources = array("l")
        self.targets = array("l")
        self.steps = 0

    def run(self) -> Found:
        """Search to the last state or to the first violation, which is one of the nearest."""
        wrong = self._check(0)
        position = 0
        while wrong is None and position < len(self.found):
            wrong = self._expand(position)
            position += 1
        if wrong is not None:
            return self._violation(wrong, len(self.found) - 1)
        stuck = self._stuck()
        if stuck is not None:
            return self._violation(ENDS, stuck)
        return Found(len(self.found), self.steps)

    def _expand(self, position: int) -> str | None:
        for text, after, fault in self.protocol.steps(self.found[position]):
            self.steps += 1
            number = self.numbers.get(after)
            if number is None:
                number = self.numbers[after] = len(self.found)
                self.found.append(after)
                self.parents.append(position)
                self.texts.append(("! " if fault else "  ") + text)
                wrong = self._check(number)
                if wrong is not None:
                    return wrong
                if number > MOST_STATES:
                    raise RuntimeError(f"more than {MOST_STATES:,} states; the last one: {brief(after)}")
            if not fault:
                self.sources.append(position)
                self.targets.append(number)
        return None

    def _check(self, number: int) -> str | None:
        state = self.found[number]
        return next((name for name, holds in self.protocol.invariants.items() if not holds(state)), None)

    def _stuck(self) -> int | None:
        """The nearest state from which ordinary steps lead to no end."""
        before: list[list[int]] = [[] for _ in self.found]
        for source, target in zip(self.sources, self.targets, strict=True):
            before[target].append(source)
        queue = [number for number, state in enumerate(self.found) if self.protocol.ended(state)]
        leads = bytearray(len(self.found))
        for number in queue:
            leads[number] = 1
        while queue:
            for source in before[queue.pop()]:
                if not leads[source]:
                    leads[source] = 1
                    queue.append(source)
        stuck = leads.find(0)
        return None if stuck < 0 else stuck

    def _violation(self, name: str, number: int) -> Found:
        story = []
        last = self.found[number]
        while number > 0:
            story.append(self.texts[number])
            number = self.parents[number]
        return Found(len(self.found), self.steps, name, [*reversed(story), f"  = {brief(last)}"])


def search(protocol: Protocol[S]) -> Found:
    """Look at every state that the protocol can get into."""
    return Search(protocol).run()
