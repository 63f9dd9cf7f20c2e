"""The job type ``send_email``: one message with text, HTML and attachments, by SMTP or into the outbox folder.

At-least-once reaches the mailbox too: a worker that dies between the server's "250 OK" and the job's completion sends the
message again. Its Message-ID is made from the job's id, so it is the same one, and mail servers that drop duplicates can.
Whatever is wrong with the message itself, or refused by the server with a 5xx, is permanent; a 4xx or a broken connection is
tried again. Headers hold what the parameters say and nothing that was smuggled into them.
"""

from __future__ import annotations

import base64
import binascii
import re
import smtplib
import ssl
from collections.abc import Iterable
from contextlib import suppress
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, localtime
from typing import Any, Final, NotRequired
from urllib.parse import unquote, urlsplit

import dramatiq
from pydantic import ConfigDict, with_config

# pydantic reads TypedDicts of the standard library from Python 3.12 on only.
from typing_extensions import TypedDict

import switchyard
from actors import addresses
from actors.storage import outbox, storage
from switchyard import Permanent, current_job

#: How many mailboxes one job may address, in to, cc and bcc together: a typing error must not become a mass mailing.
MAX_RECIPIENTS: Final = 100
#: The attachments of one message together, in bytes before base64; most servers refuse messages above 25 MB.
MAX_ATTACHMENT_BYTES: Final = 15_000_000
#: Seconds for each reply of the SMTP server.
SMTP_TIMEOUT: Final = 15.0

_CONTENT_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,80}")


@with_config(ConfigDict(strict=True, extra="forbid"))
class Attachment(TypedDict):
    """A file to attach: its content as base64, or the storage key where it lies. Exactly one of the two."""

    filename: str
    content_base64: NotRequired[str]
    key: NotRequired[str]
    content_type: NotRequired[str]


@dramatiq.actor(
    queue_name="emails",
    max_retries=2,
    min_backoff=1_000,
    max_backoff=60_000,
    time_limit=120_000,
    # What providers take from one sender; `switchyard limits set send_email` for others.
    rate_limit="100/minute",
    concurrency=10,
)
def send_email(
    to: str | list[str],
    subject: str,
    text: str,
    html: str | None = None,
    attachments: list[Attachment] | None = None,
    cc: list[str] | None = None,
    bcc: list[str] | None = None,
    reply_to: str | None = None,
) -> dict[str, Any]:
    """Send one e-mail: 3 attempts, exponential from 1 s.

    Parameters:
        to, cc, bcc: ``ada@example.org`` or ``Ada <ada@example.org>``; at most 100 together.
        subject: one line.
        text: the plain text, always sent.
        html: the same as HTML, for readers that show it. Escape what you put into it.
        attachments: up to 15 MB together; larger contents than the payload's limit go by storage key.
        reply_to: where answers go, instead of ``MAIL_FROM``.

    Returns:
        ``message_id``, ``accepted`` (how many mailboxes) and ``refused`` (mailbox to the server's reply; a message that some
        mailboxes accepted is not sent again), ``delivery`` (``smtp`` or ``outbox``) and, in the outbox, ``file``.

    Raises:
        Permanent: an address, header, attachment or setting cannot work, or the server refused with a 5xx.
    """
    job = current_job()
    recipients = [addresses.parse("to", one) for one in ([to] if isinstance(to, str) else to)]
    copies = [addresses.parse("cc", one) for one in cc or []]
    hidden = [addresses.parse("bcc", one) for one in bcc or []]
    envelope = list(dict.fromkeys(address.addr_spec for address in (*recipients, *copies, *hidden)))
    if not recipients or len(envelope) > MAX_RECIPIENTS:
        raise Permanent(f"to: a message needs one recipient at least, and {MAX_RECIPIENTS} at most")

    message = EmailMessage(policy=policy.SMTP)
    sender = _head(message, job.id, subject, recipients, copies, reply_to)
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    _attach(message, attachments or [])

    result: dict[str, Any] = {"message_id": message["Message-ID"], "accepted": len(envelope), "refused": {}}
    if switchyard.settings().smtp_url is None:
        outbox().put(f"{job.id}.eml", bytes(message))
        return {**result, "delivery": "outbox", "file": f"outbox/{job.id}.eml"}
    refused = _deliver(message, sender, envelope)
    for mailbox, reply in refused.items():
        job.log(f"{mailbox} refused: {reply}")
    return {**result, "delivery": "smtp", "accepted": len(envelope) - len(refused), "refused": refused}


