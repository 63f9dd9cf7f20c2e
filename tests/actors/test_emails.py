"""send_email against a real SMTP server, and into the outbox."""

from __future__ import annotations

import base64
import email
import smtplib
import socket
import ssl
import threading
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme

import switchyard
from actors import send_email
from actors.storage import storage
from settings import Settings
from switchyard import Permanent
from tests.actors.conftest import Deploy
from tests.actors.servers import RawServer, SmtpServer

JOB = "0190d5a4-7b1e-7c3a-9f00-000000000001"


def send(*args: Any, **kwargs: Any) -> dict[str, Any]:
    with switchyard.job_context(id=JOB, attempt=1):
        result: dict[str, Any] = send_email(*args, **kwargs)
    return result


def parsed(content: bytes | str | None) -> EmailMessage:
    assert isinstance(content, bytes)
    message = email.message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def in_outbox(settings: Settings) -> EmailMessage:
    return parsed((settings.data_dir / "outbox" / f"{JOB}.eml").read_bytes())


def test_a_message_with_everything_arrives_at_the_server(deploy: Deploy) -> None:
    png = b"\x89PNG" + bytes(range(256))
    with SmtpServer() as server:
        deploy(smtp_url=f"smtp://127.0.0.1:{server.port}", mail_from="Jobs <jobs@example.org>")
        storage().put("reports/a.pdf", b"%PDF")
        result = send(
            ["Ada Lovelace <ada@example.org>", "bob@example.org"],
            "Grüße",
            "plain\n",
            html="<p>rich</p>",
            attachments=[
                {"filename": "Bild ü.png", "content_base64": base64.b64encode(png).decode(), "content_type": "image/png"},
                {"filename": "a.pdf", "key": "reports/a.pdf"},
            ],
            cc=["carl@example.org"],
            bcc=["dora@example.org", "ada@example.org"],
            reply_to="Help <help@example.org>",
        )

    (envelope,) = server.mailbox.envelopes
    message = parsed(envelope.content)
    assert envelope.mail_from == "jobs@example.org"
    assert envelope.rcpt_tos == ["ada@example.org", "bob@example.org", "carl@example.org", "dora@example.org"]
    assert (message["To"], message["Cc"]) == ("Ada Lovelace <ada@example.org>, bob@example.org", "carl@example.org")
    assert (message["From"], message["Reply-To"]) == ("Jobs <jobs@example.org>", "Help <help@example.org>")
    assert (message["Subject"], message["Bcc"]) == ("Grüße", None)
    assert message["Message-ID"] == f"<{JOB}@example.org>" == result["message_id"]
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert (plain.get_content(), html.get_content()) == ("plain\r\n", "<p>rich</p>\r\n")
    files = {part.get_filename(): (part.get_content_type(), part.get_content()) for part in message.iter_attachments()}
    assert files == {"Bild ü.png": ("image/png", png), "a.pdf": ("application/octet-stream", b"%PDF")}
    assert (result["delivery"], result["accepted"], result["refused"]) == ("smtp", 4, {})


def test_without_a_server_the_message_becomes_a_file_in_the_outbox(deploy: Deploy) -> None:
    settings = deploy()

    first = send("ada@example.org", "Hello", "text")
    second = send("ada@example.org", "Hello", "text")

    assert first["message_id"] == second["message_id"] == in_outbox(settings)["Message-ID"]
    assert first["file"] == f"outbox/{JOB}.eml"
    assert [path.name for path in (settings.data_dir / "outbox").iterdir()] == [f"{JOB}.eml"]


LINE_BREAKS = ["\r\n", "\n", "\r", "\x00", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("end", LINE_BREAKS)
def test_a_line_break_in_a_header_is_refused(end: str, deploy: Deploy, tmp_path: Path) -> None:
    deploy()
    smuggled = f"x{end}Bcc: eve@example.org"

    for kwargs in (
        {"subject": smuggled},
        {"to": f"ada@example.org{end}Bcc: eve@example.org"},
        {"to": f"Ada{end}Bcc: eve@example.org <ada@example.org>"},
        {"cc": [f"ada@example.org{end}"]},
        {"reply_to": f"a{end}b@example.org"},
        {"attachments": [{"filename": smuggled, "content_base64": ""}]},
        {"attachments": [{"filename": "a", "content_base64": "", "content_type": f"text/plain{end}X: y"}]},
    ):
        with pytest.raises(Permanent):
            send(**{"to": "ada@example.org", "subject": "s", "text": "t", **kwargs})

    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "address",
    [
        *("", "ada", "@example.org", "ada@", "a@b@example.org", "ada@example.org, eve@example.org", "a b@example.org"),
        *("ada@exa mple.org", "group: ada@example.org;", "ada@-example.org", "ada@example..org", ".ada@example.org"),
        *(
            "<ada@example.org",
            "ada@example.org>",
            "ada@[127.0.0.1]",
            "ädä@example.org",
            "ada@example.org (comment",
            "a" * 250 + "@b.org",
        ),
        *("ada@example.org;eve@example.org", "ada@example.org SIZE=1", '"a\\"b"@example.org', "ada@" + "x" * 64 + ".org"),
    ],
)
def test_what_is_not_one_address_is_refused(address: str, deploy: Deploy) -> None:
    deploy()

    with pytest.raises(Permanent, match="to"):
        send(address, "s", "t")


