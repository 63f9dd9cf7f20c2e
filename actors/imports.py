"""The job type ``import_csv``: contacts from a CSV file into Postgres, each line once, however often the job runs.

A file is recognised by the SHA-256 of its content. Its row in ``import_run`` holds the resume point, and moves in the same
transaction that stores a batch:

    lock the run's row ── resume point where this batch begins? ── no ──► skip to where it is: somebody else stored the batch
                                     │ yes
                       upsert 500, note errors, move the point ──► COMMIT

So a crash costs at most the batch in hand, and the next attempt goes on behind the last committed one. Three jobs with the same
file share its batches instead of importing it three times, and all return the same counts; so does a job that comes later. Row
locks of one transaction do all this, nothing outlives a lost connection, and it works through PgBouncer. Mostly there is only one job:
while an import of a storage key is active, a send with the same key is that job.

Contacts are recognised by their e-mail address in lower case. One that exists is updated: its name is replaced, its company
and phone are replaced by values and kept by empty fields. Within a file the last line wins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, Final

import dramatiq
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from actors.connections import private_connection
from actors.contact_rows import COLUMNS, Record, read
from actors.storage import storage
from switchyard import Permanent, current_job

#: Records stored in one transaction.
BATCH: Final = 500
#: Seconds that one statement may take, waiting for another import's rows included.
STATEMENT_SECONDS: Final = 60.0
#: The largest file, in bytes.
MAX_FILE_BYTES: Final = 200_000_000
#: How many wrong lines are kept per file, and how many of them a job's result shows; all are counted.
MAX_ERRORS_KEPT: Final = 1_000
MAX_ERRORS_SHOWN: Final = 20

_BEGIN: Final = """
INSERT INTO switchyard_jobs.import_run (sha256, source) VALUES (%(sha256)s, %(source)s) ON CONFLICT (sha256) DO NOTHING
"""
_RUN: Final = "SELECT * FROM switchyard_jobs.import_run WHERE sha256 = %(sha256)s"
_LOCK: Final = "SELECT records, invalid FROM switchyard_jobs.import_run WHERE sha256 = %(sha256)s FOR UPDATE"

# Sorted, so that two files with the same addresses lock them in the same order. xmax is 0 in a row that was not there before.
_UPSERT: Final = """
WITH stored AS (
    INSERT INTO switchyard_jobs.contact AS known (email, name, company, phone)
    SELECT * FROM unnest(%(email)s::text[], %(name)s::text[], %(company)s::text[], %(phone)s::text[]) AS new (email)
    ORDER BY email
    ON CONFLICT (email) DO UPDATE SET
        name = excluded.name,
        company = coalesce(excluded.company, known.company),
        phone = coalesce(excluded.phone, known.phone),
        updated_at = now()
    RETURNING xmax = 0 AS inserted
)
SELECT count(*) FILTER (WHERE inserted) AS inserted FROM stored
"""
_ERRORS: Final = """
INSERT INTO switchyard_jobs.import_error (sha256, line, reason)
SELECT %(sha256)s, * FROM unnest(%(lines)s::bigint[], %(reasons)s::text[])
"""
_ADVANCE: Final = """
UPDATE switchyard_jobs.import_run SET records = records + %(records)s, inserted = inserted + %(inserted)s,
    updated = updated + %(updated)s, invalid = invalid + %(invalid)s
