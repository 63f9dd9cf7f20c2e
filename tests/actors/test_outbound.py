"""Outbound requests: nothing but the public Internet is reached, whatever the URL, the name server or a redirect says."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trustme

from actors import outbound
from actors.outbound import Refused, Unreachable
from tests.actors.conftest import Deploy
from tests.actors.servers import Answer, HttpServer, RawServer

#: URLs that must never lead to a connection; the names in them are resolved by ``names`` below.
REFUSED_URLS = [
    # loopback and "this host", in every spelling that resolvers accept
    *("http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://0/", "http://0.0.0.0/", "http://0x7f000001/"),
    *("http://0x7f.1/", "http://2130706433/", "http://017700000001/", "http://0177.0.0.1/", "http://127.0.0.1:443/"),
    *("http://localhost/", "http://PRIVATE.test./", "http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:0:0:1]/"),
    *("http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/"),
    # the metadata service and other link-local, private, shared, reserved
    *("http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/"),
    *("http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.1.1/", "http://100.64.0.1/"),
    *("http://192.0.0.8/", "http://192.0.2.1/", "http://198.18.0.1/", "http://198.51.100.1/", "http://203.0.113.1/"),
    *("http://192.88.99.1/", "http://240.0.0.1/", "http://255.255.255.255/", "http://224.0.0.1/", "http://[ff02::1]/"),
    *("http://[fe80::1]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[fec0::1]/", "http://[2001:db8::1]/"),
    # IPv4 within IPv6: compatible, NAT64, 6to4, Teredo
    *("http://[::127.0.0.1]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::a00:1]/", "http://[2002:a9fe:a9fe::]/"),
    *(
        "http://[2001:0:a9fe:a9fe::1]/",
        "http://[::ffff:224.0.0.1]/",
        "http://[::ffff:192.0.0.8]/",
        "http://[3fff::1]/",
        "http://[5f00::1]/",
    ),
    # names: private, one address of several private, resolvable only by luck
    *("http://private.test/", "http://mixed.test/", "http://mapped.test/", "http://scoped.test/"),
    # other schemes, ports, user info, and what confuses parsers
    *("ftp://public.test/", "file:///etc/passwd", "gopher://public.test/", "//public.test/", "public.test", "", "http://"),
    *("http:///path", "http://public.test:22/", "http://public.test:0/", "http://public.test:99999/", "http://public.test:x/"),
    *("http://user@public.test/", "http://user:pw@public.test/", "http://public.test@127.0.0.1/", "http://@public.test/"),
    *("http://public.test\\@127.0.0.1/", "http://public.test /", " http://public.test/", "http://public.test/a b"),
    *("http://public.test/\r\nX: y", "http://public.test\t/", "http://public.test/\x00", "http://pub\nlic.test/"),
    *("http://-public.test/", "http://public..test/", "http://public.test/ä", "http://[::1/", "http://[v1.a]/", "http://%31/"),
    "http://public.test/" + "a" * 2_048,
]

NAMES = {
    "private.test": ["10.1.2.3"],
    "mixed.test": ["93.184.215.14", "10.1.2.3"],
    "mapped.test": ["::ffff:10.1.2.3"],
    "scoped.test": ["fe80::1%eth0"],
    "public.test": ["93.184.215.14"],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A name server of the test's own for names in ``.test``; addresses and ``localhost`` are resolved as ever."""
    table = dict(NAMES)
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = (host.decode() if isinstance(host, bytes) else host).rstrip(".")
        if not name.endswith(".test"):
            return real(host, port, *args, **kwargs)
        if name not in table:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in table[name]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address that a connection was opened to."""
    seen: list[tuple[str, int]] = []
    real = socket.create_connection

    def create_connection(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        seen.append(address)
        return real(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return seen


def fetch(url: str, *, max_bytes: int = 1_000_000, timeout: float = 5.0) -> outbound.Response:
    return outbound.get(url, max_bytes=max_bytes, timeout=timeout)


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_a_url_that_does_not_lead_to_the_public_internet_is_refused_before_any_connection(
    url: str, deploy: Deploy, names: dict[str, list[str]], dialled: list[tuple[str, int]]
) -> None:
    deploy()

    with pytest.raises(Refused):
        fetch(url)
    with pytest.raises(Refused):
        outbound.post(url, b"", {}, timeout=5.0)

    assert dialled == []


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_public(address: str) -> None:
    assert outbound.is_public(ipaddress.ip_address(address))


def test_a_public_name_is_dialled_at_the_address_that_was_checked(
    deploy: Deploy, names: dict[str, list[str]], dialled: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy()
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, *args: Any, **kwargs: Any) -> Any:
        # The first answer is public, every later one is not: a guard that asks twice connects to the second.
        if host == "public.test":
            asked.append(host)
            names["public.test"] = ["192.0.2.1"] if len(asked) == 1 else ["127.0.0.1"]
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(outbound, "is_public", lambda address: str(address) == "192.0.2.1")

    with pytest.raises(Unreachable):
        fetch("http://public.test/", timeout=0.3)

    assert asked == ["public.test"]
    assert dialled == [("192.0.2.1", 80)]


def test_an_allowed_pair_is_reached_and_keeps_its_host_header(
    deploy: Deploy, names: dict[str, list[str]], http_server: HttpServer
) -> None:
    names["inside.test"] = ["127.0.0.1"]
    deploy(outbound_allow=f"inside.test:{http_server.port}")
    http_server.answers = [Answer(body=b"hello")]

    response = fetch(f"http://Inside.test:{http_server.port}/path?q=1#fragment")

    assert (response.status, response.body) == (200, b"hello")
    assert http_server.requests[0].path == "/path?q=1"
    assert http_server.requests[0].headers["Host"] == f"inside.test:{http_server.port}"


def test_an_allowed_pair_opens_neither_another_port_nor_another_name(
    deploy: Deploy, names: dict[str, list[str]], http_server: HttpServer
) -> None:
    names["other.test"] = ["127.0.0.1"]
    deploy(outbound_allow=f"127.0.0.1:{http_server.port}")

    for url in ("http://127.0.0.1/", f"http://127.0.0.1:{http_server.port + 1}/", f"http://other.test:{http_server.port}/"):
        with pytest.raises(Refused):
            fetch(url)


def test_redirects_are_followed_up_to_three_times(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(outbound_allow=http_server.pair)
    hops = [Answer(302, {"Location": f"/{n}"}) for n in (1, 2, 3, 4)]

    http_server.answers = [*hops[:3], Answer(body=b"there")]
    assert fetch(http_server.url()).body == b"there"

    http_server.answers = [*hops, Answer(body=b"there")]
    with pytest.raises(Refused, match="more than 3 redirects"):
        fetch(http_server.url())


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "gopher://public.test/",
        "http://169.254.169.254/",
        "//127.0.0.1:22/",
        "http://[::1/",
        "http://u@public.test/",
    ],
)
def test_a_redirect_is_checked_like_the_first_url(
    location: str, deploy: Deploy, http_server: HttpServer, dialled: list[tuple[str, int]]
) -> None:
    deploy(outbound_allow=http_server.pair)
    http_server.answers = [Answer(302, {"Location": location}), Answer(body=b"secret")]

    with pytest.raises(Refused):
        fetch(http_server.url())

    assert dialled == [("127.0.0.1", http_server.port)]


def test_a_post_follows_no_redirect_and_reads_no_body(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(outbound_allow=http_server.pair)
    http_server.answers = [Answer(307, {"Location": "/elsewhere"}, b"body")]

    response = outbound.post(http_server.url(), b"{}", {"X-A": "1"}, timeout=5.0)

    assert (response.status, response.body, len(http_server.requests)) == (307, b"", 1)
    assert http_server.requests[0].headers["X-A"] == "1"


def test_the_environment_s_proxy_is_not_used(deploy: Deploy, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    deploy(outbound_allow=http_server.pair)

    assert fetch(http_server.url()).status == 200


def test_a_body_above_the_limit_is_refused(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(outbound_allow=http_server.pair)

    http_server.answers = [Answer(body=b"x" * 1_001)]
    with pytest.raises(Refused, match="larger than 1,000 bytes"):
        fetch(http_server.url(), max_bytes=1_000)


def answer_raw(*parts: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65_536)
        for part in parts:
            connection.sendall(part)

    return serve


def test_a_body_without_a_length_is_counted_while_it_streams(deploy: Deploy) -> None:
    def endless(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.is_set():
            connection.sendall(b"x" * 65_536)

    with RawServer(endless) as server:
        deploy(outbound_allow=f"127.0.0.1:{server.port}")
        with pytest.raises(Refused, match="larger than"):
            fetch(f"http://127.0.0.1:{server.port}/")


def drip(first: bytes, byte: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(first)
        while not stop.wait(0.05):
            connection.sendall(byte)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\nX-"),
        drip(b"", b"H"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["body", "headers", "status line", "chunks"],
)
def test_an_answer_that_drips_is_given_up_at_the_deadline(serve: Callable[..., None], deploy: Deploy) -> None:
    with RawServer(serve) as server:
        deploy(outbound_allow=f"127.0.0.1:{server.port}")
        began = time.monotonic()
        with pytest.raises(Unreachable):
            fetch(f"http://127.0.0.1:{server.port}/", timeout=0.5)

    assert time.monotonic() - began < 8


def test_a_name_server_that_does_not_answer_is_given_up_at_the_deadline(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy()
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])

    began = time.monotonic()
    with pytest.raises(Unreachable, match="name server"):
        fetch("http://slow.example/", timeout=0.2)
    release.set()

    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"nonsense\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",),
    ],
    ids=["nothing", "no HTTP", "short body", "short chunk"],
)
def test_an_answer_that_is_not_whole_is_worth_another_attempt(parts: tuple[bytes, ...], deploy: Deploy) -> None:
    with RawServer(answer_raw(*parts)) as server:
        deploy(outbound_allow=f"127.0.0.1:{server.port}")
        with pytest.raises(Unreachable) as caught:
            fetch(f"http://127.0.0.1:{server.port}/")

    assert "nonsense" not in str(caught.value)


def test_nobody_listening_and_an_unknown_name_are_worth_another_attempt(deploy: Deploy, names: dict[str, list[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    deploy(outbound_allow=f"127.0.0.1:{port}")

    with pytest.raises(Unreachable, match="ConnectionRefusedError"):
        fetch(f"http://127.0.0.1:{port}/")
    with pytest.raises(Unreachable, match="cannot be resolved"):
        fetch("http://unknown.test/")


def tls_server(ca: trustme.CA, name: str) -> HttpServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return HttpServer(context)


def test_tls_is_verified_for_the_name_while_the_address_is_pinned(
    deploy: Deploy, names: dict[str, list[str]], authority: trustme.CA
) -> None:
    names["secure.test"] = ["127.0.0.1"]
    seen: list[str | None] = []
    with tls_server(authority, "secure.test") as server:
        deploy(outbound_allow=f"secure.test:{server.port}")
        server._server.socket.context.sni_callback = lambda _socket, name, _context: seen.append(name)  # type: ignore[attr-defined]
        server.answers = [Answer(body=b"safe")]
        response = fetch(f"https://secure.test:{server.port}/")

    assert (response.body, seen) == (b"safe", ["secure.test"])
    assert server.requests[0].headers["Host"] == f"secure.test:{server.port}"


def test_a_certificate_of_another_name_or_authority_is_refused(
    deploy: Deploy, names: dict[str, list[str]], authority: trustme.CA
) -> None:
    names["secure.test"] = ["127.0.0.1"]
    for ca, name in ((authority, "other.test"), (trustme.CA(), "secure.test")):
        with tls_server(ca, name) as server:
            deploy(outbound_allow=f"secure.test:{server.port}")
            with pytest.raises(Unreachable, match="SSLCertVerificationError"):
                fetch(f"https://secure.test:{server.port}/")
        assert server.requests == []


def test_a_redirect_never_leads_from_https_to_http(
    deploy: Deploy, names: dict[str, list[str]], authority: trustme.CA, http_server: HttpServer
) -> None:
    names["secure.test"] = ["127.0.0.1"]
    with tls_server(authority, "secure.test") as server:
        deploy(outbound_allow=f"secure.test:{server.port},{http_server.pair}")
        server.answers = [Answer(302, {"Location": http_server.url()})]
        with pytest.raises(Refused, match="from https to http"):
            fetch(f"https://secure.test:{server.port}/")

    assert http_server.requests == []
