"""``switchyard jobs, show, cancel, pause, resume, paused, edit``: what an operator types while things happen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from dramatiq import Message

import switchyard
from cli import main
from ledger.states import State
from settings import Settings
from tests.conformance import control_jobs
from tests.conformance.jobs import gate, runs
from tests.conformance.system import System
from tests.rig.waiting import wait_until

HOUR = 3_600_000


@pytest.fixture
def system(settings: Settings) -> Iterator[System]:
    """A system, not started; the commands work on its ledger."""
    system = System(settings, declare=control_jobs.declare)
    yield system
    system.close()


@pytest.fixture
def run(system: System) -> Callable[..., Result]:
    """Runs a command and makes sure that it neither failed nor traced back, unless told which exit code it has."""

    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, list(words), env={"COLUMNS": "200"})
        assert (result.exit_code, type(result.exception) in (type(None), SystemExit)) == (code, True), result.output
        return result

    return run


def test_jobs_are_listed_and_paged(system, run):
    sent = [system.jobs.echo.send("key", number) for number in range(3)]
    system.jobs.elsewhere.send_with_options(args=("key",), tags=["blue"], delay=HOUR)

    everything = run("jobs").stdout
    assert all(message.message_id in everything for message in sent)
    (only,) = json.loads(run("jobs", "--tag", "blue", "--state", "delayed", "--json").stdout)["jobs"]
    assert (only["actor"], only["queue"], only["state"]) == ("elsewhere", "other", "scheduled")
    page = json.loads(run("jobs", "--queue", "default", "--limit", "2", "--json").stdout)
    rest = json.loads(run("jobs", "--queue", "default", "--after", page["next"], "--json").stdout)
    assert [job["id"] for job in page["jobs"] + rest["jobs"]] == [message.message_id for message in reversed(sent)]


def test_a_job_is_shown_with_why_it_waits_and_what_became_of_it(system, run):
    message = system.jobs.fails_first.send("key")
    assert "no living worker consumes the queue default" in run("show", message.message_id).stdout

    run("pause", "--queue", "default")
    system.start()
    system.until(message, lambda job: job.wait_reason == "paused")
    assert "paused: queue default" in run("show", message.message_id).stdout
    run("resume", "--queue", "default")
    system.ended(message)

    shown = run("show", message.message_id).stdout
    assert "completed" in shown
    assert "ValueError: once" in shown
    found = json.loads(run("show", message.message_id, "--json").stdout)
    assert [entry["outcome"] for entry in found["attempts"]] == ["failed", "completed"]
    assert run("show", str(uuid4()), code=1).stderr.startswith("switchyard: no job has the id")


def test_executions_that_were_not_kept_are_counted_where_they_were(system, run):
    message = system.jobs.echo.send("key")
    with system.database.dedicated("test") as ledger:
        ledger.execute(
            "INSERT INTO switchyard.attempt (job_id, generation, attempt, outcome)"
            " SELECT j.id, 1, n, 'snoozed' FROM switchyard.job AS j CROSS JOIN generate_series(1, 1250) AS n"
        )

    lines = run("show", message.message_id).stdout.splitlines()

    (place,) = (number for number, line in enumerate(lines) if "1,150 more snoozed" in line)
    assert (lines[place - 1].split()[0], lines[place + 1].split()[0]) == ("10", "1161")
    found = json.loads(run("show", message.message_id, "--json").stdout)["attempts"]
    assert [entry["omitted"] for entry in found if entry["omitted"]] == [1_150]


def test_cancelling_by_id_says_what_became_of_each(system, run):
    system.start(threads=2)
    running, waiting = system.jobs.plug.send("cli plug"), system.jobs.echo.send_with_options(args=("k",), delay=HOUR)
    ended = system.jobs.echo.send("k")
    system.ended(ended)
    wait_until(lambda: runs["cli plug"] > 0, 20, "it runs")

    result = run("cancel", running.message_id, waiting.message_id, ended.message_id, "nonsense", code=1)

    assert result.stdout.splitlines() == [f"{running.message_id} was asked to stop", f"{waiting.message_id} is cancelled"]
    late, unknown = result.stderr.splitlines()
    assert late == f"{ended.message_id} has ended before: it is completed"
    assert unknown.startswith("switchyard: no job has the id 'nonsense'; an id is a UUID")
    gate("cli plug").set()
    system.ended(running)


def test_cancelling_by_filter_counts_first_and_asks(system, run):
    for _ in range(3):
        system.jobs.echo.send_with_options(args=("k",), delay=HOUR)

    assert run("cancel", "--actor", "echo", "--dry-run").stdout == "would cancel 3 jobs: 3 wait, 0 run\n"
    assert run("cancel", "--actor", "elsewhere", "--dry-run").stdout == "would cancel 0 jobs: 0 wait, 0 run\n"
    refused = run("cancel", "--actor", "echo", code=2)
    assert "say --yes" in refused.stderr
    assert run("cancel", "--actor", "echo", "--yes").stdout.splitlines()[-1] == "cancelled 3, asked 0 that run to stop"
    assert run("cancel", "--all", "--yes").stdout == "nothing to cancel: no job that waits or runs is like that\n"


def test_a_dry_run_of_cancelling_by_id_says_what_would_become_of_each(system, run):
    waiting, ended = (system.jobs.echo.send_with_options(args=("k",), delay=HOUR) for _ in range(2))
    switchyard.cancel(ended)

    result = run("cancel", "--dry-run", waiting.message_id, ended.message_id, code=1)

    assert result.stdout == f"{waiting.message_id} would be cancelled: it is scheduled\n"
    assert result.stderr == f"{ended.message_id} has ended before: it is cancelled\n"
    assert system.job(waiting).state is State.SCHEDULED


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cancel"], "say which jobs"),
        (["cancel", "an-id", "--actor", "echo"], "not both"),
        (["cancel", "--state", "dead"], "have ended"),
        (["cancel", "--state", "asleep"], "state 'asleep' is unknown"),
        (["cancel", "--queue", "my queue"], "no name of a queue"),
        (["jobs", "--after", "nonsense"], "not the cursor"),
        (["pause"], "say what"),
        (["resume"], "say what"),
        (["pause", "--all", "--queue", "default"], "say what"),
        (["pause", "--queue", "my queue"], "no name of a queue"),
        (["edit", "an-id"], "nothing to change"),
        (["edit", "an-id", "--args", "{}"], "is no JSON array"),
        (["edit", "an-id", "--kwargs", "{"], "is no JSON"),
        (["edit", "an-id", "--tag", "x", "--no-tags"], "not both"),
        (["edit", "an-id", "--delay", "1", "--run-at", "2030-01-01"], "not both"),
        (["edit", "an-id", "--priority", "1", "--run-at", "2h"], "write one such as 2026-11-28T08:00"),
        (["edit", "an-id", "--delay", "soon"], "is no duration"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused_in_a_line(run, words, said):
    assert said in run(*words, code=2).stderr


def test_pauses_are_begun_shown_and_ended(system, run):
    assert run("paused").stdout == "nothing is paused\n"
    assert run("pause", "--queue", "default", "--actor", "echo").stdout == "actor echo in queue default: paused\n"
    assert run("pause", "--all").stdout == "everything: paused\n"
    assert run("pause", "--all").stdout == "everything: was paused already\n"

    shown = json.loads(run("paused", "--json").stdout)["paused"]
    assert [entry["what"] for entry in shown] == ["actor echo in queue default", "everything"]
    assert "everything" in run("paused").stdout
    missed = run("resume", "--queue", "default", code=1)
    said, warned = missed.stderr.splitlines()
    assert said == "queue default: is not paused by itself; paused: actor echo in queue default, everything"
    # No worker ever ran here.
    assert warned.startswith("switchyard: warning: nothing knows queue 'default'")
    assert run("resume", "--all").stdout == "everything: resumed\n"
    assert run("resume", "--actor", "echo", "--queue", "default").stdout == "actor echo in queue default: resumed\n"
    assert run("paused").stdout == "nothing is paused\n"


def test_a_waiting_job_is_changed_and_a_running_one_is_not(system, run):
    message = system.jobs.echo.send_with_options(args=("k",), delay=HOUR)

    said = run("edit", message.message_id, "--args", '["k", 7]', "--priority", "3", "--tag", "x", "--run-at", "2100-01-01").stdout
    assert "scheduled, priority 3, to run 2100-01-01 00:00:00 UTC" in said
    assert system.job(message).args == ("k", 7)
    said = run("edit", message.message_id[:8], "--run-at", "2100-01-01T02:00+01:00").stdout
    assert said == f"{message.message_id} changed: it is scheduled, priority 3, to run 2100-01-01 01:00:00 UTC\n"
    said = run("edit", message.message_id[:8], "--run-at", "2020-01-01").stdout
    assert said.endswith(" (2020-01-01 00:00:00 UTC has passed: it is due now)\n")
    assert "due now" not in run("edit", message.message_id[:8], "--run-at", "2100-01-01").stdout
    refused = run("edit", message.message_id, "--args", "[]", code=1)
    assert "actor 'echo', field 'key'" in refused.stderr
    run("edit", message.message_id, "--delay", "0", "--no-tags")
    system.start()
    job = system.ended(message)
    assert (job.state, job.result, job.tags) == (State.COMPLETED, 7, ())

    assert run("edit", message.message_id, "--priority", "1", code=1).stderr.endswith("cannot be changed so: it is completed\n")
    assert "no job has the id" in run("edit", str(uuid4()), "--priority", "1", code=1).stderr


def test_arguments_that_keys_are_made_of_are_changed_where_the_actor_is_known(system, run, tmp_path, monkeypatch):
    (tmp_path / "shop_of_cli_test.py").write_text(
        "import dramatiq\n\n@dramatiq.actor(unique_key=('order',))\ndef charge(order: int) -> None:\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sent = [
        Message(queue_name="default", actor_name="charge", args=(n,), kwargs={}, options={"unique_key": f"[{n}]"}) for n in (1, 2)
    ]
    first, second = switchyard.enqueue_many(sent)
    # As a process that knows the actor sends it: the key is no option of the message.
    system.rows("UPDATE switchyard.job SET options = NULL RETURNING id")

    refused = run("edit", first.message_id, "--args", "[3]", code=1)
    assert refused.stderr == (
        "switchyard: actor 'charge', option 'unique_key': is made of the arguments, and this process does not know the actor; change the"
        " job in a program that imports it, or with `switchyard edit --actors MODULE`. Nothing was changed\n"
    )
    assert system.job(first).args == (1,)
    missing = run("edit", first.message_id, "--args", "[3]", "--actors", "no_such_module", code=2)
    assert "no_such_module cannot be imported" in missing.stderr

    run("edit", first.message_id, "--args", "[3]", "--actors", "shop_of_cli_test")
    assert system.rows("SELECT unique_key FROM switchyard.job ORDER BY id") == [("[3]",), ("[2]",)]
    taken = run("edit", first.message_id, "--args", "[2]", "--actors", "shop_of_cli_test", code=1)
    assert taken.stderr.startswith(
        f"switchyard: job {first.message_id} cannot have these arguments: actor 'charge' makes the key"
    )
    assert f"which job {second.message_id} has; nothing was changed" in taken.stderr
    assert system.job(first).args == (3,)