def test_an_international_domain_is_written_in_ascii(deploy: Deploy) -> None:
    settings = deploy()

    send("ada@bücher.example", "s", "t")

    assert in_outbox(settings)["To"] == "ada@xn--bcher-kva.example"


def test_too_many_recipients_are_refused(deploy: Deploy) -> None:
    deploy()

    with pytest.raises(Permanent, match="100"):
        send([f"a{n}@example.org" for n in range(101)], "s", "t")
    with pytest.raises(Permanent, match="one recipient"):
        send([], "s", "t")


def test_attachments_are_bounded_and_must_be_readable(deploy: Deploy) -> None:
    deploy()
    storage().put("big.bin", bytes(15_000_001))

    for attachment in (
        {"filename": "a", "key": "big.bin"},
        {"filename": "a", "key": "../../etc/passwd"},
        {"filename": "a", "content_base64": "no base64!"},
        {"filename": "a"},
        {"filename": "a", "content_base64": "", "key": "big.bin"},
        {"filename": "a", "content_base64": "", "content_type": "multipart/mixed"},
    ):
        with pytest.raises(Permanent):
            send("ada@example.org", "s", "t", attachments=[attachment])


def test_a_refusal_of_the_message_is_permanent_when_it_is_a_5xx_only(deploy: Deploy) -> None:
    with SmtpServer() as server:
        deploy(smtp_url=f"smtp://127.0.0.1:{server.port}")
        server.mailbox.replies["DATA"] = "554 spam"
        with pytest.raises(Permanent, match="554 spam"):
            send("ada@example.org", "s", "t")
        server.mailbox.replies["DATA"] = "451 later"
        with pytest.raises(smtplib.SMTPDataError):
            send("ada@example.org", "s", "t")


def test_refused_recipients_are_permanent_retried_or_reported(deploy: Deploy) -> None:
    with SmtpServer() as server:
        deploy(smtp_url=f"smtp://127.0.0.1:{server.port}")
        server.mailbox.replies = {"gone@example.org": "550 unknown", "full@example.org": "452 full"}
        with pytest.raises(Permanent, match="550 unknown"):
            send("gone@example.org", "s", "t")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(["gone@example.org", "full@example.org"], "s", "t")
        result = send(["ada@example.org", "gone@example.org"], "s", "t")

    assert (result["accepted"], result["refused"]) == (1, {"gone@example.org": "550 unknown"})
    assert len(server.mailbox.envelopes) == 1


def test_a_server_that_is_down_is_worth_another_attempt(deploy: Deploy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    deploy(smtp_url=f"smtp://127.0.0.1:{port}")

    with pytest.raises(ConnectionRefusedError):
        send("ada@example.org", "s", "t")


def test_a_server_that_hangs_up_after_taking_the_message_has_taken_it(deploy: Deploy) -> None:
    def rude(connection: socket.socket, stop: threading.Event) -> None:
        reader = connection.makefile("rb")
        connection.sendall(b"220 rude\r\n")
        while reader.readline().lower() != b"data\r\n":
            connection.sendall(b"250 ok\r\n")
        connection.sendall(b"354 go\r\n")
        while reader.readline() != b".\r\n":
            pass
        connection.sendall(b"250 taken\r\n")
        connection.shutdown(socket.SHUT_RDWR)

    with RawServer(rude) as server:
        deploy(smtp_url=f"smtp://127.0.0.1:{server.port}")
        assert send("ada@example.org", "s", "text")["accepted"] == 1


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_starttls_is_taken_when_offered_and_the_password_goes_through_it(deploy: Deploy, authority: trustme.CA) -> None:
    with SmtpServer(starttls=server_context(authority), password="p@ss") as server:
        deploy(smtp_url=f"smtp://jobs:p%40ss@127.0.0.1:{server.port}")
        send("ada@example.org", "s", "t")

        assert server.mailbox.encrypted == [True]
        deploy(smtp_url=f"smtp://jobs:wrong@127.0.0.1:{server.port}")
        with pytest.raises(Permanent, match="535"):
            send("ada@example.org", "s", "t")


def test_a_certificate_of_a_stranger_stops_starttls(deploy: Deploy, authority: trustme.CA) -> None:
    with SmtpServer(starttls=server_context(trustme.CA())) as server:
        deploy(smtp_url=f"smtp://127.0.0.1:{server.port}")
        with pytest.raises(ssl.SSLCertVerificationError):
            send("ada@example.org", "s", "t")

    assert server.mailbox.envelopes == []


# The server says so itself: what it is asked to do here is what must not be done.
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_a_password_is_never_sent_in_the_clear(deploy: Deploy) -> None:
    with SmtpServer(password="secret") as server:
        deploy(smtp_url=f"smtp://jobs:secret@127.0.0.1:{server.port}")
        with pytest.raises(Permanent, match="no encryption") as caught:
            send("ada@example.org", "s", "t")

    assert "secret" not in str(caught.value)
    assert server.mailbox.envelopes == []
