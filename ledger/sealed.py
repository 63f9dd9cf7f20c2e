"""Sealed values: how an encrypted argument stands in a payload, and what readers see in its place.

    {"$secret": "v1.<key id>.<nonce and ciphertext>", "actor": "charge", "field": "card"}

Whoever reads the ledger needs no key to see where a secret is; ``runtime.secrets`` makes and opens them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeGuard

#: The field by which a sealed value is recognised.
MARK: Final = "$secret"
#: What is shown instead of a secret.
MASK: Final = "[secret]"

Envelope = dict[str, str]


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
    if is_sealed(value):
        return MASK
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else value


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
