"""The contract of a transport: how triggers travel between the processes that send jobs and those that run them.

A transport carries *triggers*, never jobs: a trigger says "row N of the ledger may be ready to run", and the guarded claim
decides whether it is. So a transport may lose, repeat or reorder them and no job is lost or run twice: the relay publishes
again what stays pending, and a second claim of one row finds nothing. What a transport owes is speed, a blocking wake-up,
order by priority band, and an honest report of what it could not publish.

    sender thread (one per process)            fetcher thread (one per transport and worker process)
      Sender.publish(batch)   ─► broker ─►       Receiver.fetch(queues, limit, timeout)
      Sender.flush(timeout)                      Receiver.settle(triggers)      right after the claim is committed

    keeper thread (one of the fleet at a time)
      Inspector.epoch(queue, known)   is it still the broker that the ledger's triggers went to?
      Inspector.lost(sent, passed)    which of these triggers are gone?
      Inspector.meet(own)             who else watches over this prefix?

A queue that the broker refuses while it serves others (declared otherwise by hand, forbidden to our user) is set aside alone: senders name
it in ``refused()``, receivers go on with the rest, inspectors answer ``QueueRefused``. Each asks for it again by itself, with back-off
(``brokers.refusals``).

Every ``Sender``, ``Receiver`` and ``Inspector`` is used by one thread at a time and owns its connection; constructing one is free, the
first call connects. Every failure to reach the broker leaves as ``TransportDown``; the next call connects anew. No call may block for
longer than the transport's socket time-out (5 s) beyond the time-out it was given, however the broker behaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

from brokers.presence import Presence
from ledger.dead import DeadNotice
from runtime.enlist import DUE_CHANNEL
from runtime.triggers import Outgoing, PublishFailed
from settings import Settings

#: How long a socket operation on a broker may take before the broker counts as down, in seconds.
SOCKET_TIMEOUT = 5.0

#: In what ``Doorbell.wait`` returns: rings may have been missed, so every queue may have something.
ANY_QUEUE: Final = "*"

#: Dramatiq priorities are any integers, lower first; a carried trigger is ordered by one of ten bands. Postgres orders exactly.
BANDS = 10


# A named tuple, as Outgoing: one is built per job on the hot path.
class Trigger(NamedTuple):
    """A trigger that arrived. ``receipt`` is the transport's own (a delivery tag); nobody else looks at it."""

    job_id: int
    queue: str
    actor: str
    receipt: object = None


class Mark(NamedTuple):
    """A sign that travels among the triggers of one queue and band: where it arrives, those published before it have arrived.

    ``at`` is when it was published, in seconds since 1970 on the database's clock.
    """

    queue: str
    band: int
    at: float


class Sent(NamedTuple):
    """A trigger that was published at ``at`` (seconds since 1970 on the database's clock) and whose row is still pending."""

    job_id: int
    queue: str
    actor: str
    priority: int
    at: float


@dataclass(slots=True)
class Fetched:
    """What one ``fetch`` brought: triggers, raw messages that no trigger could be read from, and marks (both dropped by the transport)."""

    triggers: list[Trigger] = field(default_factory=list)
    undecodable: list[bytes] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether it brought anything."""
        return bool(self.triggers or self.undecodable or self.marks)


class TransportDown(PublishFailed):
    """The broker could not be reached or did not answer in time; ``unpublished`` matters to senders alone."""


class QueueRefused(Exception):
    """The broker is there and refuses one queue: it will until an operator does something about it.

    ``reason`` is what the broker says, ``advice`` what the operator can do.
    """

    def __init__(self, queue: str, reason: str, advice: str) -> None:
        super().__init__(f"queue {queue}: {reason}")
        self.queue = queue
        self.reason = reason
        self.advice = advice


class Sender(ABC):
    """The publishing side. Used by the process's one publisher thread alone."""

    @abstractmethod
    def publish(self, batch: Sequence[Outgoing]) -> list[int]:
        """Hand a batch to the broker, pipelined, without waiting for one reply per trigger.

        Returns: ids of rows of this or an *earlier* batch that are now known to have failed (refused, returned). Usually empty.
        Raises: TransportDown: with every id that may not have arrived.
        """

    def flush(self, timeout: float) -> list[int]:
        """Wait at most ``timeout`` seconds until everything published is confirmed. Returns and raises as ``publish``."""
        return []

    def idle(self) -> list[int]:
        """Called as soon as nothing has come to publish for 5 ms, and every second from then on: answer heartbeats, collect
        confirms, send what ``publish`` held back. Waits for nothing but the answer about a refused queue. Returns and raises as
        ``publish``."""
        return []

    def refused(self) -> Collection[str]:
        """The queues that the broker refuses at present. What ``publish`` is given for them is not sent and returned as failed; ``idle``
        and ``publish`` ask for them again when their time has come."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Close the connection, quietly."""


