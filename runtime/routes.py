"""Where this process sends the triggers of each queue: the ledger's routes as it last saw them, and before any worker declared one its
own settings.

Asked at every send, so it is a look into a dict; who has a connection at hand (heartbeat, keeper, the publisher after it published)
brings the latest. What is sent by a stale view goes to the broker that was the route a moment ago, and is moved from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Final

from ledger.routes import EVERY_QUEUE, Route

#: How old a busy sender's view may become, in seconds.
MAX_AGE: Final = 1.0


class Routes:
    """One process's view.

    Parameters:
        declared: what its settings say, by queue, with ``EVERY_QUEUE`` among them.
    """

    def __init__(self, declared: Mapping[str, str]) -> None:
        self.declared = dict(declared)
        #: When the ledger was last asked (monotonic); None: never.
        self.seen_at: float | None = None
        self._view = _split(declared)

    def of(self, queue: str) -> str:
        """The broker that carries this queue's triggers."""
        named, default = self._view
        return named.get(queue, default)

    @property
    def brokers(self) -> set[str]:
        """Every broker that is some queue's route."""
        named, default = self._view
        return {default, *named.values()}

    @property
    def view(self) -> object:
        """What equals another view of the same routes."""
        return self._view

    @property
    def stale(self) -> bool:
        """Whether the view is older than a sender's should be."""
        return self.seen_at is None or monotonic() - self.seen_at > MAX_AGE

    def learn(self, routes: Iterable[Route]) -> bool:
        """Take over what the ledger says. Returns whether anything changed."""
        return self.take({route.queue: route.broker for route in routes})

    def take(self, found: Mapping[str, str]) -> bool:
        """The same, of routes as queue and broker."""
        # As long as no worker has declared anything: this process's own word, but for what an operator decided.
        view = _split(found if EVERY_QUEUE in found else {**self.declared, **found})
        before, self._view = self._view, view
        self.seen_at = monotonic()
        return before != view


def _split(routes: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The queues that are named, and the broker of all others."""
    return {queue: broker for queue, broker in routes.items() if queue != EVERY_QUEUE}, routes[EVERY_QUEUE]
