"""Sealed values: how an encrypted argument stands in a payload, and what readers see in its place.

    {"$secret": "v1.<key id>.<nonce and ciphertext>", "actor": "charge", "field": "card"}

A result that goes to secret arguments is one too, for the argument that it goes to; if that are several, ``actor`` and ``field`` are JSON
lists of the same length. Whoever reads the ledger needs no key to see where a secret is; ``runtime.secrets`` makes and opens them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeGuard

#: The field by which a sealed value is recognised.
MARK: Final = "$secret"
#: What is shown instead of a secret.
MASK: Final = "[secret]"

Envelope = dict[str, str]
#: Where a secret stands: an actor, and the name of one of its arguments.
Place = tuple[str, str]


def is_sealed(value: Any) -> TypeGuard[Envelope]:
    """Whether a value of a payload is a sealed one."""
    return (
        isinstance(value, dict)
        and value.keys() == {MARK, "actor", "field"}
        and all(isinstance(part, str) for part in value.values())
        and value[MARK].startswith("v1.")
    )


def masked(value: Any) -> Any:
    """The same value with the mask in place of every sealed one, however deep."""
    return replaced(value, lambda _: MASK)


def replaced(value: Any, change: Callable[[Envelope], Any]) -> Any:
    """The same value with something else in place of every sealed one, however deep."""
    if is_sealed(value):
        return change(value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    return [replaced(item, change) for item in value] if isinstance(value, list) else value


def holds_sealed(value: Any) -> bool:
    """Whether there is a sealed value in it, however deep."""
    return next(sealed_values(value), None) is not None


def named(places: Sequence[Place]) -> Place:
    """What a value that was sealed for these places has as its ``actor`` and ``field``."""
    if len(places) == 1:
        return places[0]
    return json.dumps([actor for actor, _ in places]), json.dumps([field for _, field in places])


def places_of(envelope: Envelope) -> list[Place]:
    """The places that a value was sealed for."""
    actor, field = envelope["actor"], envelope["field"]
    if not actor.startswith("["):
        return [(actor, field)]
    try:
        return [(str(one), str(other)) for one, other in zip(json.loads(actor), json.loads(field), strict=True)]
    except (TypeError, ValueError):
        return []


def sealed_values(value: Any) -> Iterator[Envelope]:
    """Every sealed value in a payload or in options."""
    if is_sealed(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from sealed_values(item)
    elif isinstance(value, list):
        for item in value:
            yield from sealed_values(item)
