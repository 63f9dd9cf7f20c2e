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
    count_primes,
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
#: Below this number there are more primes than the demo has time to count.
MANY: Final = 50_000_000

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
    #: Options of its message.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Whether it is sent once more, by somebody who does not know that it was; its idempotency key is among its options.
    twice: bool = False
    #: What is done to the job, once, when it is as the first function says.
    act: tuple[Callable[[Job], bool], Callable[[Job], object]] | None = None
    check: Callable[[Job, Ended], list[Path]] = field(default=lambda job, ended: [])


def steps(run: str, receiver: Receiver) -> list[Step]:
    """Every step, in the order of sending. Writes what the jobs read into the storage.

    Parameters:
        run: six hexadecimal digits, different in every run.
    """
    return [*_messages(run, receiver), *_tables(run), *_failures(), *_steered(run), *_periodic(), *_reports()]


def picture_key(run: str) -> str:
    """Where the photo is, in the storage."""
    return f"demo/{run}.jpg"


def _messages(run: str, receiver: Receiver) -> list[Step]:
    """What leaves the house: e-mails, a picture, a webhook."""
    picture, event = picture_key(run), {"order": run, "total": "49.90"}
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
            check=email,
        ),
        Step(
            name="e-mail in 2 s",
            message=lambda: send_email.message("grace@example.org", f"Reminder {run}", _NOTE),
            delay=DELAY,
            check=email_not_too_early,
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


def _steered(run: str) -> list[Step]:
    """What somebody interferes with: a send that is repeated, a job that is stopped, a dead letter that is sent again."""
    return [
        Step(
            name="sent twice",
            message=lambda: send_email.message("grace@example.org", f"Receipt {run}", _NOTE),
            options={"idempotency_key": f"receipt-{run}"},
            twice=True,
            check=email,
        ),
        Step(
            name="cancelled",
            message=lambda: count_primes.message(MANY),
            act=(lambda job: job.progress is not None, lambda job: switchyard.cancel(job.id)),
            ends=State.CANCELLED,
            check=_stopped,
        ),
        Step(
            name="replayed",
            message=lambda: flaky.message(failures=1),
            options={"max_retries": 0},
            act=(lambda job: job.state is State.DEAD, lambda job: switchyard.replay(job.id, kwargs={"failures": 0})),
            check=_second_generation,
        ),
    ]


def _periodic() -> list[Step]:
    """What usually comes by the clock."""
    return [
        Step(name="daily digest", message=lambda: daily_digest.message("team@example.org")),
        Step(name="  its e-mail", child=("daily digest", "email_job"), check=email),
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


def email(job: Job, ended: Ended) -> list[Path]:
    """The file of an e-mail that says what its job was told to say. Raises: Wrong."""
    path = _file(job.result["file"])
    message = BytesParser(policy=policy.default).parsebytes(path.read_bytes())
    expected = job.args[2] if len(job.args) > 2 else job.kwargs["text"]
    body = message.get_body(("plain",))
    _expect(message["Subject"], job.args[1] if len(job.args) > 1 else job.kwargs["subject"], "the e-mail's subject")
    _expect(body.get_content().split() if body else [], expected.split(), "the e-mail's text")
    wanted = [attachment["filename"] for attachment in (job.args[4] if len(job.args) > 4 else [])]
    _expect([part.get_filename() for part in message.iter_attachments()], wanted, "the e-mail's attachments")
    return [path]


def email_not_too_early(job: Job, ended: Ended) -> list[Path]:
    assert job.finished_at is not None
    if job.finished_at - job.created_at < DELAY:
        raise Wrong(f"it was sent {job.finished_at - job.created_at} after it was ordered, and should have waited {DELAY}")
    return email(job, ended)


def _resized(job: Job, ended: Ended) -> list[Path]:
    path = stored_file(job)
    with Image.open(path) as picture:
        picture.load()
        _expect(picture.format, "WEBP", "the picture's format")
        # The source is 3:2, so its width is what meets the box.
        _expect(picture.size, (BOX[0], BOX[0] * 2 // 3), "the picture's size")
    return [path]


def stored_file(job: Job) -> Path:
    """The file that a job put into the storage. Raises: Wrong."""
    return _file(f"storage/{job.result['key']}", job.result["bytes"])


def _exported(job: Job, rows: int) -> list[Path]:
    path = stored_file(job)
    with zipfile.ZipFile(path) as workbook:
        found = len(re.findall(rb"<row ", workbook.read("xl/worksheets/sheet1.xml")))
    _expect(found, rows + 1, "the rows of the worksheet with its header")
    return [path]


def _pdf(job: Job, ended: Ended) -> list[Path]:
    path = stored_file(job)
    data = path.read_bytes()
    if not data.startswith(b"%PDF-") or b"%%EOF" not in data[-64:]:
        raise Wrong(f"{path} is no PDF")
    return [path]


def _third_time(job: Job, ended: Ended) -> list[Path]:
    _expect([attempt.outcome for attempt in switchyard.attempts(job.id)], ["failed", "failed", "completed"], "its attempts")
    return []


def _stopped(job: Job, ended: Ended) -> list[Path]:
    _expect([attempt.outcome for attempt in switchyard.attempts(job.id)], ["cancelled"], "its attempts")
    return []


def _second_generation(job: Job, ended: Ended) -> list[Path]:
    history = [(attempt.generation, attempt.outcome) for attempt in switchyard.attempts(job.id)]
    _expect(history, [(1, "failed"), (2, "completed")], "its generations and attempts")
    return []


def _dead(job: Job, ended: Ended) -> list[Path]:
    _expect(job.error, "the card was declined", "its error")
    _expect([attempt.outcome for attempt in switchyard.attempts(job.id)], ["failed", "failed"], "its attempts")
    return []
