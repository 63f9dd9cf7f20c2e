"""Other ledgers under the same BROKER_PREFIX in the same broker: each system takes the other's triggers, and jobs of both start late.

Nothing is lost by that, since the watch finds the triggers gone, so nothing stops; but only an operator can end it. The keeper that watches
over a broker (``keeper.watch``) says there each sweep that it does, and where its ledger is, and hears what others say.

    who watches    one keeper for each ledger and broker: a row of the ledger says which, and is renewed by it alone
    a presence     the keeper's name, and a beat that is another one each time (``brokers.presence``)
    a neighbour    whose beat went on, twice, while this keeper's own watch never lapsed: then its watch is a row of another ledger

So it needs no name for a ledger, and there is none that a copy does not share: what is restored from a dump, a snapshot or a base backup
has every row of the original, and often its server's identifier. In one ledger a keeper that was frozen may speak once more after another
has taken its place, and no more than once, since it asks the ledger before each time.

It is logged as an error, again every ten minutes, and told to ``switchyard status`` through the keeper's own presence. It ends by itself
when the neighbour has been silent for some of its sweeps. A broker that refuses this alone is asked again a minute later.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Final

from structlog.stdlib import get_logger

from brokers.presence import Presence
from brokers.transport import Inspector, Transport, TransportDown
from ledger.place import place
from settings import Settings

logger = get_logger(__name__)

#: How often a beat must have gone on. Once may be a frozen keeper of the own ledger that woke up; and once more, than that allows.
PROOF: Final = 2
#: For how long a neighbour is one after its last word, in times that its word counts: another keeper may take over its ledger's watch.
LINGER: Final = 4
#: How often it is said in the log while it lasts, and at least how long after the last time when there are others, in seconds.
REMIND: Final = 600.0
PAUSE: Final = 60.0
#: When to ask again where the broker refuses, in seconds.
REFUSED: Final = 60.0
#: What an operator can do about it.
ADVICE: Final = (
    "give one system a BROKER_PREFIX of its own and restart all its processes; what waits there is published again then"
)


@dataclass(slots=True)
class _Met:
    """Another keeper, by its last word; until when that counts (monotonic), and how often its beat went on."""

    presence: Presence
    until: float
    beats: int = 0


class Neighbours:
    """What one keeper knows of others under its prefix in one broker.

    Parameters:
        keeper: its name in the ledger's row about who watches.
        seconds: for how long that row counts.
    """

    def __init__(self, transport: Transport, settings: Settings, keeper: str, seconds: float) -> None:
        self._transport = transport
        self._settings = settings
        self._keeper = keeper
        self._seconds = seconds
        self._ledger = f"{place(settings.database_url.get_secret_value())} (watched from {socket.gethostname()})"
        self._beat = 0
        self._met: dict[str, _Met] = {}
        self._watched_at = -inf
        self._next_at = 0.0
        self._said: tuple[str, ...] = ()
        self._said_at = -inf
        self._refused = False

    @property
    def others(self) -> tuple[str, ...]:
        """The ledgers beside the own one, for people."""
        return tuple(sorted({met.presence.ledger for met in self._met.values() if met.beats >= PROOF}))

    def forget(self) -> None:
        """Another keeper of this ledger watches: what is heard while that lasts proves nothing."""
        self._watched_at = -inf

    def turn(self, inspector: Inspector, watched_at: float) -> None:
        """Say that this keeper watches, and hear who else does; at most every half a sweep.

        Parameters:
            watched_at: when the ledger last said that this keeper watches, in seconds on the database's clock.
        """
        lapsed = watched_at - self._watched_at > self._seconds
        self._watched_at = watched_at
        if lapsed:
            # Another keeper of this ledger may have watched in between: what its beat did proves nothing.
            self._met.clear()
        if monotonic() < self._next_at:
            return
        self._next_at = monotonic() + self._settings.sweep / 2
        self._beat += 1
        try:
            found = inspector.meet(Presence(self._keeper, self._beat, self._seconds, self._ledger, self.others))
        except TransportDown as error:
            self._next_at = monotonic() + REFUSED
            if not self._refused:
                logger.info(
                    "cannot tell whether another ledger uses this BROKER_PREFIX", broker=self._transport.name, error=str(error)
                )
            self._refused = True
            return
        self._refused = False
        self._take(found)
        self._say(self.others)

    def _take(self, found: list[Presence]) -> None:
        now = monotonic()
        for presence in found:
            known = self._met.get(presence.keeper)
            beats = 0 if known is None else known.beats + (presence.beat != known.presence.beat)
            if known is None or presence.beat != known.presence.beat:
                self._met[presence.keeper] = _Met(presence, now + LINGER * presence.seconds, beats)
        self._met = {keeper: met for keeper, met in self._met.items() if met.until > now}

    def _say(self, others: tuple[str, ...]) -> None:
        now, prefix, transport = monotonic(), self._settings.broker_prefix, self._transport
        if not others:
            if self._said:
                logger.info("no other ledger uses this BROKER_PREFIX any more", broker=transport.name, prefix=prefix)
            self._said = ()
        elif now - self._said_at >= (REMIND if set(others) <= set(self._said) else PAUSE):
            self._said, self._said_at = others, now
            logger.error(
                "another ledger uses the same broker and BROKER_PREFIX: each takes the other's triggers, so jobs of both start late",
                broker=transport.name, at=transport.place, prefix=prefix, ledger=self._ledger, others=list(others), advice=ADVICE,
            )  # fmt: skip