WHERE sha256 = %(sha256)s
"""
_COMPLETE: Final = """
UPDATE switchyard_jobs.import_run SET status = 'completed', finished_at = clock_timestamp()
WHERE sha256 = %(sha256)s AND status = 'running'
"""
_SHOWN: Final = """
SELECT line, reason FROM switchyard_jobs.import_error WHERE sha256 = %(sha256)s ORDER BY line LIMIT %(limit)s
"""


@dramatiq.actor(
    queue_name="imports",
    max_retries=2,
    min_backoff=2_000,
    max_backoff=60_000,
    time_limit=1_800_000,
    concurrency=1,
    unique_key=("source",),
)
def import_csv(source: str) -> dict[str, Any]:
    """Import contacts from a stored CSV file: 3 attempts, each going on where the last one stopped.

    The header names ``email`` and ``name``, and may name ``company`` and ``phone``; other columns are ignored. Progress moves
    with the file. Three clicks on one file start one import: a send while it is active returns the first job's message.

    Parameters:
        source: the storage key of a file in UTF-8, up to 200 MB, separated by comma, semicolon or tab.

    Returns:
        ``sha256``, ``records`` = ``inserted`` + ``updated`` + ``invalid``, ``errors`` (the first 20 wrong lines, each with
        ``line`` and ``reason``; up to 1,000 are in ``switchyard_jobs.import_error``), ``repeated`` (whether this file had been
        imported before this attempt began; the counts are then those of the first time).

    Raises:
        Permanent: there is no such file, it is too large, or its header does not fit.
    """
    job = current_job()
    with storage().open(source) as file, private_connection("import", statement_seconds=STATEMENT_SECONDS) as connection:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise Permanent(f"source: is larger than {MAX_FILE_BYTES:,} bytes")
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        connection.execute(_BEGIN, {"sha256": sha256, "source": source})
        run = _run(connection, sha256)
        repeated = run["status"] == "completed"
        if not repeated:
            if run["records"]:
                job.log(f"goes on after {run['records']} records that are stored already")
            _import(connection, sha256, file, size, run["records"])
            connection.execute(_COMPLETE, {"sha256": sha256})
            run = _run(connection, sha256)
        job.progress(100, "done")
        with connection.cursor(row_factory=dict_row) as cursor:
            errors = cursor.execute(_SHOWN, {"sha256": sha256, "limit": MAX_ERRORS_SHOWN}).fetchall()
    counts = {name: run[name] for name in ("sha256", "records", "inserted", "updated", "invalid")}
    return {**counts, "errors": errors, "repeated": repeated}


def _import(connection: Connection[Any], sha256: str, file: BinaryIO, size: int, done: int) -> None:
    """Store the file's records from number ``done`` on, batch by batch."""
    job = current_job()
    begin = 0
    for batch in _batches(read(file)):
        end = begin + len(batch)
        # Once a batch, unless another job with this file stored part of it: then the rest of it, or nothing.
        while done < end:
            done = _store(connection, sha256, done, batch[done - begin :])
            job.progress(99 * file.tell() / size, "import")
        begin = end


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch


def _store(connection: Connection[Any], sha256: str, begin: int, batch: list[Record]) -> int:
    """Store one batch if the file's resume point is where it begins. Returns the resume point as it is then."""
    with connection.transaction():
        run = connection.execute(_LOCK, {"sha256": sha256}).fetchone()
        if run is None:
            raise RuntimeError(f"the run {sha256} was deleted while its file was imported")
        if run[0] != begin:
            return int(run[0])
        contacts = _distinct(batch)
        columns = {name: [contact[name] for contact in contacts] for name in COLUMNS}
        stored = connection.execute(_UPSERT, columns).fetchone()
        inserted = stored[0] if stored else 0
        wrong = [record for record in batch if record.reason is not None]
        kept = wrong[: max(0, MAX_ERRORS_KEPT - run[1])]
        lines, reasons = [record.line for record in kept], [record.reason for record in kept]
        connection.execute(_ERRORS, {"sha256": sha256, "lines": lines, "reasons": reasons})
        updated = len(batch) - len(wrong) - inserted
        counts = {"records": len(batch), "inserted": inserted, "updated": updated, "invalid": len(wrong)}
        connection.execute(_ADVANCE, {"sha256": sha256, **counts})
    return begin + len(batch)


def _distinct(batch: list[Record]) -> list[dict[str, str | None]]:
    """One contact an address: one INSERT may not touch a row twice. A later line replaces what it has a value for."""
    contacts: dict[str | None, dict[str, str | None]] = {}
    for record in batch:
        if record.contact is not None:
            known = contacts.setdefault(record.contact["email"], dict(record.contact))
            known.update({name: value for name, value in record.contact.items() if value is not None})
    return list(contacts.values())


def _run(connection: Connection[Any], sha256: str) -> DictRow:
    with connection.cursor(row_factory=dict_row) as cursor:
        run = cursor.execute(_RUN, {"sha256": sha256}).fetchone()
    if run is None:
        raise RuntimeError(f"the run {sha256} was deleted while its file was imported")
    return run
