"""The job type ``deliver_webhook``: tell somebody's server that something happened, signed, until it answers 2xx.

What the answer means:

    2xx                          delivered
    408, 425, 429, 5xx, none     tried again, when Retry-After says if it does, else after the back-off
    3xx, other 4xx               permanent: the receiver does not want this, and will not want it later either

The body is the same on every attempt and carries the job's id, so that a receiver can recognise what it has seen before:
a delivery whose answer was lost is repeated. The answer's body is never read, so nothing of it can leak into the ledger.
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import dramatiq

import switchyard
from actors import outbound
from actors.signatures import sign
from switchyard import Permanent, Retry, current_job

#: Seconds for one delivery, from the name's resolution to the answer's headers.
DELIVERY_TIMEOUT: Final = 10.0
#: The longest wait that a receiver's Retry-After may ask for, in seconds.
MAX_RETRY_AFTER: Final = 3_600.0

_EVENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RETRIED_STATUS: Final = frozenset({408, 425, 429})


# Eight attempts over two hours and more: a receiver that is down for an hour misses nothing.
@dramatiq.actor(queue_name="webhooks", max_retries=7, min_backoff=60_000, max_backoff=3_600_000, time_limit=30_000)
def deliver_webhook(url: str, event: str, data: dict[str, Any]) -> dict[str, Any]:
    """POST one signed event as JSON: 8 attempts, exponential from 1 minute, or as Retry-After says (at most an hour).

    The body is ``{"id": <job id>, "event": ..., "data": ...}``; the headers are ``X-Switchyard-Event``,
    ``X-Switchyard-Delivery`` (the job's id, the same on every attempt) and ``X-Switchyard-Signature``.

    Parameters:
        url: http(s), public, on port 80 or 443, unless ``OUTBOUND_ALLOW`` names its host and port.
        event: what happened, such as ``order.paid``: letters, digits, ``.``, ``_`` and ``-``.
        data: what the receiver needs to know.

    Returns:
        ``status``: the receiver's answer.

    Raises:
        Permanent: no secret is set, the URL is refused, or the receiver answered 3xx or 4xx.
        Retry, Unreachable: no answer, or one that says later.
    """
    job = current_job()
    secret = switchyard.settings().webhook_secret
    if secret is None or not secret.get_secret_value():
        raise Permanent("WEBHOOK_SECRET: not set, and an unsigned webhook is not sent")
    if not _EVENT.fullmatch(event):
        raise Permanent("event: must be letters, digits, '.', '_' and '-', such as order.paid")
    body = json.dumps({"id": job.id, "event": event, "data": data}, separators=(",", ":"), ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json",
        "X-Switchyard-Event": event,
        "X-Switchyard-Delivery": job.id,
        "X-Switchyard-Signature": sign(secret.get_secret_value().encode(), body, int(time.time())),
    }
    response = outbound.post(url, body, headers, timeout=DELIVERY_TIMEOUT)
    if 200 <= response.status < 300:
        return {"status": response.status}
    if response.status >= 500 or response.status in _RETRIED_STATUS:
        delay = retry_after(response.headers.get("retry-after"))
        job.log(f"the receiver answered {response.status}" + (f", asks for {delay:.0f} s" if delay is not None else ""))
        raise Retry(f"the receiver answered {response.status}", delay=None if delay is None else round(delay * 1_000))
    raise Permanent(f"the receiver answered {response.status}")


def retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Read a Retry-After header, digits or an HTTP date, as seconds from now, 1 to 3,600; None if absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,10}", value):
        return _bounded(float(value))
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date without a zone is GMT: HTTP knows no other.
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return _bounded((when - (now or datetime.now(UTC))).total_seconds())


def _bounded(seconds: float) -> float:
    # Not at once, whatever the receiver says: all attempts would be gone within a second.
    return min(max(seconds, 1.0), MAX_RETRY_AFTER)
