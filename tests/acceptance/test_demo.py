"""``switchyard demo``: every job and every file on every broker; what is missing is said; a killed one leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from email import policy
from email.parser import BytesParser
from pathlib import Path

import openpyxl
import psycopg
import pytest
from PIL import Image
from pypdf import PdfReader

import brokers
from tests.acceptance.stacks import PYTHON, Switchyard, groups, leftovers, members, switchyard
from tests.rig.processes import Child
from tests.rig.rabbitmq import remove_queues
from tests.rig.waiting import wait_until

__all__ = ["switchyard"]

pytestmark = pytest.mark.timeout(300)

#: Seconds for a whole demo on a busy machine.
LONG = 120.0

QUEUES = ("emails", "exports", "images", "imports", "maintenance", "reports", "webhooks")


#: A whole demo costs seconds: on Redis it is the one after a killed one.
@pytest.fixture(params=[name for name in brokers.TRANSPORTS if name != "redis"])
def broker(request: pytest.FixtureRequest, broker_prefix: str) -> Iterator[dict[str, str]]:
    """The variables for each broker; what is not among them is embedded."""
    variables = {"BROKER": request.param}
    if request.param != "rabbitmq":
        yield variables
        return
    url = request.getfixturevalue("rabbitmq_url")
    yield variables | {"RABBITMQ_URL": url, "BROKER_PREFIX": broker_prefix}
    remove_queues(url, [f"{broker_prefix}.{queue}.p10" for queue in QUEUES])


def finished(child: Child) -> str:
    """What a demo printed, which has to have gone well."""
    assert child.wait(LONG) == 0, child.output()
    return child.output()


def files_in(text: str, folder: Path) -> dict[str, list[Path]]:
    """The files that the summary names, by the end of their names."""
    found: dict[str, list[Path]] = {}
    for name in re.findall(r"^ +[\d.,]+ k?B  (var/\S+)$", text, re.MULTILINE):
        found.setdefault(Path(name).suffix, []).append(folder / name)
    return found


def test_every_job_runs_and_every_file_is_there(switchyard: Switchyard, broker: dict[str, str], tmp_path: Path):
    everything_is_there(finished(switchyard("demo", **broker)), tmp_path, broker["BROKER"])
    assert leftovers(tmp_path) == []


def everything_is_there(text: str, folder: Path, broker: str) -> None:
    """Fails unless a demo made every file and says how every job ended."""
    files = files_in(text, folder)
    assert {kind: len(paths) for kind, paths in files.items()} == {".eml": 5, ".webp": 4, ".xlsx": 1, ".pdf": 2}
    welcome = BytesParser(policy=policy.default).parsebytes(files[".eml"][0].read_bytes())
    assert welcome["To"] == "ada@example.org"
    assert [part.get_content_type() for part in welcome.iter_attachments()] == ["image/jpeg"]
    with Image.open(files[".webp"][0]) as picture:
        assert picture.size == (600, 400)
    (sheet,) = openpyxl.load_workbook(files[".xlsx"][0]).worksheets
    assert sheet.max_row == 4_989
    assert all(len(PdfReader(path).pages) >= 1 for path in files[".pdf"])

    assert re.search(r"1 failed .*\n +2 failed .*\n +3 completed", text)
    assert re.search(r"dead after 2 attempts \(max_retries\)\n +RuntimeError: the card was declined", text)
    assert re.search(r"limited burst +\d+\.\d starts a second, the limit is 10\n", text)
    assert re.search(r"picture group +callback send_email: completed\n", text)
    assert re.search(r"sent twice +one job, [0-9a-f-]{36}\n", text)
    assert re.search(r"cancelled +at [\d.]+ %, stopped \d+ ms after it was asked to\n", text)
    assert re.search(r"replayed +a dead letter with other arguments: completed, generation 2\n", text)
    assert re.search(r"500 small jobs.*\n +sent in \d+ ms, all completed after \d+ ms: [\d,]+ jobs/s", text)
    assert re.search(rf"broker +{broker}, ", text)
    assert text.splitlines()[-1].startswith("Everything is as it should be")


def test_progress_moves_and_states_change_in_lines_beside_a_second_demo_that_is_refused(
    switchyard: Switchyard, database_url: str, tmp_path: Path
):
    first = switchyard("demo", DATABASE_URL=database_url)
    wait_until(lambda: "sending jobs" in first.output(), LONG, first.output)

    second = switchyard("demo", DATABASE_URL=database_url)

    assert second.wait(LONG) == 1
    assert f"a stack is running in var already (process {first.pid}): stop it first" in second.output()
    text = finished(first)

    def states(job: str) -> list[str]:
        return re.findall(rf"^ *[\d.]+ s  {job} +\w+ +(\w+)", text, re.MULTILINE)

    assert "retrying" in states("fails twice")
    assert states("fails twice")[-1] == "completed"
    assert states("dies")[-1] == "dead"
    # What it was in between is seen or not.
    assert states("e-mail in 2 s")[0] == "scheduled"
    assert states("e-mail in 2 s")[-1] == "completed"
    moving = re.findall(r"import_csv +running .* (\d+) % import", text)
    assert any(0 < int(percent) < 100 for percent in moving), text
    assert "\x1b" not in text
    # The database that was given was used, and nothing was embedded.
    assert not (tmp_path / "var" / "postgres").exists()
    with psycopg.connect(database_url) as connection:
        # The second click on one file is the first one's job, unless that was over already.
        assert connection.execute("SELECT count(*) FROM switchyard.job WHERE schedule IS NULL").fetchone() in ((534,), (535,))


def test_a_terminal_gets_a_table(database_url: str, tmp_path: Path):
    ours, theirs = pty.openpty()
    demo = subprocess.Popen(
        [sys.executable, "-c", "from cli import main; main()", "demo"],
        env=PYTHON | {"DATABASE_URL": database_url, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65_536):
            output += chunk
    except OSError:
        pass  # what reading says when the other side is closed
    os.close(ours)

    assert demo.wait(LONG) == 0, output.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert re.search(r"job +actor +state +try +progress +time", text)
    last = text[text.rindex("job  ") : text.index("Files made")]
    assert re.search(r"import +import_csv +completed +1/3 ━+ done +[\d.]+ s", last)
    assert re.search(r"dies +doomed +dead +2/2", last)
    assert re.search(r"500 small jobs +flaky +completed +━+ 500/500", last)
    assert all(len(line.rstrip("\r")) <= 80 for line in last.splitlines())


def test_a_file_that_cannot_be_made_is_missed(switchyard: Switchyard, database_url: str, tmp_path: Path):
    (tmp_path / "var" / "storage").mkdir(parents=True)
    (tmp_path / "var" / "storage" / "images").write_text("in the way")

    demo = switchyard("demo", DATABASE_URL=database_url)

    assert demo.wait(LONG) == 1
    assert re.search(
        r"^FAILED  photo: job \S+ \(process_image\) is dead, not completed: storage key", demo.output(), re.MULTILINE
    )
    assert "Everything is as it should be" not in demo.output()
    assert "Files made" in demo.output()


def test_a_worker_that_dies_is_missed(switchyard: Switchyard, database_url: str, tmp_path: Path):
    demo = switchyard("demo", DATABASE_URL=database_url)
    wait_until(lambda: "sending jobs" in demo.output(), LONG, demo.output)
    os.killpg(int((tmp_path / "var" / "run" / "worker.pid").read_text()), signal.SIGKILL)

    assert demo.wait(LONG) == 1
    assert "switchyard: worker ended with SIGKILL; the end of var/log/worker.log:" in demo.output()


def test_a_killed_demo_leaves_no_process_and_the_next_one_starts_and_makes_everything(switchyard: Switchyard, tmp_path: Path):
    demo = switchyard("demo", BROKER="redis")
    wait_until(lambda: "sending jobs" in demo.output(), LONG, demo.output)
    started = groups(tmp_path)
    assert len(started) == 3
    assert all(members(group) for group in started)

    demo.send(signal.SIGKILL)
    demo.wait()

    # At once: it has to wait for the first one's guard by itself.
    text = finished(switchyard("demo", BROKER="redis"))
    assert {group: members(group) for group in started} == {key: [] for key in started}
    everything_is_there(text, tmp_path, "redis")
    # The data is the first one's.
    assert "migrated" not in text
    assert leftovers(tmp_path) == []


def test_ctrl_c_stops_everything(switchyard: Switchyard, tmp_path: Path):
    demo = switchyard("demo")
    wait_until(lambda: len(groups(tmp_path)) > 0, LONG, demo.output)

    demo.send(signal.SIGINT)

    assert demo.wait(60) == 128 + signal.SIGINT
    assert demo.output().splitlines()[-1] == "switchyard: stopped by SIGINT"
    assert leftovers(tmp_path) == []
