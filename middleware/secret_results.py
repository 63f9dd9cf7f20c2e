"""Where results go that somebody keeps secret: the arguments of what follows a job that are declared ``secret``.

A job whose result goes to one is marked as it is sent (message option ``secret_for``), by the sender, who knows the actors; a worker that
ends the job need not know those that follow it. Its result is then sealed for exactly those arguments, before it is stored anywhere: in its
own row, in the next step's arguments, in a callback's. Whoever else would be given it is refused, or a callback gets the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dramatiq import Actor, Message, MessageProxy

from errors import OptionError
from ledger.sealed import Place

PlaceAt = Callable[[str, int], "Place | None"]


class Takers:
    """Finds who takes a result, among the actors that this process knows.

    Parameters:
        place_at: the secret argument at a position of a call of an actor.
    """

    def __init__(self, place_at: PlaceAt) -> None:
        self._place_at = place_at
        #: What of actors' options says who follows.
        self._options: dict[str, dict[str, Any]] = {}

    def declare(self, actor: Actor[Any, Any]) -> None:
        """Keep what an actor says of its followers."""
        said: dict[str, Any] = {name: actor.options[name] for name in ("on_success", "pipe_ignore") if name in actor.options}
        self._options.pop(actor.actor_name, None)
        if said:
            self._options[actor.actor_name] = said

    def of(self, message: Message[Any] | MessageProxy) -> tuple[Place, ...]:
        """The secret arguments that a job's result goes to: those it is marked with, and what is known here.

        Raises:
            OptionError: its next step would be given it to be stored for all to read.
        """
        own = self._options.get(message.actor_name, {})
        found: set[Place] = {(actor, field) for actor, field in message.options.get("secret_for") or ()}
        callback = message.options.get("on_success", own.get("on_success"))
        if callback is not None:
            name = callback.actor_name if isinstance(callback, Actor) else str(callback)
            # Behind the message.
            if (place := self._place_at(name, 1)) is not None:
                found.add(place)
        step = message.options.get("pipe_target")
        if isinstance(step, dict) and not (own.get("pipe_ignore") or step["options"].get("pipe_ignore")):
            if (place := self._place_at(step["actor_name"], len(step["args"]))) is not None:
                found.add(place)
            elif found and step["actor_name"] not in {actor for actor, _ in found}:
                raise exposed(step["actor_name"], *min(found))
        return tuple(sorted(found))


def exposed(actor_name: str, taker: str, field: str) -> OptionError:
    """A step would be given a result that is secret for another one."""
    reason = (
        f"it is given a result that is secret as argument {field!r} of {taker!r}, and would store it for all to read;"
        " declare its argument secret as well, or give it pipe_ignore=True"
    )
    return OptionError(actor_name, "secret", reason)
