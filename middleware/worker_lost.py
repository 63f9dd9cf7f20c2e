"""``on_worker_lost``: what becomes of a job whose worker process dies while it runs.

    "retry"   (default) it runs again, and is dead (``worker_lost``) once it has been held guilty of MAX_LOST deaths
    "dead"    it never runs again: dead at the first loss, whoever killed the process; for work that must not begin twice unseen

Effect: the choice is stored with the job (``max_lost``) when it is sent. The start of a job with "dead" is committed before its first
instruction, one statement more for each; so a job that its dead worker held but had not begun still runs.
Actor and message option: ``on_worker_lost``. Store: the job's row; without Postgres such a job is not started but given back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError

CHOICES: Final = ("retry", "dead")


class WorkerLost(Middleware):
    """Checks the option; the ledger acts on it."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"on_worker_lost"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's choice."""
        _check(actor.actor_name, actor.options)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own choice."""
        if message.options:
            _check(message.actor_name, message.options)


def _check(actor_name: str, options: Mapping[str, Any]) -> None:
    value = options.get("on_worker_lost")
    if value is not None and value not in CHOICES:
        raise OptionError(actor_name, "on_worker_lost", f"{value!r:.50} is unknown; write 'retry' or 'dead'")
