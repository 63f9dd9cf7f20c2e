"""HTTP requests to addresses that somebody else chose, fenced so that they reach the public Internet and nothing else.

A URL from a payload may name this network's own machines: a cloud's metadata service, a database, the loopback. So:

    URL ──► http(s), no user info, port 80 or 443 ──► resolved once ──► EVERY address public ──► connect to one of those
                 ▲                                                                                          │
                 └────────────── a redirect (at most 3, GET only) starts again from the top ◄───────────────┘

The connection goes to the address that was checked, while the Host header, SNI and the certificate keep to the name: a name
server that answers differently the second time is never asked a second time. No proxy of the environment is used. One
deadline covers everything from the name's resolution to the body's last byte, so a peer that drips a byte a second cannot
hold a thread, and a body is counted while it streams. ``OUTBOUND_ALLOW`` names the exceptions, as ``host:port``.

A refusal is permanent; a peer that cannot be reached is worth another attempt. Neither repeats what the peer answered.
"""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import switchyard
from switchyard import Permanent

#: The longest URL, in characters; what browsers and servers agree to carry.
MAX_URL_LENGTH: Final = 2_048
#: How many redirects a GET follows; each is checked like the first URL.
MAX_REDIRECTS: Final = 3
#: The ports that need no permission by OUTBOUND_ALLOW.
WEB_PORTS: Final = frozenset({80, 443})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# ``is_global`` of Python 3.11.7 still calls these public (seen), though they lead inside: through NAT64, 6to4 and IPv4 in IPv6,
# or to protocol assignments and documentation.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("192.0.0.0/24", "192.88.99.0/24", "::/96", "64:ff9b::/96", "64:ff9b:1::/48"),
        *("2001::/23", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10"),
    )
)
_UNSAFE_IN_URL: Final = re.compile(r"[\x00-\x20\x7f-\x9f\\\u2028\u2029]")
_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK: Final = 65_536


class Refused(Permanent):
    """The request must not be made, or its answer not be taken; trying again cannot help."""


class Unreachable(Exception):
    """The peer did not answer in time, or not in HTTP, or not with its own certificate; trying again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a peer answered. ``headers`` has lower-case names; ``body`` is empty unless it was asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """One URL, checked: whom to call by which name at which addresses."""

    secure: bool
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]

    @property
    def authority(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


def get(url: str, *, max_bytes: int, timeout: float) -> Response:
    """Fetch a URL, following redirects.

    Parameters:
        max_bytes: the largest body taken.
        timeout: seconds for everything together.

    Raises:
        Refused: the URL, an address behind it, a redirect or the body's size is not acceptable.
        Unreachable: there was no complete answer in time.
    """
    deadline = time.monotonic() + timeout
    for _ in range(MAX_REDIRECTS + 1):
        response = _exchange("GET", url, None, {}, max_bytes, deadline)
        location = response.headers.get("location")
        if response.status not in _REDIRECTS or not location:
            return response
        url = _redirected(url, location)
    raise Refused(f"more than {MAX_REDIRECTS} redirects")


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Response:
    """Post a body; redirects are not followed and the answer's body is not read.

    Parameters:
        timeout: seconds for everything together.

    Raises:
        Refused: the URL or an address behind it is not acceptable.
        Unreachable: there was no answer in time.
    """
    return _exchange("POST", url, body, headers, 0, time.monotonic() + timeout)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet, seen through IPv4-mapped IPv6."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


def _exchange(method: str, url: str, body: bytes | None, headers: Mapping[str, str], max_bytes: int, deadline: float) -> Response:
    target = _check(url, deadline)
    try:
        with closing(_connect(target, deadline)) as raw:
            connection = HTTPConnection(target.host, target.port)
            connection.auto_open = 0  # never a connection that was not checked
            fixed = {"Host": target.authority, "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "Switchyard"}
            connection.sock = _DeadlineSocket(raw, deadline)
            connection.request(method, target.path, body=body, headers={**headers, **fixed})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            wanted = max_bytes and answer.status not in _REDIRECTS
            return Response(status=answer.status, headers=found, body=_read(answer, max_bytes) if wanted else b"")
    except (OSError, HTTPException) as error:
        # The text of an HTTPException may quote what the peer sent; its type says enough.
        reason = str(error) if isinstance(error, OSError) else "the answer is not HTTP"
        raise Unreachable(f"{target.host}:{target.port}: {type(error).__name__}: {reason}") from error


def _redirected(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        downgraded = urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http"
    except ValueError as error:
        raise Refused("the redirect's URL cannot be read") from error
    if downgraded:
        raise Refused("the redirect leads from https to http")
    return target


def _check(url: str, deadline: float) -> _Target:
    if len(url) > MAX_URL_LENGTH or _UNSAFE_IN_URL.search(url):
        raise Refused(f"the URL is longer than {MAX_URL_LENGTH} characters, or holds a space, backslash or control character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"the URL cannot be read: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise Refused("the URL must begin with http:// or https://")
    if "@" in parts.netloc:
        raise Refused("the URL must not hold a user name or password")
    host, path = _host(parts), parts.path or "/"
    if parts.query:
        path = f"{path}?{parts.query}"
    if not path.isascii():
        raise Refused("the URL's path must be percent-encoded")
    port = port if port is not None else 443 if parts.scheme == "https" else 80
    written = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    allowed = written in {pair.lower() for pair in switchyard.settings().outbound_allow}
    if not allowed and port not in WEB_PORTS:
        raise Refused(f"port {port} is not 80 or 443, and {written} is not in OUTBOUND_ALLOW")
    addresses = _resolve(host, port, deadline)
    if not allowed and not all(is_public(address) for address in addresses):
        raise Refused(f"{written} is not a public address, and not in OUTBOUND_ALLOW")
    return _Target(
        secure=parts.scheme == "https", host=host, port=port, path=path, addresses=tuple(str(address) for address in addresses)
    )


def _host(parts: SplitResult) -> str:
    """The URL's host as DNS and TLS spell it: lower case, ASCII; an IPv6 address without brackets."""
    host = parts.hostname or ""
    if "[" in parts.netloc:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise Refused("the URL's host is no IPv6 address") from error
    try:
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError as error:
        raise Refused("the URL's host is no host name") from error
    if not _HOST_NAME.fullmatch(host):
        raise Refused("the URL's host is no host name")
    return host


