"""Fingerprints of payloads: what tells two sends under one key apart, and what many arguments are called by as one key.

HMAC-SHA256 over canonical JSON, keyed by the settings, so that whoever may read the ledger cannot try out what short arguments were. With
FINGERPRINT_KEY unset it is keyed by SECRET_KEYS, where there are any, or by a constant: fingerprints then work just as well, and hide
nothing that the payload beside them does not show. What was made under one of the other keys is recognised, so that keys may be introduced
and rotated while keys of sends live.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from settings import Settings

#: Says what a digest is of, so that none can stand for another.
_CONSTANT: Final = b"switchyard fingerprint"
#: Options that say what follows from a job. When it runs, and how often it is tried, changes nothing of its effect.
EFFECTIVE: Final = ("on_success", "on_failure", "on_retry_exhausted", "pipe_ignore", "pipe_target")


def fingerprint_keys(settings: Settings) -> tuple[bytes, ...]:
    """The keys, the one for new fingerprints first."""
    keys = [] if settings.fingerprint_key is None else [settings.fingerprint_key.get_secret_value().encode()]
    return (*keys, *(_derived(key) for key in settings.secret_key_bytes), _CONSTANT)


def fingerprints(keys: Sequence[bytes], actor: str, payload: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """A send's fingerprint under each key.

    Parameters:
        payload: the arguments as JSON text, before anything in it is encrypted.
        options: of the message.
    """
    effective = {name: options[name] for name in EFFECTIVE if options.get(name) is not None}
    if "pipe_target" in effective:
        effective["pipe_target"] = _step(effective["pipe_target"])
    text = canonical([actor, json.loads(payload), effective])
    return tuple(digest(key, text) for key in keys)


def canonical(value: Any) -> str:
    """One text for all values that are the same JSON: keys sorted, numbers as Python writes them."""
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(key: bytes, text: str) -> str:
    """64 hexadecimal digits."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _derived(key: bytes) -> bytes:
    return hmac.new(key, _CONSTANT, hashlib.sha256).digest()


def _step(target: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's next message without what is new in each copy of it: its id and its time."""
    options = {name: value for name, value in (target.get("options") or {}).items() if name in EFFECTIVE}
    if "pipe_target" in options:
        options["pipe_target"] = _step(options["pipe_target"])
    return {name: target.get(name) for name in ("actor_name", "args", "kwargs")} | {"options": options}
