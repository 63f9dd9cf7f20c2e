"""A claimed job in the shape that Dramatiq's worker threads process."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from dramatiq import Message, MessageProxy

from runtime.claims import Claim


class ClaimedMessage(MessageProxy):
    """A message proxy that carries the claim it stands for; it is its own item in the work queue.

    The message behind it is made when somebody asks for it. What worker and middleware look at several times per job are
    attributes of the proxy itself: Dramatiq's own proxy finds each of them by a failed lookup first.
    """

    def __init__(self, claim: Claim) -> None:
        job = claim.job
        options: dict[str, Any] = job.options or {}
        if job.failures:
            # Dramatiq's word for how often it failed; actors and foreign middleware may look at it.
            options = {**options, "retries": job.failures}
        self.claim = claim
        self.failed = False
        self._exception = None
        self.queue_name = job.queue
        self.actor_name = job.actor
        self.args = tuple(job.payload["args"])
        self.kwargs = job.payload["kwargs"]
        self.options = options
        self.message_id = job.message_id
        self.message_timestamp = job.created_ms

    @cached_property
    def _message(self) -> Message[Any]:  # type: ignore[override]  # a cached property can be written to
        return Message(
            queue_name=self.queue_name,
            actor_name=self.actor_name,
            args=self.args,
            kwargs=self.kwargs,
            options=self.options,
            message_id=self.message_id,
            message_timestamp=self.message_timestamp,
        )

    @property
    def message(self) -> ClaimedMessage:
        """Itself: what ``WorkerThread`` takes out of the item."""
        return self
