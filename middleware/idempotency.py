"""``idempotency_key``: a send made twice is one job.

Effect: the second send with a key of its sender returns the first job's message, with ``options["replayed"]``, and stores and publishes
nothing; with another payload it raises ``IdempotencyConflict``. Keys are per actor and outlive their job: they expire by themselves.
Message options: ``idempotency_key`` (1 to 255 printable characters), ``idempotency_ttl`` (seconds or a ``timedelta``; also of the actor;
default IDEMPOTENCY_TTL, 24 h).
Store: table ``idempotency``, written by the statement that writes the job's row. Postgres away: as for every send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError
from ledger.records import SentKey
from runtime.fingerprint import fingerprint_keys, fingerprints
from runtime.options import option, period_seconds
from settings import Settings

#: Longest key, in characters; Stripe's bound.
MAX_KEY: Final = 255


def check_key(actor_name: str, name: str, value: Any) -> None:
    """Raises: OptionError: this is no key."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_KEY or not value.isprintable():
        raise OptionError(actor_name, name, f"{value!r:.50} is no printable string of 1 to {MAX_KEY} characters")


class Idempotency(Middleware):
    """Says what a send with a key is compared by."""

    def __init__(self, settings: Settings) -> None:
        self._keys = fingerprint_keys(settings)
        self._ttl = settings.idempotency_ttl

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"idempotency_ttl"}

    @property
    def message_options(self) -> set[str]:
        """Options of messages alone."""
        return {"idempotency_key"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse a time that is none."""
        period_seconds(actor.actor_name, actor.options, "idempotency_ttl")

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own options."""
        options = message.options
        if options.get("idempotency_key") is not None:
            check_key(message.actor_name, "idempotency_key", options["idempotency_key"])
        if options.get("idempotency_ttl") is not None:
            # Seconds travel, a timedelta does not.
            options["idempotency_ttl"] = period_seconds(message.actor_name, options, "idempotency_ttl")

    def control_of(self, message: Message[Any], actor: Actor[Any, Any] | None, payload: str) -> Mapping[str, Any] | None:
        """What of a job's control comes from here; None for a message without a key."""
        key = message.options.get("idempotency_key")
        if key is None:
            return None
        own, *others = fingerprints(self._keys, message.actor_name, payload, message.options)
        ttl = option("idempotency_ttl", message, actor)
        seconds = self._ttl if ttl is None else period_seconds(message.actor_name, {"idempotency_ttl": ttl}, "idempotency_ttl")
        assert seconds is not None
        return {"idempotency_key": key, "sent": SentKey(fingerprint=own, accepted=tuple(others), ttl=seconds)}
