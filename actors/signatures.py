"""The signature of a webhook: who sent it, and when.

    X-Switchyard-Signature: t=1767225600,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd

``v1`` is the HMAC-SHA256, in hexadecimal, of the time's digits, a dot, and the body's bytes, under ``WEBHOOK_SECRET``. The time
is signed with the body, so that a receiver can refuse a request that was recorded and sent again later. A receiver in Python
may use ``verify`` as it stands; ``docs/reference/actors.md`` shows the same in ten lines without Switchyard.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import Final

#: How old, or how far ahead of the receiver's clock, a signed request may be, in seconds.
DEFAULT_TOLERANCE: Final = 300.0

_HEADER: Final = re.compile(r"t=(?P<time>[0-9]{1,12}),v1=(?P<digest>[0-9a-f]{64})")


def sign(secret: bytes, body: bytes, at: int) -> str:
    """Make the signature header's value for a body sent at Unix time ``at`` (seconds)."""
    return f"t={at},v1={_digest(secret, body, at)}"


def verify(secret: bytes, header: str, body: bytes, *, tolerance: float = DEFAULT_TOLERANCE, now: float | None = None) -> bool:
    """Whether the header was made with this secret for this body, within ``tolerance`` seconds of now."""
    match = _HEADER.fullmatch(header)
    if match is None:
        return False
    at = int(match["time"])
    fresh = abs((time.time() if now is None else now) - at) <= tolerance
    return hmac.compare_digest(match["digest"], _digest(secret, body, at)) and fresh


def _digest(secret: bytes, body: bytes, at: int) -> str:
    return hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
