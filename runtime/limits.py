"""Limits as the code and the settings declare them, and the keys that jobs count under.

Whoever starts to work, and whoever sends the first job of an actor, tells the ledger what is allowed; from then on the ledger alone decides
(``ledger.limits``). A sender pays one statement per limited actor and process. What an operator set in the ledger stays in force beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from dramatiq import Actor, Message

from errors import OptionError
from ledger import limits
from ledger.database import BoundedConnection, Database
from ledger.limits import Rule
from settings import Settings

#: Longest key, in characters; longer ones are no keys but texts.
MAX_KEY: Final = 200


class DeclaredLimits:
    """What this process declares.

    Parameters:
        actors: the actors of its broker, as they are declared.
    """

    def __init__(self, settings: Settings, actors: Mapping[str, Actor[Any, Any]]) -> None:
        self._settings = settings
        self._actors = actors
        self._told: set[str] = set()

    def rules(self) -> list[Rule]:
        """Every limit of the code and the settings."""
        found = [rule for actor in list(self._actors.values()) for rule in rules_of(actor)]
        return [*found, *(Rule("queue", queue, amount) for queue, amount in self._settings.queue_concurrency.items())]

    def queues(self) -> set[str]:
        """The queues in which they are."""
        limited = {actor.queue_name for actor in list(self._actors.values()) if actor.options.keys() & _LIMITS}
        return limited.union(self._settings.queue_concurrency)

    def declare(self, connection: BoundedConnection, queues: Iterable[str]) -> None:
        """A worker of these queues starts: say what is allowed, and what is not limited any more."""
        rules = self.rules()
        limits.declare_rules(connection, rules)
        limits.retract_rules(connection, rules, actors=list(self._actors), queues=list(queues))
        self._told.update(self._actors)

    def tell_of(self, messages: Iterable[Message[Any]], database: Database) -> None:
        """A sender sends these messages: say what their actors allow, once in a process. Raises: LedgerUnavailable."""
        if untold := {message.actor_name for message in messages} - self._told:
            rules = [rule for name in sorted(untold) if name in self._actors for rule in rules_of(self._actors[name])]
            if rules:
                database.run(lambda connection: limits.declare_rules(connection, rules), self._settings.send_timeout)
            self._told |= untold


def rules_of(actor: Actor[Any, Any]) -> list[Rule]:
    """The limits among an actor's options, which were checked when it was declared."""
    rules = []
    rate = actor.options.get("rate_limit")
    if rate is not None:
        amount, period = limits.parse_rate(rate)
        burst = actor.options.get("rate_limit_burst") or limits.default_burst(amount, period)
        rules.append(Rule("rate", actor.actor_name, amount, period, burst))
    concurrency = actor.options.get("concurrency")
    if concurrency is not None:
        rules.append(Rule("concurrency", actor.actor_name, concurrency))
    return rules


_LIMITS: Final = {"rate_limit", "concurrency"}


def check_chooser(actor: Actor[Any, Any], name: str) -> None:
    """Refuse an option that names no argument of the actor, or a secret one, and is no function of them. Raises: OptionError."""
    value = actor.options.get(name)
    if value is None or callable(value):
        return
    if not isinstance(value, str):
        raise OptionError(
            actor.actor_name, name, f"{value!r:.50} is neither the name of an argument nor a function of the arguments"
        )
    parameters = inspect.signature(actor.fn).parameters
    if value not in parameters or parameters[value].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        known = ", ".join(parameters) or "none"
        raise OptionError(actor.actor_name, name, f"{value!r:.50} is no argument of the actor (it has: {known})")
    if value in (actor.options.get("secret") or ()):
        raise OptionError(
            actor.actor_name, name, f"{value!r:.50} is secret, and keys of limits are stored as they are; name another argument"
        )


def chosen(actor: Actor[Any, Any], name: str, message: Message[Any]) -> Any:
    """What an option of an actor chooses for a message: an argument's value, or what a function makes of the arguments.

    Raises:
        OptionError: the function raised, or the arguments do not fit the actor.
    """
    value = actor.options.get(name)
    if value is None:
        return None
    function: Callable[..., Any] = value if callable(value) else lambda *args, **kwargs: _argument(actor, value, args, kwargs)
    try:
        return function(*message.args, **message.kwargs)
    except Exception as error:
        # The send fails with it: nothing is stored, and its sender learns why.
        raise OptionError(
            actor.actor_name, name, f"could not be told from the arguments: {type(error).__name__}: {error}"
        ) from error


def key_text(actor_name: str, option: str, value: Any) -> str:
    """The key as text. Raises: OptionError: it is none."""
    if isinstance(value, str | int | float | UUID):
        text = str(value)
        if len(text) <= MAX_KEY and text.isprintable():
            return text
        raise OptionError(actor_name, option, f"{text!r:.50} is no key; at most {MAX_KEY} printable characters are")
    raise OptionError(actor_name, option, f"{value!r:.50} is no key; a text, a number or a UUID is")


def full_key(actor_name: str, key: str | None) -> str:
    """How a key is called in the ledger: limits of different actors have nothing to do with each other."""
    return actor_name if key is None else f"{actor_name}:{key}"


def _argument(actor: Actor[Any, Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    bound = inspect.signature(actor.fn).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments[name]
