"""The job type ``generate_report``: a PDF about the jobs of the last hours, from the ledger's own statistics."""

from __future__ import annotations

from typing import Any, Final

import dramatiq

from actors.figures import collect, last_hours
from actors.storage import storage
from switchyard import Permanent, current_job

#: The longest period of one report: 90 days, as long as dead letters are kept.
MAX_PERIOD_HOURS: Final = 2_160


@dramatiq.actor(queue_name="reports", max_retries=1, min_backoff=30_000, max_backoff=30_000, time_limit=120_000, concurrency=2)
def generate_report(period_hours: int = 24) -> dict[str, Any]:
    """Write a PDF with tables and a chart: 2 attempts, 30 s apart.

    It shows what was created, completed, failed and died, by queue, state and actor, the throughput by the hour (beyond two
    days, by the day), failure rates, and the slowest jobs. Progress goes 20 % query, 50 % format, 80 % render, 100 % upload.

    Parameters:
        period_hours: how far back from now, 1 to 2,160.

    Returns:
        ``key`` (``reports/<job id>.pdf``), ``bytes``, and the period's ``created``, ``completed``, ``failures``, ``dead``.

    Raises:
        Permanent: the period is out of range.
    """
    # Not at the top: ReportLab is part of the extra "jobs", and the other actors have to work without it.
    from actors.report_pdf import lay_out, render

    if not 1 <= period_hours <= MAX_PERIOD_HOURS:
        raise Permanent(f"period_hours: must be 1 to {MAX_PERIOD_HOURS}, not {period_hours}")
    job = current_job()
    figures = collect(*last_hours(period_hours))
    job.progress(20, "query")
    pages = lay_out(figures)
    job.progress(50, "format")
    pdf = render(pages)
    job.progress(80, "render")
    key = f"reports/{job.id}.pdf"
    storage().put(key, pdf)
    job.progress(100, "upload")
    counts = {"created": figures.created, "completed": figures.completed, "failures": figures.failures, "dead": figures.dead}
    return {"key": key, "bytes": len(pdf), **counts}
