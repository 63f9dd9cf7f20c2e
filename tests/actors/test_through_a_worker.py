"""The shipped actors under a real worker: what they raise becomes what the ledger shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from settings import Settings, variables
from tests.actors.servers import Answer, HttpServer
from tests.rig.processes import ROOT, base_environment
from tests.rig.waiting import wait_until
from tests.rig.workers import Workers

Run = Callable[..., dict[str, Any]]

SEND = "import json, sys, actors; a = json.loads(sys.argv[1]); print(getattr(actors, a[0]).send(*a[1], **a[2]).message_id)"
JOB = "SELECT *, (SELECT count(*) FROM switchyard.attempt a WHERE a.job_id = j.id) AS tried FROM switchyard.job j WHERE message_id = %s"
ENDED = ("completed", "dead", "cancelled")


@pytest.fixture
def run(settings: Settings, worker_process: Workers, http_server: HttpServer) -> Run:
    """Sends a job from a process of its own, as an application would, and returns its row when it has ended."""
    environment = variables(settings) | {"OUTBOUND_ALLOW": http_server.pair, "WEBHOOK_SECRET": "s3cret"}
    worker = worker_process("actors", threads=2, env=environment)
    environment = base_environment() | environment | {"PYTHONPATH": str(ROOT)}

    def run(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        command = [sys.executable, "-c", SEND, json.dumps([name, args, kwargs])]
        job_id = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
        with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True, row_factory=dict_row) as connection:

            def ended() -> dict[str, Any] | None:
                row = connection.execute(JOB, [job_id]).fetchone()
                return row if row is not None and row["state"] in ENDED else None

            return wait_until(ended, 30, worker.output)

    return run


def test_a_webhook_is_retried_when_the_receiver_says(run: Run, http_server: HttpServer) -> None:
    http_server.answers = [Answer(503, {"Retry-After": "1"}), Answer(204)]

    job = run("deliver_webhook", http_server.url(), "order.paid", {"total": 1})

    assert (job["state"], job["attempt"], job["tried"], job["result"]) == ("completed", 2, 1, {"status": 204})
    assert [request.headers["X-Switchyard-Delivery"] for request in http_server.requests] == [str(job["message_id"])] * 2


def test_a_webhook_that_nobody_wants_is_dead_at_once(run: Run, http_server: HttpServer) -> None:
    http_server.answers = [Answer(410)]

    job = run("deliver_webhook", http_server.url(), "order.paid", {})

    assert (job["state"], job["attempt"], job["dead_reason"]) == ("dead", 1, "permanent")
    assert "410" in job["error"]


def test_flaky_succeeds_on_its_third_attempt_and_doomed_dies_on_its_second(run: Run) -> None:
    flaky, doomed = run("flaky", failures=2), run("doomed")

    assert (flaky["state"], flaky["attempt"], flaky["result"]) == ("completed", 3, {"attempts": 3})
    assert (doomed["state"], doomed["attempt"], doomed["dead_reason"]) == ("dead", 2, "max_retries")


def test_three_clicks_on_one_file_start_one_import(settings: Settings) -> None:
    clicks = "import actors; print(*(actors.import_csv.send(key).message_id for key in ('a.csv', 'a.csv', 'b.csv', 'a.csv')))"
    environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", clicks], env=environment, capture_output=True, text=True, timeout=60, check=True)

    first, second, other, third = done.stdout.split()
    assert first == second == third != other


def test_an_export_a_report_and_an_e_mail_leave_their_files(run: Run, settings: Settings) -> None:
    export = run("export_data", "jobs", columns=["id", "state"])
    report = run("generate_report", 1)
    mail = run(
        "send_email", "ada@example.org", "The report", "see there", None, [{"filename": "r.pdf", "key": report["result"]["key"]}]
    )

    assert [job["state"] for job in (export, report, mail)] == ["completed"] * 3
    assert [job["progress"] for job in (export, report)] == [100, 100]
    for job in (export, report):
        assert (settings.data_dir / "storage" / job["result"]["key"]).stat().st_size == job["result"]["bytes"]
    assert (settings.data_dir / mail["result"]["file"]).is_file()
