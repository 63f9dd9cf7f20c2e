"""What a duty is: something the keeper does every now and then, and what it is given to do it with.

A duty is quick, bounded, and safe in any number of processes at once: it takes rows with SKIP LOCKED, or finds that another is at it. It
may raise: the loop says so, goes on with the others, and comes back to it when its next turn is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from dramatiq import Message

from brokers.transport import Transport
from ledger.database import BoundedConnection, Database
from ledger.routes import Place
from runtime.counters import Counters
from runtime.publisher import Publisher
from runtime.routes import Routes
from settings import Settings


class KeepsBroker(Protocol):
    """The broker, as far as the duties need it."""

    publisher: Publisher
    actors: dict[str, Any]
    queues: dict[str, None]
    #: This process's view of the routes.
    routes: Routes

    @property
    def carriers(self) -> dict[str, bool]:
        """The brokers that this process can publish to, each with whether it carries triggers (or the row itself is the message)."""

    def follow_routes(self, left_behind: Sequence[Place]) -> None:
        """Fetch from the brokers that are routes now, and from where something was left behind."""

    def enqueue(self, message: Message[Any]) -> Message[Any]:
        """Send a message: write its job, and have its trigger published."""

    def transport(self, name: str) -> Transport:
        """One of the transports, by name."""


class KeepsNode(Protocol):
    """The process, as far as the duties need it."""

    settings: Settings
    database: Database
    counters: Counters


class Seen(NamedTuple):
    """What there is to do, as the look at the beginning of a sweep found it."""

    #: A claim's lease has ended.
    lost: bool = False
    #: Something waits beyond its max_age.
    expired: bool = False
    #: Something waits for a worker that knows its actor.
    unknown: bool = False
    #: Something waits in the Postgres broker.
    waiting: bool = False
    #: Something is paused, and something is parked.
    paused: bool = False
    parked: bool = False
    #: A batch is not over.
    batches: bool = False
    #: A death waits to be told.
    deaths: bool = False
    #: Something waits for a slot that is taken, or has to be promised one anew.
    held: bool = False
    #: The broker of each queue that has a route.
    routes: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Keeping:
    """What every duty is given beside the connection, and what they tell each other."""

    node: KeepsNode
    broker: KeepsBroker
    #: When the connection came back after a loss (monotonic); None: it never was lost.
    connected_again_at: float | None = None
    #: When to look for strays again (monotonic), and how many looks found none.
    strays_at: float = 0.0
    strays_missed: int = 0
    #: What duties remember between their turns, by their names.
    memory: dict[str, Any] = field(default_factory=dict)
    #: What to close when the keeper ends.
    at_end: list[Callable[[], None]] = field(default_factory=list)
    #: The sweep's look.
    seen: Seen = field(default_factory=Seen)

    @property
    def settings(self) -> Settings:
        """The settings of the process."""
        return self.node.settings


@dataclass(frozen=True, slots=True)
class Duty:
    """One line of the table in ``keeper.duties``.

    Parameters:
        name: what log lines call it.
        period: seconds between two turns, by the settings.
        run: one turn; returns the seconds until it wants the next one, or None for its period. Raises whatever it likes.
    """

    name: str
    period: Callable[[Settings], float]
    run: Callable[[BoundedConnection, Keeping], float | None]
