"""``secret``: arguments that nobody may read but the actor's body.

    send      arguments are checked as they are, then the named ones are sealed: row, broker, returned message have nothing else
    worker    hooks, callbacks and logs see the sealed values; they are opened as the body is called, and only for it

Effect: the named arguments are encrypted in the ledger and masked where jobs are shown. While the body runs and until its end is noted, its
secrets are masked in log lines of the worker, in the job's own lines, in errors and tracebacks, and in the stored result. A result that
goes to a secret argument of what follows (the next step, ``on_success``) is sealed before it is stored anywhere: ``secret_results``.
Actor option: ``secret``, names of arguments. Message option: ``secret_for``, where the result goes; set here and by workflows. Settings:
SECRET_KEYS.
Store: the payload. A value that cannot be opened makes the job dead (``undecryptable``), before the body has begun; without SECRET_KEYS a
send is refused. Postgres away: as for every send.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Final

from dramatiq import Actor, Broker, Message, MessageProxy, Middleware

from errors import OptionError, PayloadError, SecretUnreadable
from ledger.sealed import MASK, Envelope, Place, holds_sealed, is_sealed, named
from middleware.payload import PayloadMisfit, check_arguments
from middleware.secret_results import Takers
from runtime.context import current_claim
from runtime.secrets import Keyring, Redactor, is_available
from settings import Settings

_NO_KEY: Final = (
    "its arguments cannot be encrypted: set SECRET_KEYS (`switchyard secrets new-key` prints one), here and for the workers"
)
_NO_PACKAGE: Final = "its arguments cannot be encrypted: pip install 'switchyard[secrets]'"


class _Fields:
    """Where an actor's secret arguments stand in a call."""

    def __init__(self, actor_name: str, fn: Callable[..., Any], names: Any) -> None:
        signature = inspect.signature(inspect.unwrap(fn))
        if not isinstance(names, tuple | list) or not names:
            raise OptionError(actor_name, "secret", f"{names!r:.50} is no tuple of arguments' names")
        for name in names:
            if name not in signature.parameters:
                raise OptionError(actor_name, "secret", f"{name!r:.50} is no argument of the actor, which takes {signature}")
        parameters = signature.parameters.values()
        self._named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        self._names = frozenset(names)
        self._positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
        self._keywords = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")

    def mapped(
        self, args: Any, kwargs: Mapping[str, Any], change: Callable[[str, Any], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with each secret one changed; ``change`` gets its field and its value."""
        known = len(self._positional)
        named = [(self._positional[place] if place < known else self._rest, value) for place, value in enumerate(args)]
        return (
            tuple(change(name, value) if name in self._names else value for name, value in named),
            {name: change(name, value) if self._is_secret(name) else value for name, value in kwargs.items()},
        )

    def at(self, position: int) -> str | None:
        """The secret argument that stands at a position of a call; None: there is none, or it is no secret."""
        name = self._positional[position] if position < len(self._positional) else self._rest
        return name if name in self._names else None

    def _is_secret(self, name: str) -> bool:
        return (name if name in self._named else self._keywords) in self._names


class Secrets(Middleware):
    """Seals arguments on their way into the ledger, and opens them for the body."""

    def __init__(self, settings: Settings) -> None:
        self._keys = Keyring(settings.secret_key_bytes)
        self._fields: dict[str, _Fields] = {}
        self._takers = Takers(self.place_at)

    @property
    def actor_options(self) -> set[str]:
        """Options this middleware reads."""
        return {"secret"}

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Find the secret arguments, and have them opened when the body is called."""
        self._fields.pop(actor.actor_name, None)
        self._takers.declare(actor)
        if actor.options.get("secret") is not None:
            fields = _Fields(actor.actor_name, actor.fn, actor.options["secret"])
            self._fields[actor.actor_name] = fields
            timing = actor.options.get("periodic")
            if timing is not None:
                self.refuse_in_schedule(actor.actor_name, timing.args, timing.kwargs or {})
            actor.fn = self._opening(actor.actor_name, fields, actor.fn)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Check what a step was given, as it was not when it was sealed. Raises: PayloadMisfit."""
        fields = self._fields.get(message.actor_name)
        if fields is None or "piped" not in message.options:
            return
        try:
            args, kwargs = fields.mapped(message.args, message.kwargs, partial(self._keys.opened, message.actor_name))
            check_arguments(broker.get_actor(message.actor_name), args, kwargs)
        except SecretUnreadable:
            # The body will not be called either, and says why.
            return
        except PayloadError as error:
            raise PayloadMisfit(error.actor, error.field, error.reason) from None

    def place_at(self, actor_name: str, position: int) -> Place | None:
        """The secret argument at a position of a call of this actor; None: there is none, or it is no secret, as far as is known here."""
        fields = self._fields.get(actor_name)
        field = None if fields is None else fields.at(position)
        return None if field is None else (actor_name, field)

    def takers(self, message: Message[Any] | MessageProxy) -> tuple[Place, ...]:
        """The secret arguments that a job's result goes to."""
        return self._takers.of(message) if self._fields or "secret_for" in message.options else ()

    def seal_result(self, takers: Sequence[Place], result: Any, message_id: str) -> Envelope:
        """The result of a job, encrypted for the arguments that it goes to. Raises: OptionError: there is no key to seal with."""
        actor, field = named(takers)
        self._require_keys(takers[0][0])
        return self._keys.seal(actor, field, result, message_id)

    def refuse_in_schedule(self, actor_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A schedule keeps what its jobs are called with for all to read. Raises: OptionError: a secret is among it."""
        found: list[str] = []
        fields = self._fields.get(actor_name)
        if fields is not None:
            fields.mapped(args, kwargs, lambda name, _: found.append(name))
        if found:
            reason = f"{found[0]!r} cannot stand in a schedule, which is no secret; let the actor fetch it when it runs"
            raise OptionError(actor_name, "secret", reason)

    def opened(self, message: Message[Any]) -> Message[Any]:
        """The message with its arguments as the body gets them. Raises: PayloadError: a sealed one among them does not open."""
        fields = self._fields.get(message.actor_name)
        if fields is None:
            return message

        def opened(field: str, value: Any) -> Any:
            if value == MASK or (isinstance(value, list) and MASK in value):
                raise PayloadError(message.actor_name, field, "is only the mask of a secret; send the secret itself")
            try:
                return self._keys.opened(message.actor_name, field, value)
            except SecretUnreadable as error:
                raise PayloadError(message.actor_name, field, f"is a secret that cannot be read: {error.reason}") from None

        args, kwargs = fields.mapped(message.args, message.kwargs, opened)
        return message.copy(args=args, kwargs=kwargs)

    def sealed(self, message: Message[Any]) -> Message[Any]:
        """The message as it may be stored and shown: its secrets sealed, and those of the steps that follow it.

        Raises:
            OptionError: there is no key to seal with.
        """
        if message.options:
            message = self._with_followers_sealed(message)
        if self._fields and (takers := self._takers.of(message)):
            self._require_keys(takers[0][0])
            if (marked := [list(place) for place in takers]) != message.options.get("secret_for"):
                message = message.copy(options={"secret_for": marked})
        fields = self._fields.get(message.actor_name)
        if fields is None:
            return message
        self._require_keys(message.actor_name)

        def sealed(field: str, value: Any) -> Any:
            if is_sealed(value):
                return value
            if holds_sealed(value):
                # Results that a step was given: from here on one value.
                value = self._keys.opened(message.actor_name, field, value)
            return self._keys.seal(message.actor_name, field, value, message.message_id)

        args, kwargs = fields.mapped(message.args, message.kwargs, sealed)
        return message.copy(args=args, kwargs=kwargs)

    def _with_followers_sealed(self, message: Message[Any]) -> Message[Any]:
        """The message with the secrets of those sealed that it carries: the next step, and the callbacks of its group."""
        changed: dict[str, Any] = {}
        if isinstance(target := message.options.get("pipe_target"), dict):
            changed["pipe_target"] = self._stored(target)
        if callbacks := message.options.get("group_completion_callbacks"):
            changed["group_completion_callbacks"] = [self._stored(callback) for callback in callbacks]
        changed = {name: value for name, value in changed.items() if value != message.options[name]}
        return message.copy(options=changed) if changed else message

    def _stored(self, fields: dict[str, Any]) -> dict[str, Any]:
        before: Message[Any] = Message(**{**fields, "args": tuple(fields["args"])})
        after = self.sealed(before)
        return fields if after is before else after.asdict()

    def _require_keys(self, actor_name: str) -> None:
        """Raises: OptionError: there is nothing to seal with."""
        if not self._keys:
            raise OptionError(actor_name, "secret", _NO_KEY)
        if not is_available():
            raise OptionError(actor_name, "secret", _NO_PACKAGE)

    def _opening(self, actor_name: str, fields: _Fields, body: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(body)
        def called(*args: Any, **kwargs: Any) -> Any:
            values: list[Any] = []

            def opened(field: str, value: Any) -> Any:
                value = self._keys.opened(actor_name, field, value)
                values.append(value)
                return value

            args, kwargs = fields.mapped(args, kwargs, opened)
            claim = current_claim.get()
            if claim is not None:
                claim.redactor = Redactor(values)
            return body(*args, **kwargs)

        return called
