"""The job type ``export_data``: a named dataset as CSV, JSON lines or XLSX, streamed from Postgres into a file.

A server-side cursor hands over a few thousand rows at a time, so the size of the dataset does not matter to the worker's
memory. The rows are those of one moment: count and rows are read in one REPEATABLE READ, READ ONLY transaction on a
connection of its own. That holds back vacuum while it lasts, which is why the time limit is what bounds an export.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import dramatiq

from actors.connections import private_connection
from actors.datasets import Selection, select
from actors.storage import storage
from actors.writers import WRITERS, Writer
from switchyard import current_job

#: Rows the server sends at a time.
CURSOR_ROWS: Final = 2_000
#: Seconds that counting the rows, or finding the first of them, may take.
STATEMENT_SECONDS: Final = 300.0
#: Rows between two reports of progress.
PROGRESS_ROWS: Final = 500


@dramatiq.actor(queue_name="exports", max_retries=2, min_backoff=2_000, max_backoff=60_000, time_limit=900_000, concurrency=1)
def export_data(
    dataset: str,
    filters: dict[str, Any] | None = None,
    columns: list[str] | None = None,
    format: Literal["csv", "jsonl", "xlsx"] = "csv",
) -> dict[str, Any]:
    """Export a dataset to a file: 3 attempts, exponential from 2 s. Progress moves with the rows.

    Parameters:
        dataset: ``jobs``, ``attempts`` or ``contacts``; docs/reference/actors.md lists their columns and filters.
        filters: filter name to value, all of which a row must fulfil; times are ISO 8601.
        columns: which, in this order; all of them by default.
        format: ``csv`` and ``xlsx`` have formulas defused; ``jsonl`` keeps values as they are.

    Returns:
        ``key`` (``exports/<job id>.<format>``), ``rows``, ``bytes``.

    Raises:
        Permanent: the dataset, a filter or a column is unknown, or the rows do not fit into a worksheet.
    """
    selection = select(dataset, filters or {}, columns)
    key = f"exports/{current_job().id}.{format}"
    with storage().create(key) as file, WRITERS[format](file, selection.columns) as writer:
        rows = _copy(selection, writer)
    return {"key": key, "rows": rows, "bytes": storage().size(key)}


def _copy(selection: Selection, writer: Writer) -> int:
    """Stream every selected row into the writer; returns how many."""
    job, rows = current_job(), 0
    with private_connection("export", statement_seconds=STATEMENT_SECONDS) as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = connection.execute(selection.count, selection.values).fetchone()
        total = found[0] if found else 0
        job.progress(0, "export")
        with connection.cursor(name="export") as cursor:
            cursor.itersize = CURSOR_ROWS
            for row in cursor.execute(selection.rows, selection.values):
                writer.row(row)
                rows += 1
                if rows % PROGRESS_ROWS == 0:
                    job.progress(100 * rows / total, "export")
    job.progress(100, "done")
    return rows
