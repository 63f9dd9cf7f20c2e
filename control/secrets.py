"""Secret arguments of a stored job: keeping them when the job is changed. Changing their key: ``secrets_rotation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errors import PayloadError
from ledger.sealed import holds_sealed, is_sealed, masked, places_of, sealed_values
from runtime.secrets import Keyring


def kept_secrets(
    actor: str,
    payload: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    message_id: str,
    keys: tuple[bytes, ...],
) -> tuple[list[Any], dict[str, Any]]:
    """New arguments of a stored job, its secrets sealed where they were before; a mask, as readers are shown it, keeps what is there.

    What an actor keeps secret is known where it is declared; the command line goes by what the job has already.

    Parameters:
        payload: the job's arguments as they are stored.

    Raises:
        PayloadError: a secret would be stored for all to read, since it is given in another place or there is no key.
    """
    ring = Keyring(keys)

    def kept(before: Any, value: Any) -> Any:
        # What was shown, be it a list of results that it was given one by one.
        if holds_sealed(before) and value == masked(before):
            return before
        field = _field(actor, before)
        if field is None or holds_sealed(value):
            return value
        if not ring:
            raise PayloadError(actor, field, "is secret, and SECRET_KEYS is not set here")
        return ring.seal(actor, field, value, message_id)

    before = [*payload["args"], *(None for _ in args)]
    known = {field: value for value in (*payload["args"], *payload["kwargs"].values()) if (field := _field(actor, value))}
    new_args = [kept(before[place], value) for place, value in enumerate(args)]
    new_kwargs = {name: kept(known.get(name), value) for name, value in kwargs.items()}
    found = {field for value in (*new_args, *new_kwargs.values()) if (field := _field(actor, value))}
    if missing := sorted(known.keys() - found):
        reason = "is secret in this job; give it where it was, or change the job in a program that imports the actor"
        raise PayloadError(actor, missing[0], reason)
    return new_args, new_kwargs


def _field(actor: str, value: Any) -> str | None:
    """The secret argument of this actor that a stored value is; None: it is none."""
    if is_sealed(value) and (value["actor"], value["field"]) in places_of(value):
        return value["field"]
    return next((field for envelope in sealed_values(value) for one, field in places_of(envelope) if one == actor), None)
