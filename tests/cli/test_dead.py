"""``switchyard dead``: what it shows, what it asks, what it changes, and that nothing in an error reaches the terminal's controls."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

import switchyard
from cli import main
from ledger import write
from ledger.dead import REASONS
from ledger.states import State
from tests.conformance.dead_letter_jobs import declare
from tests.conformance.system import System
from tests.ledger.factory import failed, token
from tests.ledger.workflow_rows import add_batch
from tests.rig.processes import ROOT

EVIL = "\x1b[2J\x1b]0;title\x07 [red]caf\u00e9[/red] \u202egnp.exe"


@pytest.fixture
def system(settings):
    system = System(settings, declare=declare)
    yield system
    system.close()


@pytest.fixture
def run(system, monkeypatch):
    """Runs a command; ``run("dead", "list")`` gives what it printed, with ``warned`` what it warned of."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words, code=0, given=None, warned=False):
        done = CliRunner().invoke(main, ["dead", *words], input=given)
        assert done.exit_code == code, (done.output, done.exception)
        return done.stderr if warned else done.stdout if code == 0 else done.output

    return run


def die(system, error="it broke", actor="always_fails"):
    """A dead job of this actor; its id."""
    message = getattr(system.jobs, actor).send(error)

    def kill(connection):
        (id_,) = connection.execute("SELECT id FROM switchyard.job WHERE message_id = %s", [message.message_id]).fetchone()
        by = token()
        assert write.claim_by_id(connection, [id_], actors=[actor], worker="w", token=by, lease=30.0)
        write.finish(connection, [failed(id_, by, state=State.DEAD, error=error, traceback=f"Traceback:\n  {error}")])

    system.database.run(kill)
    return message.message_id


def states(system, *ids):
    return [None if (job := switchyard.get_job(id_)) is None else str(job.state) for id_ in ids]


def test_dead_letters_are_listed_the_latest_first(system, run):
    ids = [die(system, f"it broke {n}") for n in range(3)]

    shown = run("list")

    assert re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", shown) == ids[::-1]
    assert "ValueError: it broke 2" in shown
    assert run("list", "--search", "broke 1").count("ValueError") == 1
    assert run("list", "--actor", "nobody") == "no dead letter is like that\n"


def test_pages_lead_to_each_other(system, run):
    ids = [die(system) for _ in range(3)]

    first = run("list", "--limit", "2")
    (cursor,) = re.findall(r"--after (\S+)", first)
    second = run("list", "--limit", "2", "--after", cursor)

    assert ids[0] in second
    assert "There are more" not in second
    assert "cursor" in run("list", "--after", "nonsense", code=2)


def test_as_json_everything_is_there(system, run):
    id_ = die(system)
    job = switchyard.get_job(id_)

    listed = json.loads(run("list", "--json"))
    shown = json.loads(run("show", id_, "--json"))
    (group,) = json.loads(run("groups", "--json"))["groups"]

    assert [letter["id"] for letter in listed["dead_letters"]] == [id_]
    assert (listed["next"], listed["dead_letters"][0]["traceback"]) == (None, "Traceback:\n  it broke")
    assert (shown["dead_reason"], shown["args"], len(shown["attempts"])) == ("max_retries", ["it broke"], 1)
    assert datetime.fromisoformat(shown["finished_at"]) == job.finished_at
    assert (group["count"], group["example"], group["fingerprint"]) == (1, id_, job.fingerprint)


def test_one_is_shown_with_its_arguments_history_and_traceback(system, run):
    id_ = die(system)

    shown = run("show", id_)

    for wanted in (
        id_,
        "max_retries",
        "ValueError: it broke",
        '["it broke"]',
        "failed",
        "Traceback:",
        switchyard.get_job(id_).fingerprint,
    ):
        assert wanted in shown
    assert run("show", "0" * 32, code=1).startswith("switchyard: no job has the id")


def test_groups_are_counted(system, run):
    for n in range(2):
        die(system, f"order {n}")
    die(system, "otherwise")

    shown = run("groups")

    assert re.findall(r"(\d+) +[0-9a-f]{16}", shown) == ["2", "1"]


def test_nothing_in_an_error_controls_the_terminal(system, run):
    id_ = die(system, EVIL)

    for shown in (run("list"), run("show", id_), run("groups"), run("list", "--json")):
        assert all(character.isprintable() or character == "\n" for character in shown)
    assert "[red]café[/red]" in run("list")


def test_what_was_named_is_replayed_and_the_rest_says_why_not(system, run):
    dead, waiting = die(system), system.jobs.always_fails.send().message_id

    assert run("replay", dead) == f"{dead} replayed\n"
    said = run("replay", dead, waiting, code=1)

    assert said.count("it is pending; only a dead or cancelled job is replayed") == 2
    assert json.loads(run("replay", dead, "--json", code=1))["jobs"] == [
        {"id": dead, "replayed": False, "refused": "it is pending; only a dead or cancelled job is replayed"}
    ]


