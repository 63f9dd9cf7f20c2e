"""An option that nobody knows is refused where a message is sent: a misspelt ``idempotncy_key`` would make two jobs without a word.

    known    what Dramatiq reads itself, ``actor_options`` and ``message_options`` of every middleware on the broker, the setting
             MESSAGE_OPTIONS, and what a middleware was seen to put on a message as it was sent
    checked  what the sender gave, before any hook has seen the message: also of the messages inside it (the next steps of a stock
             pipeline, the callbacks of a stock group)

Senders alone are checked. A job that is stored already, whoever sent it with whatever options, runs, is retried, replayed and edited as it
is; so are the ticks of a schedule, whose options were checked when it was made. A send pays for one comparison of sets, and only if the
message has options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from dramatiq import Broker, Message

from errors import OptionError

#: Options that Dramatiq, its middleware and its brokers read on messages; and what these, periodiq and we note on them.
OF_DRAMATIQ: Final = frozenset(
    {
        "broker_priority", "delay", "max_age", "max_backoff", "max_retries", "min_backoff", "notify_shutdown", "on_failure",
        "on_retry_exhausted", "on_success", "pipe_ignore", "result_ttl", "store_results", "throws", "time_limit",
    }
)  # fmt: skip
NOTES: Final = frozenset(
    {
        "eta", "group_completion_callbacks", "group_completion_uuid", "pipe_target", "redis_message_id", "requeue_timestamp", "retries",
        "scheduled_at", "traceback",
        # Ours: of a send that was another job, of a schedule's jobs, of steps.
        "replayed", "schedule", "tick_at", "followed", "piped", "refused", "secret_for",
    }
)  # fmt: skip
#: An argument of ``@actor``, and therefore in no ``actor_options``.
_PRIORITY: Final = "priority"
#: Options that are read of actors alone, and whose middleware does not say so by itself: on a message they would do nothing.
_OF_ACTORS: Final = frozenset({"secret", "retry_when"})
#: Options that hold messages.
_NESTED: Final = frozenset({"pipe_target", "group_completion_callbacks"})
#: What a call takes besides options; a near miss of one of these becomes an option.
_PARAMETERS: Final = frozenset({"args", "kwargs", "delay"})


class MessageOptions:
    """The options that messages of one broker may have.

    Parameters:
        broker: whose middleware counts, also what is added to it later.
        more: further names (MESSAGE_OPTIONS).
    """

    def __init__(self, broker: Broker, more: Iterable[str] = ()) -> None:
        self._broker = broker
        self._more = frozenset(more)
        #: Put on messages by hooks of middleware that declares nothing.
        self._seen: set[str] = set()
        self._known: frozenset[str] = frozenset()

    def check(self, message: Message[Any]) -> None:
        """Refuse a message that somebody is about to send.

        Raises:
            OptionError: it, or a message inside it, has an option that nobody knows; names the nearest one.
        """
        if message.options:
            self._check(message.actor_name, message.options)

    def learn(self, message: Message[Any]) -> None:
        """Know what a middleware has put on a message that was checked: it may be sent again, as it is."""
        options = message.options
        if options and not options.keys() <= self._known and "schedule" not in options:
            self._seen.update(options)
            self._known = self._all()

    def check_names(self, actor_name: str, names: Iterable[str]) -> None:
        """Refuse options that messages are to be sent with later. Raises: OptionError."""
        self._check(actor_name, dict.fromkeys(names))

    def _check(self, actor_name: str, options: Mapping[str, Any]) -> None:
        if not options.keys() <= self._known and "schedule" not in options:
            # Middleware may have been added since.
            self._known = self._all()
            for name in options:
                if name not in self._known:
                    raise OptionError(actor_name, str(name), self._explained(str(name)))
        if not _NESTED.isdisjoint(options):
            for inner in (options.get("pipe_target"), *(options.get("group_completion_callbacks") or ())):
                if isinstance(inner, Mapping):
                    self._check(str(inner.get("actor_name")), inner.get("options") or {})

    def _all(self) -> frozenset[str]:
        declared = (getattr(middleware, "message_options", ()) for middleware in self._broker.middleware)
        known = frozenset({_PRIORITY}).union(OF_DRAMATIQ, NOTES, self._more, self._seen, self._broker.actor_options, *declared)
        return known - _OF_ACTORS

    def _explained(self, name: str) -> str:
        if name in _OF_ACTORS:
            return "belongs to the actor, not to a message; nothing was stored"
        candidates = (self._known | _PARAMETERS) - NOTES
        near = get_close_matches(name, sorted(candidates), n=1)
        if near:
            return f"nobody knows it; did you mean {near[0]!r}? Nothing was stored"
        return (
            "nobody knows it, so it would have no effect; nothing was stored. A middleware of yours that reads it says so in its "
            "message_options, or name it in MESSAGE_OPTIONS"
        )
