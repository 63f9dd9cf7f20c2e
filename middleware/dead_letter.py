"""``on_dead``: a job to run when a job of this actor is dead, whatever it died of and whether or not a worker was there to see it.

    @dramatiq.actor
    def tell_support(letter: dict) -> None: ...        # letter["id"], ["actor"], ["reason"], ["error"], ["fingerprint"] ...

    @dramatiq.actor(on_dead=tell_support)
    def charge(order: int) -> None: ...

Effect: the name of the hook is stored with the job's options when it is sent, so it holds for deaths by the keeper (``worker_lost``,
``expired``, ``unknown_actor``) too. The death leaves a notice in its own transaction; the keeper of a worker that knows the hook writes
exactly one job for it (``keeper.dead_letters``). A replay that dies again is another death.
Actor and message option: ``on_dead``, an actor or its name; None on a message: none. Store: the job's row, then the notice.
"""

from __future__ import annotations

from typing import Any

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError


class DeadLetterHook(Middleware):
    """Stores which hook a job has."""

    def __init__(self) -> None:
        #: The hook of each actor that has one, so that the sends of the others cost nothing.
        self._hooks: dict[str, str] = {}

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"on_dead"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's hook; that an actor of this name exists is found out with the first send, as it may be declared later."""
        self._hooks.pop(actor.actor_name, None)
        if actor.options.get("on_dead") is not None:
            hook = _name(actor.actor_name, actor.options["on_dead"])
            if hook == actor.actor_name:
                raise OptionError(
                    actor.actor_name, "on_dead", "is the actor itself: its own death would be followed by the next one"
                )
            self._hooks[actor.actor_name] = hook

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Write the hook's name into the message."""
        if not message.options and message.actor_name not in self._hooks:
            return
        given = message.options.get("on_dead", self._hooks.get(message.actor_name))
        if given is None:
            return
        hook = _name(message.actor_name, given)
        if hook not in broker.actors:
            raise OptionError(
                message.actor_name, "on_dead", f"no actor {hook!r:.100} is declared in this process; import the module that does"
            )
        message.options["on_dead"] = hook


def _name(actor_name: str, value: Any) -> str:
    name = value.actor_name if isinstance(value, Actor) else value
    if not isinstance(name, str) or not name:
        raise OptionError(actor_name, "on_dead", f"{value!r:.50} is neither an actor nor an actor's name")
    return name
