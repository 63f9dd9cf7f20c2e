"""``tags``: words on a job to find it by.

Effect: the tags of a message, or else those of its actor, are stored with the job; lists filter by them.
Actor and message option: ``tags``, a list of 1 to 20 printable strings of up to 100 characters. Store: the job's row.
"""

from __future__ import annotations

from typing import Any, Final

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError

MAX_TAGS: Final = 20
MAX_LENGTH: Final = 100


def check_tags(actor_name: str, value: Any) -> None:
    """Raises: OptionError: this is no list of tags."""
    if not isinstance(value, list | tuple) or len(value) > MAX_TAGS:
        raise OptionError(actor_name, "tags", f"must be a list of at most {MAX_TAGS} strings")
    for tag in value:
        if not isinstance(tag, str) or not 0 < len(tag) <= MAX_LENGTH or not tag.isprintable():
            raise OptionError(actor_name, "tags", f"{tag!r:.50} is no printable string of 1 to {MAX_LENGTH} characters")


class Tags(Middleware):
    """Refuses what is no list of tags."""

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"tags"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Check the actor's tags when it is declared."""
        if actor.options.get("tags") is not None:
            check_tags(actor.actor_name, actor.options["tags"])

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own tags."""
        if message.options.get("tags") is not None:
            check_tags(message.actor_name, message.options["tags"])
