"""Encrypting single arguments, and keeping what was decrypted out of texts.

AES-256-GCM by ``cryptography``, bound to actor and field: a sealed value moved to another field or actor does not open. The nonce is made
from the value itself and the message's id (HMAC), so that a message sent again has the same text, by which a repeated send is recognised,
while equal values in different messages show nothing of it. Every key of SECRET_KEYS opens what it sealed, the first one seals.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Final

from errors import SecretUnreadable
from ledger.sealed import MARK, MASK, Envelope, places_of, replaced

#: Bytes of a key, of a nonce.
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
#: What is shorter is only hidden where it stands alone: "42" is part of many numbers.
_ANYWHERE: Final = 4
#: A line of a longer secret, such as a private key, is one too from this length on.
_LINE: Final = 8


def new_key() -> str:
    """A key for SECRET_KEYS."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def is_available() -> bool:
    """Whether the package that encrypts is installed."""
    try:
        import cryptography  # noqa: F401  # an optional package
    except ImportError:
        return False
    return True


class Keyring:
    """The keys of SECRET_KEYS, 32 bytes each; the first one seals."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._first = _key_id(keys[0]) if keys else ""

    def __bool__(self) -> bool:
        return bool(self._keys)

    def seal(self, actor: str, field: str, value: Any, salt: str) -> Envelope:
        """Encrypt a value that is JSON. ``salt`` is the message's id."""
        key = self._keys[self._first]
        plain = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        place = _place(actor, field)
        nonce = hmac.digest(_nonce_key(key), b"\0".join((salt.encode(), place, plain)), hashlib.sha256)[:_NONCE_BYTES]
        sealed = base64.urlsafe_b64encode(nonce + _cipher(key).encrypt(nonce, plain, place)).decode()
        return {MARK: f"v1.{self._first}.{sealed}", "actor": actor, "field": field}

    def open(self, actor: str, field: str, envelope: Envelope) -> Any:
        """Decrypt a value that was sealed for this field of this actor.

        Raises:
            SecretUnreadable: no key of SECRET_KEYS sealed it, or not for this field.
        """
        _, _, rest = envelope[MARK].partition(".")
        id_, _, text = rest.partition(".")
        key = self._keys.get(id_)
        if key is None:
            held = ", ".join(self._keys) or "none"
            raise SecretUnreadable(
                actor, field, f"it was encrypted with the key {id_:.8}, and SECRET_KEYS has {held}; add that key"
            )
        from cryptography.exceptions import InvalidTag  # an optional package

        try:
            raw = base64.b64decode(text, altchars=b"-_", validate=True)
            return json.loads(_cipher(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _place(actor, field)))
        except (InvalidTag, binascii.Error, ValueError):
            raise SecretUnreadable(actor, field, "it was changed, or encrypted for another field or actor") from None

    def opened(self, actor: str, field: str, value: Any) -> Any:
        """What an argument is, with everything in it decrypted that was sealed for it: itself, or the results that make it up.

        Raises:
            SecretUnreadable: as ``open``.
        """

        def open_(envelope: Envelope) -> Any:
            own = (actor, field)
            for_several = own not in ((envelope["actor"], envelope["field"]),) and own in places_of(envelope)
            return self.open(*((envelope["actor"], envelope["field"]) if for_several else own), envelope)

        return replaced(value, open_)

    def is_fresh(self, envelope: Envelope) -> bool:
        """Whether a value is sealed with the first key."""
        return envelope[MARK].startswith(f"v1.{self._first}.")


class Redactor:
    """Hides what a running job's secrets are in texts that will be read: errors, tracebacks, log lines, results."""

    def __init__(self, values: Sequence[Any]) -> None:
        texts = sorted({text for value in values for text in _texts(value) if text.strip()}, key=len, reverse=True)
        parts = [re.escape(text) if len(text) >= _ANYWHERE else rf"(?<!\w){re.escape(text)}(?!\w)" for text in texts]
        self._pattern = re.compile("|".join(parts)) if parts else None

    def text(self, text: str) -> str:
        """The text with the mask in place of every secret."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def value(self, value: Any) -> Any:
        """JSON with the mask in place of every secret, also as part of a string or as a number."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and self.text(str(value)) == MASK:
            return MASK
        return value


def _texts(value: Any) -> Iterator[str]:
    """How a value may turn up in a text: itself, as Python and as JSON write it, and each of its lines."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
        yield repr(value)[1:-1]
        yield json.dumps(value)[1:-1]
        yield from (line for line in value.splitlines() if len(line) >= _LINE)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"switchyard key id" + key).hexdigest()[:8]


def _nonce_key(key: bytes) -> bytes:
    return hmac.digest(key, b"switchyard nonce", hashlib.sha256)


def _place(actor: str, field: str) -> bytes:
    return json.dumps(["switchyard", actor, field]).encode()


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # an optional package

    return AESGCM(key)
