"""E-mail addresses as people type them, checked before they reach a header or an SMTP command.

``policy.SMTP`` refuses CR and LF in a header, but not the other characters that some mail servers take for the end of a line,
nor an address that is two. What passes here is one address, ASCII on the wire, and nothing else.
"""

from __future__ import annotations

import re
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from typing import Final

from switchyard import Permanent

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LOCAL: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
#: The longest address that SMTP's path leaves room for (RFC 5321, 4.5.3.1.3).
MAX_ADDRESS_LENGTH: Final = 254


def is_plain_address(text: str) -> bool:
    """Whether the text is one bare ``local@domain`` in ASCII, of a length that mail servers carry."""
    local, at, domain = text.rpartition("@")
    if not at or len(text) > MAX_ADDRESS_LENGTH or len(local) > 64:
        return False
    return bool(_LOCAL.fullmatch(local) and _DOMAIN.fullmatch(domain))


def one_line(field: str, text: str, limit: int = 998) -> str:
    """Return the text of a header if it is one line of at most ``limit`` characters.

    Raises:
        Permanent: it holds a control character or line separator, or is too long; names the field.
    """
    if _CONTROL.search(text):
        raise Permanent(f"{field}: holds a line break or control character")
    if len(text) > limit:
        raise Permanent(f"{field}: is longer than {limit} characters")
    return text


def parse(field: str, text: str) -> Address:
    """Read ``ada@example.org`` or ``Ada Lovelace <ada@example.org>``; a non-ASCII domain is written as IDNA.

    Raises:
        Permanent: it is not exactly one address; names the field.
    """
    try:
        header = policy.SMTP.header_factory("To", one_line(field, text, limit=400))
        found = list(header.addresses)
        address = found[0] if len(found) == 1 and not header.groups[0].display_name else None
        domain = address.domain.encode("idna").decode() if address else ""
    except (MessageError, ValueError, IndexError, AttributeError) as error:
        raise Permanent(f"{field}: {text[:80]!r} is no e-mail address") from error
    if address is None or header.defects or not is_plain_address(f"{address.username}@{domain}"):
        raise Permanent(f"{field}: {text[:80]!r} is no e-mail address")
    return Address(address.display_name, address.username, domain)
