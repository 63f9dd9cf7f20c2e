"""deliver_webhook against a real HTTP server, and the signature that a receiver checks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

import switchyard
from actors import deliver_webhook
from actors.outbound import Unreachable
from actors.signatures import sign, verify
from actors.webhooks import retry_after
from switchyard import Permanent, Retry
from tests.actors.conftest import Deploy
from tests.actors.servers import Answer, HttpServer

JOB = "0190d5a4-7b1e-7c3a-9f00-000000000003"
SECRET = "a webhook secret"
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def deliver(url: str, event: str = "order.paid", data: dict[str, Any] | None = None, attempt: int = 1) -> dict[str, Any]:
    with switchyard.job_context(id=JOB, attempt=attempt):
        result: dict[str, Any] = deliver_webhook(url, event, data or {"total": 12.5, "name": "Zoë"})
    return result


@pytest.fixture
def receiver(deploy: Deploy, http_server: HttpServer) -> HttpServer:
    deploy(outbound_allow=http_server.pair, webhook_secret=SECRET)
    return http_server


def test_a_delivery_is_signed_json_that_the_receiver_can_verify(receiver: HttpServer) -> None:
    receiver.answers = [Answer(204)]

    assert deliver(receiver.url("/hook")) == {"status": 204}

    (request,) = receiver.requests
    assert (request.method, request.path, request.headers["Content-Type"]) == ("POST", "/hook", "application/json")
    assert json.loads(request.body) == {"id": JOB, "event": "order.paid", "data": {"total": 12.5, "name": "Zoë"}}
    assert (request.headers["X-Switchyard-Event"], request.headers["X-Switchyard-Delivery"]) == ("order.paid", JOB)
    assert verify(SECRET.encode(), request.headers["X-Switchyard-Signature"], request.body)


def test_a_second_attempt_carries_the_same_body_and_id(receiver: HttpServer) -> None:
    deliver(receiver.url())
    deliver(receiver.url(), attempt=2)

    first, second = receiver.requests
    assert first.body == second.body
    assert first.headers["X-Switchyard-Delivery"] == second.headers["X-Switchyard-Delivery"]


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 400, 401, 403, 404, 409, 410, 422, 451])
def test_an_answer_that_will_not_change_is_permanent(status: int, receiver: HttpServer) -> None:
    receiver.answers = [Answer(status, {"Location": "/other"}, b"")]

    with pytest.raises(Permanent, match=str(status)):
        deliver(receiver.url())

    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_says_later_is_retried_with_the_actor_s_back_off(status: int, receiver: HttpServer) -> None:
    receiver.answers = [Answer(status, body=b"stack trace with a secret")]

    with pytest.raises(Retry, match=str(status)) as caught:
        deliver(receiver.url())

    assert caught.value.delay is None
    assert "secret" not in str(caught.value)


def test_retry_after_is_honoured_in_milliseconds(receiver: HttpServer) -> None:
    receiver.answers = [Answer(429, {"Retry-After": "7"})]
    with pytest.raises(Retry) as caught:
        deliver(receiver.url())
    assert caught.value.delay == 7_000

    when = datetime.now(UTC) + timedelta(seconds=90)
    receiver.answers = [Answer(503, {"Retry-After": format_datetime(when, usegmt=True)})]
    with pytest.raises(Retry) as caught:
        deliver(receiver.url())
    assert caught.value.delay == pytest.approx(89_500, abs=2_500)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 5 ", 5),
        ("0", 1),
        ("999999999", 3_600),
        ("Sat, 31 Jan 2026 12:01:00 GMT", 60),
        ("Sat, 31 Jan 2026 12:01:00 -0000", 60),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 1),
        ("Sat, 31 Jan 2099 11:00:00 GMT", 3_600),
        *((nonsense, None) for nonsense in ("", "soon", "-5", "1.5", "1e9", "٣", "Sat, 99 Jan 2026", "9" * 50)),
    ],
)
def test_retry_after_is_read_and_bounded(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=NOW) == seconds


def test_nobody_listening_is_worth_another_attempt(deploy: Deploy) -> None:
    with HttpServer() as server:
        pair, url = server.pair, server.url()
    deploy(outbound_allow=pair, webhook_secret=SECRET)

    with pytest.raises(Unreachable):
        deliver(url)


def test_without_a_secret_nothing_is_sent(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(outbound_allow=http_server.pair)

    with pytest.raises(Permanent, match="WEBHOOK_SECRET"):
        deliver(http_server.url())

    assert http_server.requests == []


def test_a_url_that_leads_inside_is_refused(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(webhook_secret=SECRET)

    for url in (http_server.url(), "http://169.254.169.254/", "https://user:pw@example.org/"):
        with pytest.raises(Permanent):
            deliver(url)

    assert http_server.requests == []


@pytest.mark.parametrize("event", ["", "a b", "a\r\nX-Evil: 1", "a\n", ".a", "ä", "a" * 101])
def test_an_event_that_does_not_fit_a_header_is_refused(event: str, receiver: HttpServer) -> None:
    with pytest.raises(Permanent, match="event"):
        deliver(receiver.url(), event)

    assert receiver.requests == []


def test_a_signature_holds_for_its_secret_body_and_time_only() -> None:
    header = sign(b"k", b"body", 1_000)

    assert header.startswith("t=1000,v1=")
    assert verify(b"k", header, b"body", now=1_299)
    assert verify(b"k", header, b"body", now=701)
    assert not verify(b"other", header, b"body", now=1_000)
    assert not verify(b"k", header, b"body!", now=1_000)
    assert not verify(b"k", header, b"body", now=1_301)
    assert not verify(b"k", header, b"body", now=699)
    assert not verify(b"k", header.replace("t=1000", "t=1200"), b"body", now=1_200)


@pytest.mark.parametrize(
    "header", ["", "t=1", "v1=" + "0" * 64, "t=x,v1=" + "0" * 64, "t=1,v1=" + "0" * 63, "t=1,v1=" + "é" * 64]
)
def test_a_malformed_signature_is_no_signature(header: str) -> None:
    assert not verify(b"k", header, b"", now=1)


def test_the_signature_is_the_documented_one() -> None:
    # HMAC-SHA256 of "1767225600.{}" under "whsec", computed with OpenSSL.
    assert (
        sign(b"whsec", b"{}", 1_767_225_600) == "t=1767225600,v1=5ba148cb6916cb6116d779d0c88555b31ef0bec7b98ac2545ebcdbe03d55d9e2"
    )