@pytest.mark.parametrize("edited", [False, True])
def test_what_is_left_of_a_workflow_that_retention_removes_is_not_replayed_and_says_so(system, run, edited):
    id_ = die(system)
    with system.database.dedicated("test") as ledger:
        batch = add_batch(ledger, total=2)
        ledger.execute("UPDATE switchyard.batch SET pruned_at = clock_timestamp(), completed_at = clock_timestamp()")
        ledger.execute("UPDATE switchyard.job SET batch_id = %s WHERE message_id = %s", [batch, id_])

    said = switchyard.try_replay(id_, args=["otherwise"]).refused if edited else run("replay", id_, code=1)

    assert (
        "retention has begun to remove its workflow, which cannot be completed any more; send what is missing as new jobs" in said
    )
    assert states(system, id_) == ["dead"]


def test_many_are_counted_asked_about_and_replayed_at_a_rate(system, run):
    ids = [die(system, f"slow {n}") for n in range(3)]
    other = die(system, "otherwise")

    assert run("replay", "--search", "slow", "--dry-run") == "would replay 3 jobs\n"
    assert "Replay 3 jobs in queue elsewhere at 2/minute?" in run(
        "replay", "--search", "slow", "--rate", "2/minute", "--to-queue", "elsewhere", code=1, given="n\n"
    )
    assert "Replay 3 jobs at 2/minute?" in run("replay", "--search", "slow", "--rate", "2/minute", code=1, given="n\n")
    assert states(system, *ids) == ["dead"] * 3
    said = run("replay", "--search", "slow", "--rate", "2/minute", "--to-queue", "elsewhere", "--yes")

    assert said.startswith("replayed 3 jobs, the last is due at 2")
    assert states(system, *ids, other) == ["scheduled", "scheduled", "scheduled", "dead"]
    jobs = [switchyard.get_job(id_) for id_ in ids]
    assert {job.queue for job in jobs} == {"elsewhere"}
    assert jobs[2].run_at - jobs[0].run_at == timedelta(minutes=1)
    assert run("replay", "--search", "slow", "--yes") == "no dead letters to replay\n"


def test_a_limit_takes_those_that_died_first(system, run):
    ids = [die(system) for _ in range(3)]

    assert json.loads(run("replay", "--all", "--limit", "2", "--yes", "--json"))["replayed"] == 2

    assert states(system, *ids) == ["pending", "pending", "dead"]


def test_dead_letters_are_removed_after_a_question(system, run):
    one, two, three = (die(system, f"rubbish {n}") for n in range(3))

    assert "Remove 1 job for good?" in run("discard", one, code=1, given="n\n")
    assert run("discard", one, "--yes") == f"{one} discarded\n"
    assert run("discard", "--search", "rubbish", "--dry-run") == "would discard 2 jobs\n"
    assert run("discard", "--search", "rubbish", "--limit", "1", given="y\n") == "discarded 1 job\n"
    assert json.loads(run("discard", "--all", "-y", "--json")) == {"matched": 1, "discarded": 1, "dry_run": False}

    assert states(system, one, two, three) == [None] * 3


def test_what_waits_is_not_removed(system, run):
    id_ = system.jobs.always_fails.send().message_id

    assert "neither dead nor cancelled" in run("discard", id_, "--yes", code=1)

    assert states(system, id_) == ["pending"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay"], "or --all"),
        (["discard"], "or --all"),
        (["replay", "id", "--actor", "a"], "or --all"),
        (["replay", "--all", "--actor", "a"], "or --all"),
        (["replay", "id", "--rate", "5/s"], "go with filters, not with IDs; the ID of a group goes with --group"),
        (["replay", "id", "--dry-run"], "go with filters, not with IDs"),
        (["discard", "id", "--limit", "2"], "go with filters, not with IDs"),
        (["replay", "--all", "--rate", "fast"], "'50/s'"),
        (["replay", "--all", "--rate", "0/s"], "'50/s'"),
        (["replay", "--all", "--to-queue", "no queue"], "no name of a queue"),
        (["replay", "--search", "", "--yes"], "search is empty"),
        (["discard", "--actor", "", "--yes"], "actor is empty"),
        (["discard", "--search", "", "--yes"], "search is empty"),
        (["groups", "--search", ""], "search is empty"),
        (["list", "--since", "yesterday"], "2h"),
        (["list", "--since", "2026-11-28T8"], "an age such as 30m"),
        (["list", "--limit", "0"], "--limit"),
    ],
)
def test_nonsense_is_refused_with_the_way_out(run, words, says):
    assert says in run(*words, code=2)


@pytest.mark.parametrize("command", ["list", "groups", "replay", "discard"])
@pytest.mark.parametrize("option", ["actor", "queue", "reason", "group", "error-type", "search", "since", "until", "limit"])
def test_an_option_that_is_given_twice_is_refused(run, command, option):
    value = {"since": "2h", "until": "2h", "limit": "2"}.get(option, "x")

    said = run(command, f"--{option}", value, f"--{option}", value, code=2)

    assert f"--{option} was given twice; give it once" in said