def _resolve(host: str, port: int, deadline: float) -> list[Address]:
    """Ask for a name's addresses once. The system's resolver knows no time-out, so it is asked in a thread of its own."""
    found: list[Address] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            for *_, endpoint in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                found.append(ipaddress.ip_address(str(endpoint[0]).partition("%")[0]))
        except (OSError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else OSError(str(error)))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        raise Unreachable(f"{host}: no answer from the name server in time")
    if failed or not found:
        raise Unreachable(f"{host}: the name cannot be resolved") from (failed[0] if failed else None)
    return list(dict.fromkeys(found))


def _connect(target: _Target, deadline: float) -> socket.socket:
    """Connect to the first checked address that answers; with TLS, in the name's name."""
    problem: OSError = TimeoutError("no time left")
    for address in target.addresses:
        try:
            raw = socket.create_connection((address, target.port), timeout=_left(deadline))
        except OSError as error:
            problem = error
            continue
        try:
            raw.settimeout(_left(deadline))
            return _tls().wrap_socket(raw, server_hostname=target.host) if target.secure else raw
        except BaseException:
            raw.close()
            raise
    raise problem


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The system's authorities (or those of OpenSSL's SSL_CERT_FILE); loading them costs milliseconds, so once."""
    return ssl.create_default_context()


def _read(answer: HTTPResponse, max_bytes: int) -> bytes:
    if (answer.length or 0) > max_bytes:
        raise Refused(f"the answer is larger than {max_bytes:,} bytes")
    body = bytearray()
    while chunk := answer.read(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise Refused(f"the answer is larger than {max_bytes:,} bytes")
    # http.client raises for a chunked body that ends early, but takes a short plain one for complete.
    if answer.length:
        raise ConnectionError(f"the answer ended {answer.length:,} bytes early")
    return bytes(body)


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no time left")
    return seconds


class _DeadlineSocket:
    """What http.client needs of a socket, with the time left set before each call; a plain time-out would restart each byte."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._raw.settimeout(_left(self._deadline))
            rest = rest[self._raw.send(rest) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._raw, self._deadline), _CHUNK)

    def close(self) -> None:
        """Nothing: http.client closes before the body is read; the owner of the real socket closes it."""


class _DeadlineReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(_left(self._deadline))
        return self._raw.recv_into(buffer)
