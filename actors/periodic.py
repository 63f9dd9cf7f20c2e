"""The job types that come by the clock: digest, report, clean-up, statistics. Each also runs when it is sent by hand.

All are safe to run twice: what they send has an id made from their own, what they write has the hour as its key, and what they
remove is gone after the first time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import dramatiq
from dramatiq import Message

import switchyard
from actors.emails import send_email
from actors.figures import Figures, collect, yesterday
from actors.reports import generate_report
from actors.storage import outbox, storage
from switchyard import JobExists, Permanent, cron, current_job

#: How long exports, reports and e-mails in the outbox are kept unless the job says otherwise, in days.
DEFAULT_KEEP_DAYS: Final = 30
#: How long the hourly statistics are kept, in days.
STATISTICS_KEEP_DAYS: Final = 400

_WEEK_HOURS: Final = 168

_COUNT: Final = """
INSERT INTO switchyard_jobs.statistics (hour, queue, state, jobs)
SELECT date_trunc('hour', %(now)s, 'UTC'), queue, state, count(*) FROM switchyard.job GROUP BY queue, state
ON CONFLICT (hour, queue, state) DO NOTHING
"""
_FORGET: Final = "DELETE FROM switchyard_jobs.statistics WHERE hour < %(before)s"


@dramatiq.actor(
    queue_name="maintenance", max_retries=3, min_backoff=30_000, max_backoff=600_000, time_limit=120_000,
    periodic=cron("0 8 * * *", catch_up="last", window=timedelta(hours=12)),
)  # fmt: skip
def daily_digest(to: str | list[str] | None = None) -> dict[str, Any]:
    """Send an e-mail with yesterday's numbers. Comes at 08:00 UTC every day, or as soon as a worker is there, until 20:00.

    Parameters:
        to: who gets it; by default the address that all e-mails come from, ``MAIL_FROM``.

    Returns:
        ``email_job`` (the id of the ``send_email`` job), ``completed``, ``failures``, ``dead``.
    """
    figures = collect(*yesterday())
    subject = f"Background jobs on {figures.since:%Y-%m-%d}: {figures.completed:,} completed, {figures.dead:,} dead"
    recipient = to if to is not None else switchyard.settings().mail_from
    child = _send_once(send_email.message(recipient, subject, _digest(figures)))
    return {"email_job": child, "completed": figures.completed, "failures": figures.failures, "dead": figures.dead}


@dramatiq.actor(
    queue_name="maintenance", max_retries=3, min_backoff=30_000, max_backoff=600_000, time_limit=30_000,
    periodic=cron("0 6 * * mon", catch_up="last", window=timedelta(days=2)),
)  # fmt: skip
def weekly_report() -> dict[str, Any]:
    """Have a PDF made about the last seven days. Comes on Monday at 06:00 UTC, or as soon as a worker is there, for two days.

    Returns:
        ``report_job``: the id of the ``generate_report`` job, whose result holds the file's key.
    """
    return {"report_job": _send_once(generate_report.message(period_hours=_WEEK_HOURS))}


@dramatiq.actor(
    queue_name="maintenance", max_retries=3, min_backoff=30_000, max_backoff=600_000, time_limit=600_000,
    periodic=cron("30 3 * * *", catch_up="last"),
)  # fmt: skip
def nightly_cleanup(keep_days: int = DEFAULT_KEEP_DAYS) -> dict[str, int]:
    """Remove old exports, reports and outbox e-mails, and half-written files. Comes every night at 03:30 UTC, or as soon as possible.

    Images and what others put into the storage are not touched, nor is anything but plain files.

    Parameters:
        keep_days: how old a file must be, 1 or more.

    Returns:
        ``files`` and ``bytes`` that were removed.
    """
    if keep_days < 1:
        raise Permanent(f"keep_days: must be 1 or more, not {keep_days}")
    age = timedelta(days=keep_days)
    removed = [storage().remove_older("exports", age), storage().remove_older("reports", age), outbox().remove_older("", age)]
    return {"files": sum(files for files, _ in removed), "bytes": sum(size for _, size in removed)}


@dramatiq.actor(
    queue_name="maintenance", max_retries=3, min_backoff=30_000, max_backoff=600_000, time_limit=120_000,
    periodic=cron("0 * * * *"),
)  # fmt: skip
def hourly_statistics() -> dict[str, Any]:
    """Note how many jobs each queue has in each state. Comes every hour.

    The numbers are kept for 400 days in ``switchyard_jobs.statistics``, one row an hour, queue and state. An hour that was
    noted already keeps its first numbers.

    Returns:
        ``hour`` (ISO 8601, UTC) and ``rows`` written.
    """
    now = datetime.now(UTC)
    with switchyard.database().connection() as connection:
        rows = connection.execute(_COUNT, {"now": now}).rowcount
        connection.execute(_FORGET, {"before": now - timedelta(days=STATISTICS_KEEP_DAYS)})
    return {"hour": now.replace(minute=0, second=0, microsecond=0).isoformat(), "rows": rows}


def _send_once(message: Message[Any]) -> str:
    """Send a message under an id made from the running job's, so that a second attempt does not send a second one."""
    child_id = str(uuid5(UUID(current_job().id), message.actor_name))
    try:
        dramatiq.get_broker().enqueue(message.copy(message_id=child_id))
    except JobExists:
        current_job().log(f"{message.actor_name} {child_id} was sent by an earlier attempt")
    return child_id


def _digest(figures: Figures) -> str:
    """The digest's text: totals, then one line an actor."""
    lines = [
        f"Background jobs from {figures.since:%Y-%m-%d %H:%M} to {figures.until:%Y-%m-%d %H:%M} UTC",
        "",
        f"created          {figures.created:>12,}",
        f"completed        {figures.completed:>12,}",
        f"failed attempts  {figures.failures:>12,}",
        f"dead             {figures.dead:>12,}",
        "",
    ]
    if figures.actors:
        lines.append(f"{'actor':<32} {'completed':>10} {'failed':>8} {'dead':>6} {'rate':>7}")
    lines += [
        f"{a.actor[:32]:<32} {a.completed:>10,} {a.failures:>8,} {a.dead:>6,} {a.failure_rate:>7.1%}" for a in figures.actors
    ]
    return "\n".join(lines) + "\n"