def _head(
    message: EmailMessage, job_id: str, subject: str, to: list[Address], cc: list[Address], reply_to: str | None
) -> Address:
    """Write the headers; the sender is the deployment's, never the payload's."""
    sender = addresses.parse("MAIL_FROM", switchyard.settings().mail_from)
    message["From"] = sender
    message["To"] = to
    if cc:
        message["Cc"] = cc
    if reply_to is not None:
        message["Reply-To"] = addresses.parse("reply_to", reply_to)
    message["Subject"] = addresses.one_line("subject", subject)
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = f"<{job_id}@{sender.domain}>"
    # Keeps holiday replies away (RFC 3834).
    message["Auto-Submitted"] = "auto-generated"
    return sender


def _attach(message: EmailMessage, attachments: Iterable[Attachment]) -> None:
    left = MAX_ATTACHMENT_BYTES
    for attachment in attachments:
        name = addresses.one_line("filename", attachment["filename"], limit=200)
        kind = attachment.get("content_type", "application/octet-stream").lower()
        if not _CONTENT_TYPE.fullmatch(kind) or kind.startswith(("multipart/", "message/")):
            raise Permanent(f"content_type: {kind[:80]!r} of {name!r} is no type of a single file")
        content = _content(attachment, name, left)
        left -= len(content)
        maintype, _, subtype = kind.partition("/")
        message.add_attachment(content, maintype=maintype, subtype=subtype, filename=name)


def _content(attachment: Attachment, name: str, limit: int) -> bytes:
    if ("content_base64" in attachment) == ("key" in attachment):
        raise Permanent(f"attachment {name!r} needs either content_base64 or key")
    if "key" in attachment:
        return storage().get(attachment["key"], limit=limit)
    try:
        content = base64.b64decode(attachment["content_base64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Permanent(f"content_base64: that of {name!r} is no base64") from error
    if len(content) > limit:
        raise Permanent(f"attachments: they are larger than {MAX_ATTACHMENT_BYTES:,} bytes together")
    return content


def _deliver(message: EmailMessage, sender: Address, envelope: list[str]) -> dict[str, str]:
    """Hand the message to the SMTP server. Returns the mailboxes that it refused while it took others."""
    try:
        server = _connected()
        try:
            refused = server.send_message(message, sender.addr_spec, envelope)
        finally:
            # The server has said what it thinks of the message; that it hangs up impolitely must not send it twice.
            with suppress(OSError, smtplib.SMTPException):
                server.quit()
            server.close()
    except smtplib.SMTPRecipientsRefused as error:
        replies = {mailbox: _reply(*reply) for mailbox, reply in error.recipients.items()}
        if all(code >= 500 for code, _ in error.recipients.values()):
            raise Permanent(f"the server refused every recipient: {replies}") from error
        raise
    except smtplib.SMTPResponseException as error:
        if error.smtp_code >= 500:
            raise Permanent(f"the server refused: {_reply(error.smtp_code, error.smtp_error)}") from error
        raise
    except smtplib.SMTPNotSupportedError as error:
        raise Permanent(f"the server cannot take this message: {error}") from error
    return {mailbox: _reply(*reply) for mailbox, reply in refused.items()}


def _connected() -> smtplib.SMTP:
    """Connect as SMTP_URL says: ``smtps://`` is TLS at once; ``smtp://`` uses STARTTLS if offered, needs it for a password."""
    url = switchyard.settings().smtp_url
    assert url is not None  # the caller asked before
    parts = urlsplit(url.get_secret_value())
    host, context = parts.hostname or "localhost", ssl.create_default_context()
    server: smtplib.SMTP
    if parts.scheme == "smtps":
        server = smtplib.SMTP_SSL(host, parts.port or 465, timeout=SMTP_TIMEOUT, context=context)
    else:
        server = smtplib.SMTP(host, parts.port or 587, timeout=SMTP_TIMEOUT)
    try:
        server.ehlo_or_helo_if_needed()
        encrypted = parts.scheme == "smtps"
        if not encrypted and server.has_extn("starttls"):
            server.starttls(context=context)
            server.ehlo()
            encrypted = True
        if parts.username:
            if not encrypted:
                raise Permanent("SMTP_URL: holds a password, but the server offers no encryption to send it through")
            server.login(unquote(parts.username), unquote(parts.password or ""))
    except BaseException:
        server.close()
        raise
    return server


def _reply(code: int, text: bytes | str) -> str:
    """A server's reply in one short printable line."""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} " + "".join(c if c.isprintable() else " " for c in words)[:200]
