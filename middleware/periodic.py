"""``periodic=``: an actor whose jobs come by the clock.

    @dramatiq.actor(periodic=cron("0 8 * * *", timezone="Europe/Berlin", catch_up="last"))

Effect: a worker that knows the actor declares its schedule, under the actor's name, and the keepers make its jobs
(``keeper.schedule``). The value is what ``switchyard.cron`` returns, an expression, or what periodiq's own ``cron`` returns; ``periodiq``
finds one of ours in its place, and what it sends is folded into the tick that it is meant for (``brokers.folding``).
Actor option: ``periodic``. Message options, set by the keepers: ``schedule`` (the name of what made the job) and ``tick_at`` (ISO 8601).
Store: none here.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any, Final

from dramatiq import Actor, Broker, Message, Middleware

from errors import CronError, OptionError, PayloadError
from middleware.payload import check_arguments
from runtime.encoding import encode_payload
from runtime.timing import timing_of

#: Longest name of a schedule, in characters.
MAX_NAME: Final = 200


class Periodic(Middleware):
    """Refuses a schedule that cannot work, and makes it one of ours."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"periodic"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the schedule when the actor is declared."""
        value = actor.options.pop("periodic", None)
        if value is None:
            return
        try:
            timing = timing_of(value)
            timing.check()
            args, kwargs = tuple(timing.args), dict(timing.kwargs or {})
            encode_payload(actor.actor_name, args, kwargs, sys.maxsize)
            check_arguments(actor, args, kwargs)
        except CronError as error:
            raise OptionError(actor.actor_name, "periodic", str(error)) from None
        except PayloadError as error:
            reason = f"it cannot be called by the clock: field {error.field!r}: {error.reason}; give cron() its args or kwargs"
            raise OptionError(actor.actor_name, "periodic", reason) from None
        actor.options["periodic"] = timing

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check what a message says of its schedule."""
        options = message.options
        if not options:
            return
        if options.get("periodic") is not None:
            raise OptionError(message.actor_name, "periodic", "belongs to an actor; for one message, use delay")
        name, tick_at = options.get("schedule"), options.get("tick_at")
        if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable()):
            raise OptionError(message.actor_name, "schedule", f"{name!r:.50} is no printable name of 1 to {MAX_NAME} characters")
        if tick_at is not None and not _is_moment(tick_at):
            raise OptionError(message.actor_name, "tick_at", f"{tick_at!r:.50} is no time with a zone (ISO 8601)")


def _is_moment(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).utcoffset() is not None
    except ValueError:
        return False
