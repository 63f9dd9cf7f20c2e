"""A payload is checked against its actor's signature before anything is stored.

Effect: a ``send()`` with a missing, unknown or wrongly typed argument raises ``PayloadError`` naming actor and field, in the process
that made the mistake, instead of failing on a worker later. Types are checked strictly, as JSON has them, and only where the
annotation says something about JSON; values are passed on as they are. A step that gets the result of another is complete only when it
runs: there it is checked before the body, and one whose arguments do not fit, or could not be stored, is dead at once with the reason.
Actor options: none. Message options: ``piped`` and ``refused``, of steps alone. Store: none.
"""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Final

import typing_extensions
from dramatiq import Actor, Broker, Message, MessageProxy, Middleware
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from errors import PayloadError, Permanent
from ledger.sealed import holds_sealed

#: Types whose values travel as JSON unchanged; an annotation made of these alone is checked.
_JSON_TYPES: Final = (str, int, float, bool, type(None), list, dict)
_BRANCHES: Final = frozenset(kind.__name__ for kind in _JSON_TYPES)


class _Signature:
    """An actor's parameters, ready to be checked."""

    def __init__(self, actor: Actor[Any, Any]) -> None:
        self.actor_name = actor.actor_name
        body = inspect.unwrap(actor.fn)
        self.signature = inspect.signature(body)
        try:
            hints = typing.get_type_hints(body, include_extras=True)
        except (NameError, TypeError):
            # A name that only type checkers see: those parameters go unchecked, their number and names do not.
            hints = {}
        self.adapters = {
            name: adapter
            for name, parameter in self.signature.parameters.items()
            if name in hints
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and (adapter := _adapter(hints[name])) is not None
        }

        # The usual call, positional arguments alone, need not be bound: a third of a send's own time went there.
        parameters = list(self.signature.parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._in_order = [(p.name, self.adapters.get(p.name)) for p in positional]
        wanted = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
        self._least = len(positional) + 1 if wanted else sum(p.default is p.empty for p in positional)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not kwargs and self._least <= len(args) <= len(self._in_order):
            for value, (name, adapter) in zip(args, self._in_order, strict=False):
                if adapter is not None:
                    self._check_type(name, adapter, value)
            return
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise PayloadError(self.actor_name, self._misfit(args, kwargs), f"{error}; it takes {self.signature}") from None
        for name, value in bound.arguments.items():
            adapter = self.adapters.get(name)
            if adapter is not None:
                self._check_type(name, adapter, value)

    def _check_type(self, name: str, adapter: TypeAdapter[Any], value: Any) -> None:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            if holds_sealed(value):
                # A secret that was sealed before, by a sender who knew it: the step of a pipeline, a message sent again. Or results that
                # a step was given, which are checked when they are opened.
                return
            raise self._mistyped(name, error) from None

    def _misfit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The field that makes the arguments not fit: an unknown name, one too many, or a missing one."""
        parameters = self.signature.parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for name in kwargs:
                if name not in parameters:
                    return name
        positional = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        if len(args) > len(positional) and not variadic:
            return f"args[{len(positional)}]"
        given = set(positional[: len(args)])
        for name in kwargs:
            if name in given or (name in parameters and parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY):
                return name
        for name, parameter in parameters.items():
            if name not in given and name not in kwargs and parameter.default is parameter.empty:
                return name
        return "arguments"

    def _mistyped(self, name: str, error: ValidationError) -> PayloadError:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of a union every branch complains; the one that got furthest is the one that was meant.
        meant = _path(max((one["loc"] for one in found), key=lambda loc: len(_path(loc))))
        message = " or ".join(
            dict.fromkeys(one["msg"][0].lower() + one["msg"][1:] for one in found if _path(one["loc"]) == meant)
        )
        path = ".".join(map(str, meant))
        return PayloadError(self.actor_name, f"{name}.{path}" if path else name, message)


def check_arguments(actor: Actor[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises: PayloadError: the actor cannot be called with these."""
    _Signature(actor).check(args, kwargs)


def _path(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The fields and positions of a location, without the branches of unions that pydantic puts among them: str, list[str]."""
    return tuple(part for part in location if isinstance(part, int) or (part.isidentifier() and part not in _BRANCHES))


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """A validator for an annotation that speaks of JSON; None for any other."""
    if not _is_json(annotation):
        return None
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:
        return None


def _is_json(annotation: Any) -> bool:
    if annotation is Any:
        return False
    if annotation in _JSON_TYPES or annotation is None:
        return True
    if typing_extensions.is_typeddict(annotation):
        return all(_is_json(hint) or hint is Any for hint in typing.get_type_hints(annotation).values())
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return all(isinstance(value, str | int | bool | None) for value in arguments)
    if origin is typing.Annotated or origin in (typing.Required, typing.NotRequired):
        return _is_json(arguments[0])
    if origin in (list, dict, typing.Union, types.UnionType):
        return all(_is_json(argument) or argument is Any for argument in arguments)
    return False


class PayloadMisfit(PayloadError, Permanent):
    """What a step was given does not fit it; running it again cannot help."""


class CheckedPayload(Middleware):
    """Refuses what does not fit the actor."""

    def __init__(self) -> None:
        self._signatures: dict[str, _Signature] = {}

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        """Read the signature once. An actor of that name declared again replaces it."""
        self._signatures[actor.actor_name] = _Signature(actor)

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Check the arguments. A message for an actor that this process does not know passes: its worker will check."""
        if "piped" in message.options:
            return
        signature = self._signatures.get(message.actor_name)
        if signature is not None:
            signature.check(message.args, message.kwargs)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Check what a step was given while it waited. Raises: PayloadMisfit."""
        options = message.options
        if not options:
            return
        if "refused" in options:
            raise PayloadMisfit(message.actor_name, "arguments", options["refused"])
        if "piped" in options and (signature := self._signatures.get(message.actor_name)) is not None:
            try:
                signature.check(message.args, message.kwargs)
            except PayloadError as error:
                raise PayloadMisfit(error.actor, error.field, error.reason) from None
