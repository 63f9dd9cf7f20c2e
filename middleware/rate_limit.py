"""``rate_limit``: how often jobs of an actor may start, over all workers together, by key if it has one.

    @dramatiq.actor(rate_limit="100/minute", rate_limit_key="customer")

Effect: a job's key and cost are worked out when it is sent and stored with it; whether it may start is decided by its claim, in the ledger
(``ledger.limits``). A job over the limit is promised a slot and waits until then, with ``wait_reason`` rate_limit and its time in
``run_at``. That costs no attempt. Every attempt counts, retries too.
Actor options: ``rate_limit`` (``100/minute``, ``10/second``, ``5/30s``), ``rate_limit_key`` (the name of an argument, or a function of the
arguments), ``rate_limit_cost`` (a whole number from 1, or a function of the arguments; default 1), ``rate_limit_burst`` (how many may start
together; default: what one second brings, at least 1). In no stretch of time do more start than the burst and what the rate brings in it.
Message options: ``rate_limit_key`` and ``rate_limit_cost``, as values.
Store: the job's row. Without Postgres nothing is claimed, limited or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError
from ledger.limits import MAX_AMOUNT, parse_rate
from runtime.limits import check_chooser, chosen, full_key, key_text

_REST: Final = ("rate_limit_key", "rate_limit_cost", "rate_limit_burst")


def check_whole(actor_name: str, option: str, value: Any) -> None:
    """Raises: OptionError: this is no whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_AMOUNT:
        raise OptionError(actor_name, option, f"{value!r:.50} is no whole number from 1 to {MAX_AMOUNT:,}")


class RateLimit(Middleware):
    """Checks the options, and says what a job counts as."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"rate_limit", *_REST}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's limit when it is declared."""
        options, name = actor.options, actor.actor_name
        if options.get("rate_limit") is None:
            for option in _REST:
                if options.get(option) is not None:
                    raise OptionError(name, option, "limits nothing without rate_limit")
            return
        try:
            parse_rate(options["rate_limit"])
        except ValueError as error:
            raise OptionError(name, "rate_limit", str(error)) from None
        check_chooser(actor, "rate_limit_key")
        burst, cost = options.get("rate_limit_burst"), options.get("rate_limit_cost")
        if burst is not None:
            check_whole(name, "rate_limit_burst", burst)
        if cost is not None and not callable(cost):
            check_whole(name, "rate_limit_cost", cost)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check what the message says itself."""
        if not message.options:
            return
        actor = broker.actors.get(message.actor_name)
        for option in ("rate_limit", "rate_limit_burst"):
            if message.options.get(option) is not None:
                raise OptionError(message.actor_name, option, "belongs to the actor, not to a message")
        for option in ("rate_limit_key", "rate_limit_cost"):
            if message.options.get(option) is not None and actor is not None and actor.options.get("rate_limit") is None:
                raise OptionError(message.actor_name, option, "limits nothing: the actor has no rate_limit")

    def control_of(self, message: Message[Any], actor: Actor[Any, Any] | None, payload: str) -> Mapping[str, Any] | None:
        """What the job counts as. Raises: OptionError: key or cost cannot be told."""
        if actor is None or actor.options.get("rate_limit") is None:
            return None
        name = actor.actor_name
        key = message.options.get("rate_limit_key")
        if key is None:
            key = chosen(actor, "rate_limit_key", message)
        cost = message.options.get("rate_limit_cost")
        if cost is None:
            cost = actor.options.get("rate_limit_cost", 1)
            if callable(cost):
                cost = chosen(actor, "rate_limit_cost", message)
        if cost is None:
            cost = 1
        check_whole(name, "rate_limit_cost", cost)
        return {"rate_key": full_key(name, None if key is None else key_text(name, "rate_limit_key", key)), "rate_cost": cost}