class Receiver(ABC):
    """The consuming side. Used by the transport's fetcher thread alone."""

    @abstractmethod
    def fetch(self, queues: Sequence[str], limit: int, timeout: float) -> Fetched:
        """Take up to ``limit`` triggers, best priority first, waiting up to ``timeout`` seconds for the first one.

        ``queues`` may change between calls. With several queues none may starve: whoever is first rotates. It returns with what
        there is, never waiting to fill up. With ``limit`` 0 (or no queues) it answers heartbeats, gives back what a prefetching
        broker sent too early, and returns at once; call it so every second while there is no room. What cannot be decoded is
        taken out of the broker for good and returned in ``undecodable``; its neighbours are delivered. Queues that the broker refuses are
        left out until it takes them again.
        Raises: TransportDown.
        """

    @abstractmethod
    def settle(self, triggers: Sequence[Trigger]) -> None:
        """The claim is committed, or the trigger refused for good: the broker may forget these. A lost connection is no error
        here: the broker then delivers them again and the claim refuses them."""

    @abstractmethod
    def give_back(self, triggers: Sequence[Trigger]) -> None:
        """Return triggers that were fetched but not claimed, for another process to take at once. Best effort, as ``settle``."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection, quietly; triggers not settled go back to the broker where it can do that."""


class Inspector(ABC):
    """The keeper's view of a broker that carries triggers: whether it is still the one they went to, and whether they are still in it."""

    #: Whether ``lost`` judges by marks.
    wants_marks: ClassVar[bool] = False

    @abstractmethod
    def epoch(self, queue: str, known: str | None) -> str:
        """The name of the broker's present life, or of the queue's where ``epoch_per_queue`` (``queue`` is empty elsewhere).

        It stays the same for as long as nothing was wiped: over restarts that keep the data, reconnects and other clients. A life without
        a name is given one here. Asked with the name that the ledger knows (``known``), any other answer means that triggers published
        until now may be gone. Of two that name a life at once both may get their own name back; only the one that reaches the ledger
        first counts, and the other goes with the life.
        Raises: TransportDown; QueueRefused: this queue alone cannot be asked about.
        """

    @abstractmethod
    def mark(self, marks: Sequence[Mark]) -> list[Mark]:
        """Have a receiver report, once it has received everything published before now in these queues and bands, that it has. Returns
        those that are under way: none where ``lost`` needs no marks, none for queues that nobody consumes. Raises: TransportDown."""

    @abstractmethod
    def lost(self, sent: Sequence[Sent], passed: Mapping[tuple[str, int], float]) -> list[int]:
        """The rows, by id, whose trigger is no longer in the broker, although nobody claimed it.

        It may name a row whose trigger a receiver has in hand at this moment (a copy is harmless), and it names every lost one sooner or
        later; one that waits in its queue is not named, nor is any of a queue that the broker refuses.

        Parameters:
            passed: ``Mark.at`` of the last mark that arrived, per queue and band.

        Raises: TransportDown.
        """

    @abstractmethod
    def meet(self, own: Presence) -> list[Presence]:
        """Say in the broker that this keeper watches over BROKER_PREFIX; it goes by itself after ``own.seconds``.

        Returns what others said there and still counts. One look may miss somebody. Raises: TransportDown: also when the broker refuses
        this question alone, which is no reason to think it away.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection, quietly."""


