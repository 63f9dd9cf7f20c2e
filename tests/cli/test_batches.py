"""``switchyard batches``: tables for people, JSON for scripts, one line for what does not exist."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

import switchyard
from cli import main
from switchyard import group
from tests.conformance import flow_jobs
from tests.conformance.system import System
from tests.rig.waiting import wait_until


@pytest.fixture
def system(settings) -> Iterator[System]:
    system = System(settings, flow_jobs.declare)
    yield system
    system.close()


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["batches", *words])


def test_groups_are_listed_and_shown(system):
    jobs = system.jobs
    empty = run("list")
    inner = group([jobs.add.message(1, 1)], name="inner")
    failing = group(
        [jobs.dies.message(), jobs.add.message(1, 1), inner], name="[red]x", on_complete=jobs.notes.message("k")
    ).run()
    group([jobs.parked.message()]).run()
    system.start(queues={"default"})
    wait_until(lambda: switchyard.batch(failing.id).state == "failed")

    listed, failed, shown = run("list"), run("list", "--state", "failed", "--json"), run("show", failing.id)

    assert empty.output == "no group was run\n"
    assert [word for line in listed.output.splitlines()[1:] for word in line.split() if word in ("open", "failed")] == [
        "open",
        "failed",
    ]
    assert [batch["name"] for batch in json.loads(failed.output)["batches"]] == ["[red]x"]
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert {"state failed, 67 % of 2 jobs", "jobs 1 completed, 1 dead", f"group {inner.id} inner"} <= set(lines)
    assert any(line.startswith("on_complete notes, sent as ") for line in lines)
    assert lines[-1].endswith("dies ValueError: no")
    assert re.search(rf"^    group +{inner.id} inner$", shown.output, re.MULTILINE)
    assert json.loads(run("show", failing.id[:13], "--json").output)["id"] == failing.id
    found = json.loads(run("show", failing.id, "--json").output)
    assert (found["counts"]["dead"], found["percent"], found["batches"][0]["state"]) == (1, 66.67, "succeeded")


def test_what_does_not_exist_is_one_line(system):
    id_ = str(uuid.uuid4())

    missing, nothing = run("show", id_), run("list", "--state", "waiting")

    assert (missing.exit_code, missing.stderr) == (1, f"switchyard: no group has the id '{id_}'\n")
    assert (nothing.exit_code, nothing.output) == (0, "no group is waiting\n")
