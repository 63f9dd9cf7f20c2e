"""Which jobs the demo sends, how each has to end, and how that is checked: in the files and answers, not in the job's own words.

Imported after ``switchyard.configure``, since importing the actors makes them belong to the broker that is set by then.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email import policy
from email.parser import BytesParser
from pathlib import Path
from typing import Any, Final

from dramatiq import Message
from PIL import Image

import switchyard
from actors import (
    daily_digest,
    deliver_webhook,
    doomed,
    export_data,
    flaky,
    generate_report,
    hourly_statistics,
    import_csv,
    nightly_cleanup,
    process_image,
    send_email,
    weekly_report,
)
from actors.emails import Attachment
from actors.storage import storage
from cli.demo.material import DOMAIN, contacts, photo
from cli.demo.receiver import Receiver
from switchyard import Job, State

#: How long the delayed e-mail waits.
DELAY: Final = timedelta(seconds=2)
#: How many small jobs are sent at once.
BULK: Final = 500
#: The box that the photo is made to fit, in pixels.
BOX: Final = (600, 480)

#: The step that stands for all small jobs together.
BULK_NAME: Final = f"{BULK} small jobs"

_NOTE: Final = "Jobs travel through the broker; what became of them stands in Postgres."

#: Jobs that have ended, by the name of their step.
Ended = Mapping[str, Job]


class Wrong(Exception):
    """Something that should be there is not; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One job of the demo.

    ``message`` makes it, once the steps of ``after`` have ended; or ``child`` names another step and the field of its result that
    holds the id of a job which that one sent. ``check`` raises ``Wrong``, or returns the files that the job made.
    """

    name: str
    message: Callable[[], Message[Any]] | None = None
    after: tuple[str, ...] = ()
    child: tuple[str, str] | None = None
    delay: timedelta | None = None
    ends: State = State.COMPLETED
    check: Callable[[Job, Ended], list[Path]] = field(default=lambda job, ended: [])


def steps(run: str, receiver: Receiver) -> list[Step]:
    """Every step, in the order of sending. Writes what the jobs read into the storage.

    Parameters:
        run: six hexadecimal digits, different in every run.
    """
    return [*_messages(run, receiver), *_tables(run), *_failures(), *_periodic(), *_reports()]


def _messages(run: str, receiver: Receiver) -> list[Step]:
    """What leaves the house: e-mails, a picture, a webhook."""
    picture, event = f"demo/{run}.jpg", {"order": run, "total": "49.90"}
    storage().put(picture, photo(int(run, 16)))
    attached: list[Attachment] = [{"filename": "dusk.jpg", "key": picture, "content_type": "image/jpeg"}]

    def delivered(job: Job, ended: Ended) -> list[Path]:
        _expect(receiver.refused, 0, "deliveries with a wrong signature")
        arrived = [(one.id, one.event, one.data) for one in receiver.deliveries]
        if (job.id, "order.paid", event) not in arrived:
            raise Wrong(f"the receiver did not get the event; it got {arrived}")
        return []

    return [
        Step(
            name="e-mail",
            message=lambda: send_email.message("ada@example.org", f"Welcome {run}", _NOTE, f"<p>{_NOTE}</p>", attached),
            check=_email,
        ),
        Step(
            name="e-mail in 2 s",
            message=lambda: send_email.message("grace@example.org", f"Reminder {run}", _NOTE),
            delay=DELAY,
            check=_email_not_too_early,
        ),
        Step(name="photo", message=lambda: process_image.message(picture, *BOX, format="webp"), check=_resized),
        Step(
            name="webhook",
            message=lambda: deliver_webhook.message(f"http://{receiver.address}/hooks", "order.paid", event),
            check=delivered,
        ),
    ]


def _tables(run: str) -> list[Step]:
    """Rows into Postgres, twice from the same file, and out of it again."""
    file, key = contacts(run), f"demo/{run}.csv"
    storage().put(key, file.csv)

    def imported(job: Job, ended: Ended) -> list[Path]:
        found = {name: job.result[name] for name in ("records", "invalid")}
        _expect(found, {"records": file.records, "invalid": file.wrong}, "what the import counted")
        return []

    def imported_again(job: Job, ended: Ended) -> list[Path]:
        counts = [{name: one.result[name] for name in ("sha256", "inserted", "updated")} for one in (job, ended["import"])]
        _expect(counts[0], counts[1], "the rows of the second click")
        return []

    return [
        Step(name="import", message=lambda: import_csv.message(key), check=imported),
        Step(name="same file again", message=lambda: import_csv.message(key), check=imported_again),
        Step(
            name="export",
            message=lambda: export_data.message("contacts", {"domain": DOMAIN}, format="xlsx"),
            after=("import", "same file again"),
            check=lambda job, ended: _exported(job, file.records - file.wrong),
        ),
    ]


def _failures() -> list[Step]:
    return [
        Step(name="fails twice", message=lambda: flaky.message(failures=2), check=_third_time),
        Step(name="dies", message=lambda: doomed.message("the card was declined"), ends=State.DEAD, check=_dead),
    ]


def _periodic() -> list[Step]:
    """What usually comes by the clock."""
    return [
        Step(name="daily digest", message=lambda: daily_digest.message("team@example.org")),
        Step(name="  its e-mail", child=("daily digest", "email_job"), check=_email),
        Step(name="statistics", message=hourly_statistics.message),
        # Its default, 30 days, would remove what somebody may want to keep.
        Step(name="clean-up", message=lambda: nightly_cleanup.message(keep_days=3_650)),
    ]


def _reports() -> list[Step]:
    """After the small jobs, so that there is something to report."""
    return [
        Step(name="PDF report", message=lambda: generate_report.message(period_hours=24), after=(BULK_NAME,), check=_pdf),
        Step(name="weekly report", message=weekly_report.message, after=(BULK_NAME,)),
        Step(name="  its PDF", child=("weekly report", "report_job"), check=_pdf),
    ]


def bulk(tag: str) -> list[Message[Any]]:
    """The small jobs: they do next to nothing, so what is measured is the way of a job."""
    return [flaky.message_with_options(kwargs={"failures": 0}, tags=[tag]) for _ in range(BULK)]


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found}, not {expected}")


def _file(relative: str, size: int | None = None) -> Path:
    """A file that a job says it made, below DATA_DIR."""
    path = switchyard.settings().data_dir / relative
    if not path.is_file():
        raise Wrong(f"{path} is missing")
    if size is not None:
        _expect(path.stat().st_size, size, f"the size of {path.name}")
    return path


def _email(job: Job, ended: Ended) -> list[Path]:
    path = _file(job.result["file"])
    message = BytesParser(policy=policy.default).parsebytes(path.read_bytes())
    expected = job.args[2] if len(job.args) > 2 else job.kwargs["text"]
    body = message.get_body(("plain",))
    _expect(message["Subject"], job.args[1] if len(job.args) > 1 else job.kwargs["subject"], "the e-mail's subject")
    _expect(body.get_content().split() if body else [], expected.split(), "the e-mail's text")
    wanted = [attachment["filename"] for attachment in (job.args[4] if len(job.args) > 4 else [])]
    _expect([part.get_filename() for part in message.iter_attachments()], wanted, "the e-mail's attachments")
    return [path]


def _email_not_too_early(job: Job, ended: Ended) -> list[Path]:
    assert job.finished_at is not None
    if job.finished_at - job.created_at < DELAY:
        raise Wrong(f"it was sent {job.finished_at - job.created_at} after it was ordered, and should have waited {DELAY}")
    return _email(job, ended)


def _resized(job: Job, ended: Ended) -> list[Path]:
    path = _file(f"storage/{job.result['key']}", job.result["bytes"])
    with Image.open(path) as picture:
        picture.load()
        _expect(picture.format, "WEBP", "the picture's format")
        # The source is 3:2, so its width is what meets the box.
        _expect(picture.size, (BOX[0], BOX[0] * 2 // 3), "the picture's size")
    return [path]


def _exported(job: Job, rows: int) -> list[Path]:
    path = _file(f"storage/{job.result['key']}", job.result["bytes"])
    with zipfile.ZipFile(path) as workbook:
        found = len(re.findall(rb"<row ", workbook.read("xl/worksheets/sheet1.xml")))
    _expect(found, rows + 1, "the rows of the worksheet with its header")
    return [path]


def _pdf(job: Job, ended: Ended) -> list[Path]:
    path = _file(f"storage/{job.result['key']}", job.result["bytes"])
    data = path.read_bytes()
    if not data.startswith(b"%PDF-") or b"%%EOF" not in data[-64:]:
        raise Wrong(f"{path} is no PDF")
    return [path]


def _third_time(job: Job, ended: Ended) -> list[Path]:
    _expect([attempt.outcome for attempt in switchyard.attempts(job.id)], ["failed", "failed", "completed"], "its attempts")
    return []


def _dead(job: Job, ended: Ended) -> list[Path]:
    _expect(job.error, "the card was declined", "its error")
    _expect([attempt.outcome for attempt in switchyard.attempts(job.id)], ["failed", "failed"], "its attempts")
    return []