class Doorbell(ABC):
    """The receiving side of a transport that carries nothing: it only says that looking into the ledger may be worth it."""

    @abstractmethod
    def wait(self, timeout: float) -> set[str]:
        """Block until a queue rings or ``timeout`` seconds passed. Returns the queues that rang, all at once when many did.

        ``ANY_QUEUE`` among them says that rings may have been missed: on the first call, after each reconnect, and every quarter of
        a second where only those of the own process can be heard (PgBouncer). Never raises: while Postgres is away it waits out the
        time-out (polling is the fall-back) and reconnects by itself.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection, quietly."""


class Transport(ABC):
    """One kind of broker: a factory of senders and receivers, and what it can do, as data. Constructing one connects nothing."""

    #: The value of BROKER that selects it, and what the ``broker`` column of a row says.
    name: ClassVar[str]
    #: True: triggers travel through ``receiver()``. False: the row itself is the message, and ``doorbell()`` rings.
    carries_triggers: ClassVar[bool]
    #: Whether each queue has an epoch of its own, since it can be lost alone.
    epoch_per_queue: ClassVar[bool] = False
    #: Where ``put_dead`` puts dead letters, for whoever watches the broker and not the ledger; ``{prefix}`` is BROKER_PREFIX. None: it has
    #: no such place.
    dead_letter_place: ClassVar[str | None] = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def sender(self) -> Sender:
        """A new publishing side."""

    def receiver(self) -> Receiver:
        """A new consuming side; only where ``carries_triggers``."""
        raise TypeError(f"the {self.name} transport carries no triggers")

    def inspector(self) -> Inspector:
        """A new inspector; only where ``carries_triggers``."""
        raise TypeError(f"the {self.name} transport carries no triggers")

    def doorbell(self) -> Doorbell:
        """A new doorbell; only where not ``carries_triggers``."""
        raise TypeError(f"the {self.name} transport carries triggers and has no doorbell")

    def rings(self, queues: Iterable[str]) -> list[tuple[str, str]]:
        """The notifications, as (channel, payload), to send with rows of these queues in somebody's transaction, so that its commit wakes
        whoever has to act: the keepers, which publish; or, where the row is the message, the fetchers themselves."""
        return [(DUE_CHANNEL, "")]

    def put_dead(self, notices: Sequence[DeadNotice]) -> None:
        """Put dead letters, as JSON, into the broker's own place; only where there is a ``dead_letter_place``.

        On a connection of its own, closed at return: deaths are rare. When it returns, the broker has them all; when it raises, any number.
        Putting one again is harmless where entries have a key; elsewhere it makes a copy with the same message id. The place is bounded:
        the oldest go first. Raises: TransportDown.
        """
        raise TypeError(f"the {self.name} transport has no place for dead letters")

    @abstractmethod
    def depth(self, queues: Sequence[str]) -> dict[str, int]:
        """How many triggers wait in the broker, per queue (0 for those it does not know, or refuses). Raises: TransportDown."""

    def refusals(self, queues: Sequence[str]) -> list[QueueRefused]:
        """Which of these queues the broker refuses to whoever asks with these settings, as far as that can be told without making or
        taking anything. Raises: TransportDown."""
        return []

    @property
    def place(self) -> str:
        """Where the broker is, for people, without user and password: ``localhost:6379/0``."""
        return self.name

    def presence(self, keeper: str) -> Presence | None:
        """What the keeper of this name said of itself with ``Inspector.meet``; None: nothing that still counts. Raises: TransportDown."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close what ``depth`` and ``presence`` opened."""


#: Where a band ends: the first band holds every priority below the first bound, and so on. Around 0 the bands are one priority
#: wide, further out wider, so that both habits, 0-1-2 and 0-10-100, keep their order.
BAND_BOUNDS = (-99, -9, -1, 0, 1, 2, 10, 20, 100)


def band(priority: int) -> int:
    """The priority band, 0 (first) to 9 (last), of a Dramatiq priority (lower runs first, default 0 = band 4)."""
    return bisect_right(BAND_BOUNDS, priority)
