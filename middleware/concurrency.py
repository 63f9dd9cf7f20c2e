"""``concurrency``: how many jobs of an actor may run at once, over all workers together, by key if it has one; 1 is one after the other.

    @dramatiq.actor(concurrency=1, concurrency_key="account", fair_key="tenant")

Effect: a job's key is worked out when it is sent and stored with it; whether a slot is free is decided by its claim, in the ledger
(``ledger.limits``). A job that finds none waits in line, with ``wait_reason`` concurrency and the key in ``blocked_on``, and is woken when
its turn has come: by priority, then in the order of arrival, taking turns between fair keys. A slot is bound to its job's claim: freed
once, by whatever ends that, at the latest a lease after its worker died.
Actor options: ``concurrency`` (a whole number from 1), ``concurrency_key`` and ``fair_key`` (the name of an argument, or a function of the
arguments), ``fair_weight`` (a number above 0, or a function of the arguments; default 1: with 2 it has two turns where others have one).
Message options: ``concurrency_key``, ``fair_key`` and ``fair_weight``, as values.
Queues have a limit by the setting QUEUE_CONCURRENCY. Store: the job's row. Without Postgres nothing is claimed, limited or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError
from middleware.rate_limit import check_whole
from runtime.limits import check_chooser, chosen, full_key, key_text

_REST: Final = ("concurrency_key", "fair_key", "fair_weight")


def _check_weight(actor_name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0.001 <= value <= 1_000:
        raise OptionError(actor_name, "fair_weight", f"{value!r:.50} is no number from 0.001 to 1000")


class Concurrency(Middleware):
    """Checks the options, and says whose slots a job takes."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"concurrency", *_REST}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's limit when it is declared."""
        options, name = actor.options, actor.actor_name
        if options.get("concurrency") is None:
            for option in _REST:
                if options.get(option) is not None:
                    raise OptionError(name, option, "limits nothing without concurrency")
            return
        check_whole(name, "concurrency", options["concurrency"])
        if full_key(name, "").startswith("queue:"):
            raise OptionError(name, "concurrency", "an actor of this name cannot be limited, its keys look like those of queues")
        check_chooser(actor, "concurrency_key")
        check_chooser(actor, "fair_key")
        weight = options.get("fair_weight")
        if weight is not None and options.get("fair_key") is None:
            raise OptionError(name, "fair_weight", "weighs nothing without fair_key")
        if weight is not None and not callable(weight):
            _check_weight(name, weight)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check what the message says itself."""
        if not message.options:
            return
        if message.options.get("concurrency") is not None:
            raise OptionError(message.actor_name, "concurrency", "belongs to the actor, not to a message")
        actor = broker.actors.get(message.actor_name)
        for option in _REST:
            if message.options.get(option) is not None and actor is not None and actor.options.get("concurrency") is None:
                raise OptionError(message.actor_name, option, "limits nothing: the actor has no concurrency")

    def control_of(self, message: Message[Any], actor: Actor[Any, Any] | None, payload: str) -> Mapping[str, Any] | None:
        """Whose slots the job takes, and on whose behalf. Raises: OptionError: a key cannot be told."""
        if actor is None or actor.options.get("concurrency") is None:
            return None
        name = actor.actor_name
        key, fair, weight = (_said(option, message, actor) for option in _REST)
        if weight is not None:
            _check_weight(name, weight)
        return {
            "concurrency_key": full_key(name, None if key is None else key_text(name, "concurrency_key", key)),
            "fair_key": None if fair is None else key_text(name, "fair_key", fair),
            "fair_weight": None if weight is None else float(weight),
        }


def _said(option: str, message: Message[Any], actor: Actor[Any, Any]) -> Any:
    """What the message says, or else what its actor makes of the arguments."""
    value = message.options.get(option)
    if value is not None:
        return value
    value = actor.options.get(option)
    return chosen(actor, option, message) if callable(value) or isinstance(value, str) else value
