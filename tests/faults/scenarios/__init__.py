"""The scenarios: what is done to the system. One module per victim; each scenario is one function over a rig and a plan.

A scenario starts what it needs, and then, for each trial of its plan, hurts the system once and lets it recover; the caller has everything
end and checks the invariants. What is peculiar to a scenario it asserts itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from time import monotonic
from typing import Any

from tests.faults.checker import Verdict
from tests.faults.rig import Rig
from tests.faults.servers import Servers

ALL = ("postgres", "redis", "rabbitmq")
MODULES = (
    "backlog",
    "carriers",
    "clocks",
    "disk",
    "failpoints",
    "fleets",
    "ledger",
    "limits",
    "network",
    "poison",
    "processes",
    "rates",
    "schedules",
)


@dataclass
class Plan:
    """How much of a scenario to run: trials until the time is over, and at least ``trials``, at most ``most``."""

    seconds: float
    trials: int
    most: int = 1_000_000
    #: In the test suite: only what a noisy machine does not spoil is asserted.
    small: bool = False
    #: Sizes as in the plan, and not such as fit an hour.
    full: bool = False
    done: int = 0
    began: float = field(default_factory=monotonic)

    def __iter__(self) -> Iterator[int]:
        while self.done < self.most and (self.done < self.trials or monotonic() - self.began < self.seconds):
            yield self.done
            self.done += 1


@dataclass(frozen=True)
class Scenario:
    """A row of the fault plan."""

    name: str
    title: str
    run: Callable[[Rig, Plan], None]
    #: What a trial is, in the plural.
    unit: str
    #: The count of trials that FULL=1 reaches, per broker.
    full: int
    brokers: tuple[str, ...] = ALL
    #: The share of the time.
    weight: float = 1.0
    #: Of how many kinds its trials are, in turns; each is tried at least once.
    kinds: int = 1
    #: Least trials on a broker, where the usual ten say no more than fewer do.
    least: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    #: How jobs of each actor have to end; None: as ``checker.ENDS`` says.
    ends: dict[str, str] | None = None
    #: Whether the recovery bound (lease + sweep + 5 s) is part of the promise.
    bounded: bool = False
    #: More that has to hold, asked when everything has ended.
    after: Callable[[Rig, Verdict], None] | None = None
    #: Seconds without the end of any job after which those that are left count as stuck.
    quiet: float = 45.0
    #: Makes the servers of this scenario alone, given those of the run.
    servers: Callable[[Servers], Servers] | None = None
    #: Raises ``Unavailable`` where the machine lacks what the scenario needs: asked before an hour is spent on the others.
    needs: Callable[[], object] | None = None


REGISTRY: dict[str, Scenario] = {}


def scenario(name: str, title: str, **options: Any) -> Callable[[Callable[[Rig, Plan], None]], Callable[[Rig, Plan], None]]:
    """Register the function below as a scenario."""

    def register(run: Callable[[Rig, Plan], None]) -> Callable[[Rig, Plan], None]:
        REGISTRY[name] = Scenario(name, title, run, **options)
        return run

    return register


def load() -> dict[str, Scenario]:
    """Every scenario by its name, in the order of the plan."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")
    return dict(sorted(REGISTRY.items(), key=lambda entry: int(entry[0][1:])))
