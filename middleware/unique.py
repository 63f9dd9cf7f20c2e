"""``unique_key``, ``unique_for``: an actor's jobs that count as the same are one.

    skip       a send while such a job is active, or within the period, returns the first job's message
    throttle   skip, for which a period is required: at most one job per period, the first
    debounce   while the job waits, the latest arguments win and a delay starts anew, up to unique_max_wait; once it runs, a send makes
               a new one

Effect: a send that is another job returns that job's message, with ``options["replayed"]``, and stores nothing.
Actor options (a message may override each): ``unique_key`` (True: all arguments; names of arguments; a function of the arguments that
returns the key, or None for a job that is like no other; on a message: the key itself, or None), ``unique_for`` (``"active"``, or seconds
or a ``timedelta`` from the first send, whatever becomes of its job), ``unique_mode``, ``unique_max_wait`` (seconds or a ``timedelta`` from
the first send; default ten times the delay). Any of them without ``unique_key`` means all arguments.
Store: while active the index ``job_unique_active``; for a period the table ``idempotency``. Postgres away: as for every send.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

from dramatiq import Actor, Broker, Message, Middleware

from errors import OptionError
from ledger.records import Unique, UniqueMode
from middleware.idempotency import MAX_KEY, check_key
from runtime.fingerprint import canonical, digest, fingerprint_keys
from runtime.options import option, period_seconds
from settings import Settings

ACTIVE: Final = "active"
OPTIONS: Final = ("unique_key", "unique_for", "unique_mode", "unique_max_wait")
MODES: Final = get_args(UniqueMode)
#: A key made of longer arguments is their digest.
_LONGEST: Final = 120


class UniqueJobs(Middleware):
    """Says which jobs of an actor count as the same."""

    def __init__(self, settings: Settings) -> None:
        self._fingerprint_key = fingerprint_keys(settings)[0]
        self._signatures: dict[str, inspect.Signature] = {}

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return set(OPTIONS)

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Refuse what would only be found out at a send."""
        self._signatures.pop(actor.actor_name, None)
        if any(actor.options.get(name) is not None for name in OPTIONS):
            signature = inspect.signature(inspect.unwrap(actor.fn))
            _check_actors_key(actor.actor_name, actor.options.get("unique_key"), signature)
            _check(actor.actor_name, actor.options)
            if actor.options.get("periodic") is not None and actor.options.get("unique_mode") == "debounce":
                raise OptionError(
                    actor.actor_name, "unique_mode", "'debounce' is not for jobs that come by the clock; write skip"
                )
            self._signatures[actor.actor_name] = signature

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the message's own options, together with its actor's."""
        options = message.options
        if not any(name in options for name in OPTIONS):
            return
        actor = broker.actors.get(message.actor_name)
        if options.get("unique_key") is not None:
            check_key(message.actor_name, "unique_key", options["unique_key"])
        merged = {name: option(name, message, actor) for name in OPTIONS}
        _check(message.actor_name, merged)
        for name in ("unique_for", "unique_max_wait"):
            if options.get(name) not in (None, ACTIVE):
                # Seconds travel, a timedelta does not.
                options[name] = period_seconds(message.actor_name, options, name)

    def control_of(self, message: Message[Any], actor: Actor[Any, Any] | None, payload: str) -> Mapping[str, Any] | None:
        """What of a job's control comes from here; None for a job that is like no other."""
        signature = None if actor is None else self._signatures.get(message.actor_name)
        if signature is None and "unique_key" not in message.options:
            return None
        key = self._key(message, actor, signature)
        if key is None:
            return None
        values = {name: option(name, message, actor) for name in OPTIONS[1:]}
        lasts = values["unique_for"]
        period = None if lasts in (None, ACTIVE) else period_seconds(message.actor_name, values, "unique_for")
        mode: UniqueMode = values["unique_mode"] or "skip"
        wait = period_seconds(message.actor_name, values, "unique_max_wait")
        unique = Unique(key=key, mode=mode, period=period, max_wait=wait, known=actor is not None)
        return {"unique_key": key if period is None else None, "unique": unique}

    def _key(self, message: Message[Any], actor: Actor[Any, Any] | None, signature: inspect.Signature | None) -> str | None:
        if "unique_key" in message.options:
            own: str | None = message.options["unique_key"]
            return own
        if "piped" in message.options:
            # What it will be called with is not known, or not known to fit, before it runs.
            return None
        assert actor is not None
        assert signature is not None
        wanted = actor.options.get("unique_key")
        hidden = bool(actor.options.get("secret"))
        if callable(wanted):
            found = _called(message, wanted)
            if found is None:
                return None
        else:
            bound = signature.bind(*message.args, **message.kwargs)
            bound.apply_defaults()
            names = bound.arguments if wanted in (None, True) else wanted
            found = canonical([bound.arguments[name] for name in names])
        # What is made of secrets must not show them, and an index does not hold long texts.
        return digest(self._fingerprint_key, found) if hidden or len(found) > _LONGEST else found


def _called(message: Message[Any], key: Callable[..., Any]) -> str | None:
    try:
        found = key(*message.args, **message.kwargs)
    except Exception as error:
        reason = f"the function raised {type(error).__name__} for these arguments"
        raise OptionError(message.actor_name, "unique_key", reason) from error
    if found is None:
        return None
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str) or not 0 < len(found) <= MAX_KEY or not found.isprintable():
        kind = type(found).__name__
        reason = f"the function returned no printable string of 1 to {MAX_KEY} characters, no int and not None (a {kind})"
        raise OptionError(message.actor_name, "unique_key", reason)
    return found


def _check_actors_key(actor_name: str, value: Any, signature: inspect.Signature) -> None:
    if value is None or value is True or callable(value):
        return
    if not isinstance(value, tuple | list) or not value:
        raise OptionError(
            actor_name,
            "unique_key",
            f"{value!r:.50} is neither True (all arguments), nor a tuple of arguments' names, nor a function of the arguments",
        )
    for name in value:
        if name not in signature.parameters:
            raise OptionError(actor_name, "unique_key", f"{name!r:.50} is no argument of the actor, which takes {signature}")


def _check(actor_name: str, options: Mapping[str, Any]) -> None:
    """Raises: OptionError: a value that cannot work, alone or together with the others."""
    mode, lasts, wait = (options.get(name) for name in ("unique_mode", "unique_for", "unique_max_wait"))
    if mode is not None and mode not in MODES:
        raise OptionError(actor_name, "unique_mode", f"{mode!r:.50} is unknown; write {', '.join(MODES[:-1])} or {MODES[-1]}")
    if isinstance(lasts, str):
        if lasts != ACTIVE:
            raise OptionError(actor_name, "unique_for", f"{lasts!r:.50} is neither {ACTIVE!r} nor a period in seconds")
    else:
        period_seconds(actor_name, options, "unique_for")
    period_seconds(actor_name, options, "unique_max_wait")
    if mode == "throttle" and lasts in (None, ACTIVE):
        raise OptionError(actor_name, "unique_for", "has to be a period (seconds) with unique_mode='throttle'")
    if mode == "debounce" and lasts not in (None, ACTIVE):
        raise OptionError(
            actor_name, "unique_for", "cannot be a period with unique_mode='debounce', which lasts as long as the job waits"
        )
    if wait is not None and mode != "debounce":
        raise OptionError(actor_name, "unique_max_wait", "goes with unique_mode='debounce' alone")
