"""``notify_shutdown``: an actor that asks for it gets ``Shutdown`` as soon as its worker is told to stop, not only when the grace ends.

Effect: raised in the body alone; a body that lets it through is released: due again at once, on another worker, no failure counted.
Actor and message option: ``notify_shutdown`` (default False), as in Dramatiq. Store: none.
"""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, MessageProxy, Middleware, Worker
from dramatiq.middleware import Shutdown

from runtime.claims import Claim
from runtime.options import option


class ShutdownNotice(Middleware):
    """Tells those who want to know."""

    def __init__(self) -> None:
        self._wanted: dict[Claim, None] = {}

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"notify_shutdown"}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Remember who wants to know."""
        if option("notify_shutdown", message, broker.actors.get(message.actor_name), False):
            self._wanted[message.claim] = None

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Too late to tell."""
        if self._wanted:
            self._wanted.pop(message.claim, None)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Tell them."""
        for claim in list(self._wanted):
            if claim.guard is not None:
                claim.guard.interrupt(Shutdown)