def test_of_two_actors_none_is_discarded(system, run):
    id_ = die(system)

    said = run("discard", "--actor", "flaky", "--actor", "always_fails", "--yes", code=2)

    assert "--actor was given twice; give it once" in said
    assert states(system, id_) == ["dead"]


@pytest.mark.parametrize("command", ["jobs", "cancel"])
@pytest.mark.parametrize("option", ["actor", "queue", "tag", "batch", "created-after", "created-before"])
def test_a_filter_of_jobs_that_is_given_twice_is_refused(system, command, option):
    value = "2h" if option.startswith("created") else "x"

    done = CliRunner().invoke(main, [command, f"--{option}", value, f"--{option}", value])

    assert (done.exit_code, f"--{option} was given twice; give it once" in done.stderr) == (2, True)


def test_a_replay_to_a_queue_that_no_worker_consumes_is_warned_of(system, run):
    id_ = die(system)
    system.rows(
        "INSERT INTO switchyard.worker (id, host, pid, broker, queues, consumes, threads, lease_seconds)"
        " VALUES ('h:1:x', 'h', 1, 'postgres', '{default,slow}', '{postgres}', 4, 30) RETURNING 1"
    )

    for words in (("--all", "--to-queue", "slwo", "--dry-run"), (id_, "--to-queue", "slwo")):
        said = run("replay", *words, warned=True)
        assert said.startswith(
            "switchyard: warning: no worker consumes queue 'slwo': jobs in it wait until a worker has an actor"
        )
        assert said.endswith("; did you mean slow?\n")
    # The job that is in it now is no sign that anybody runs it.
    die(system)
    assert "no worker consumes queue 'slwo'" in run("replay", "--all", "--to-queue", "slwo", "--yes", warned=True)
    die(system)
    assert run("replay", "--all", "--to-queue", "slow", "--yes", warned=True) == ""


def test_jobs_in_a_queue_that_nobody_consumes_have_a_way_back(system, run):
    """As docs/howto/dead-letters.md has it: cancelled, and replayed by their ids."""
    id_ = die(system)
    run("replay", id_, "--to-queue", "stranded")

    assert CliRunner().invoke(main, ["cancel", "--queue", "stranded", "--yes"]).exit_code == 0
    assert run("replay", id_, "--to-queue", "default") == f"{id_} replayed\n"

    assert states(system, id_) == ["pending"]
    assert switchyard.get_job(id_).queue == "default"


def test_all_dead_letters_are_meant_by_saying_so_alone(system):
    dead = die(system)

    for many in (switchyard.replay_many, switchyard.discard_many):
        for nothing in ({}, {"actor": None}, {"dry_run": True}):
            with pytest.raises(ValueError, match=r"say all=True"):
                many(**nothing)

    assert states(system, dead) == ["dead"]
    assert switchyard.discard_many(all=True) == switchyard.Discards(matched=1, discarded=1)


def test_the_age_of_a_death_is_a_filter(system, run):
    id_ = die(system)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    assert id_ in run("list", "--since", "2h")
    assert id_ in run("list", "--until", later)
    assert run("list", "--until", "2h") == run("list", "--since", later) == "no dead letter is like that\n"


@pytest.mark.parametrize(
    "words", [("list",), ("list", "--json"), ("groups",), ("replay", "--yes"), ("discard", "--dry-run")], ids=" ".join
)
def test_a_reason_that_nothing_died_of_is_questioned(system, run, words):
    die(system)

    said = run(*words, "--reason", "max_retry", warned=True)

    assert "nothing knows reason 'max_retry'" in said
    assert "did you mean max_retries?" in said


def test_a_reason_of_ours_without_dead_letters_is_an_empty_list(run):
    for reason in REASONS:
        assert run("list", "--reason", reason) == "no dead letter is like that\n"
    assert run("replay", "--reason", "expired", "--dry-run") == "would replay 0 jobs\n"
    assert run("discard", "--reason", "expired", "--yes") == "no dead letters to discard\n"


def test_a_reason_of_an_applications_own_is_known_while_a_dead_letter_has_it(system, run):
    id_ = die(system)
    system.rows("UPDATE switchyard.job SET dead_reason = 'card_refused' WHERE message_id = %s RETURNING 1", id_)

    assert id_ in run("list", "--reason", "card_refused")
    assert run("list", "--reason", "card_refused", "--until", "2h") == "no dead letter is like that\n"
    assert "did you mean card_refused?" in run("list", "--reason", "card_refusd", warned=True)

    # What replays them each night finds none the next time.
    assert run("replay", "--reason", "card_refused", "--yes") == "replayed 1 job\n"
    assert "no dead letters to replay" in run("replay", "--reason", "card_refused", "--yes")


def test_the_reasons_are_those_of_the_page():
    page = (ROOT / "docs/howto/dead-letters.md").read_text().partition("## Why a job is dead")[2].partition("\n## ")[0]

    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(REASONS)
