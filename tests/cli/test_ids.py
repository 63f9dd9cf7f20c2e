"""Ids as people type them, and names that nobody knows: beginnings, several that begin so, another's id, mistyped queues and actors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from uuid import UUID

import dramatiq
import pytest
from click.testing import CliRunner, Result

import switchyard
from cli import main
from settings import Settings
from switchyard import group
from tests.conformance import control_jobs
from tests.conformance.system import System

HOUR = 3_600_000
ONE, TWIN, OTHER = (
    "aaaaaaaa-0000-4000-8000-000000000001",
    "aaaaaaaa-0000-4000-8000-000000000002",
    "bbbbbbbb-0000-4000-8000-000000000003",
)


@pytest.fixture
def system(settings: Settings) -> Iterator[System]:
    """A system, not started, with three jobs, two of whose ids begin alike."""
    system = System(settings, declare=control_jobs.declare)
    for id_ in (ONE, TWIN, OTHER):
        message: dramatiq.Message = system.jobs.echo.message("k")
        system.broker.enqueue(message.copy(message_id=id_), delay=HOUR)
    yield system
    system.close()


@pytest.fixture
def run(system: System) -> Callable[..., Result]:
    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, list(words), env={"COLUMNS": "200"})
        assert (result.exit_code, type(result.exception) in (type(None), SystemExit)) == (code, True), result.output
        return result

    return run


@pytest.mark.parametrize("text", [OTHER, OTHER.upper(), OTHER.replace("-", ""), "bbbbbbbb", "BBBBBBBB-00"])
def test_the_first_eight_characters_do_where_no_other_id_begins_so(run, text):
    assert json.loads(run("show", text, "--json").stdout)["job"]["id"] == OTHER
    assert json.loads(run("dead", "show", text, "--json").stdout)["id"] == OTHER


@pytest.mark.parametrize("command", [("show",), ("dead", "show")])
def test_where_several_begin_so_they_are_named(run, command):
    (line,) = run(*command, "aaaaaaaa", code=1).stderr.splitlines()

    assert (
        line
        == f"switchyard: the ids of several jobs begin with 'aaaaaaaa': {ONE} (echo, scheduled), {TWIN} (echo, scheduled); write more of it"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cccccccc", "no job has the id 'cccccccc', and none begins so"),
        ("aaaaaaa", "no job has the id 'aaaaaaa'; an id is a UUID, or the first 8 characters of one, or more"),
        ("nonsense", "; an id is a UUID"),
        ("0" * 40, "; an id is a UUID"),
        ("00000000-0000-4000-8000-000000000009", "no job has the id '00000000-0000-4000-8000-000000000009'"),
    ],
)
def test_an_id_that_stands_for_nothing_is_said_to(run, text, said):
    for command in (("show",), ("dead", "show"), ("cancel",), ("dead", "replay"), ("dead", "discard", "--yes")):
        assert said in run(*command, text, code=1).stderr


def test_what_is_anothers_id_leads_there(system, run):
    batch = group([system.jobs.echo.message("k")]).run()

    assert f"a group has it: `switchyard batches show {batch.id}`" in run("show", batch.id, code=1).stderr
    assert f"a job has it: `switchyard show {OTHER}`" in run("batches", "show", OTHER, code=1).stderr


def test_verbs_take_beginnings_and_touch_nothing_where_several_begin_so(system, run):
    assert run("cancel", "aaaaaaaa", code=1).stdout == ""
    assert run("cancel", "bbbbbbbb").stdout == f"{OTHER} is cancelled\n"

    assert [system.job(id_).state for id_ in (ONE, TWIN, OTHER)] == ["scheduled", "scheduled", "cancelled"]


def test_one_id_of_many_that_is_wrong_keeps_no_other_from_its_turn(system, run):
    switchyard.cancel(OTHER)

    result = run("dead", "replay", "cccccccc", OTHER, ONE, code=1)

    assert result.stdout == f"{OTHER} replayed\n"
    assert [line.split(" ", 1)[0] for line in result.stderr.splitlines()] == ["cccccccc", ONE]


def test_cancelling_for_scripts_says_of_each_what_became_of_it(run):
    found = json.loads(run("cancel", OTHER, "cccccccc", "--json", code=1).stdout)["jobs"]

    assert [(job["id"], job["state"], job["cancelled"]) for job in found] == [
        (OTHER, "cancelled", True),
        ("cccccccc", None, False),
    ]
    assert "none begins so" in found[1]["refused"]
    assert json.loads(run("cancel", "--actor", "echo", "--yes", "--json").stdout) == {
        "cancelled": 2,
        "asked": 0,
        "dry_run": False,
    }


UNKNOWN = {
    "pause a queue": ("pause", "--queue", "defualt"),
    "pause an actor": ("pause", "--actor", "ecko"),
    "limit a queue": ("limits", "set", "--queue", "defualt", "--concurrency", "1"),
    "list a queue": ("jobs", "--queue", "defualt"),
    "list an actor": ("jobs", "--actor", "ecko"),
    "cancel a queue": ("cancel", "--queue", "defualt", "--yes"),
    "dead of a queue": ("dead", "list", "--queue", "defualt"),
    "kinds of dead of an actor": ("dead", "groups", "--actor", "ecko"),
    "replay a queue": ("dead", "replay", "--queue", "defualt", "--yes"),
    "list a queue for a script": ("jobs", "--queue", "defualt", "--json"),
    "dead of a queue for a script": ("dead", "list", "--queue", "defualt", "--json"),
    "kinds of dead of a queue for a script": ("dead", "groups", "--queue", "defualt", "--json"),
    "discard an actor": ("dead", "discard", "--actor", "ecko", "--yes"),
    "schedule an actor": ("schedules", "create", "x", "ecko", "@daily"),
    "schedule to a queue": ("schedules", "create", "x", "echo", "@daily", "--args", '["k"]', "--queue", "defualt"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_nobody_knows_is_taken_with_a_warning(system, run, name):
    words = UNKNOWN[name]
    wrong, right = ("queue 'defualt'", "default") if "defualt" in words else ("actor 'ecko'", "echo")

    result = run(*words)

    assert any(
        line.startswith(f"switchyard: warning: nothing knows {wrong}: ") and line.endswith(f"did you mean {right}?")
        for line in result.stderr.splitlines()
    ), result.stderr


@pytest.mark.parametrize(
    "words", [("pause", "--queue", "default"), ("pause", "--actor", "echo"), ("jobs", "--queue", "default", "--state", "dead")]
)
def test_a_name_that_somebody_knows_is_taken_without_a_word(run, words):
    assert run(*words).stderr == ""


def test_a_pause_and_a_limit_of_a_mistyped_queue_do_not_make_it_known(run):
    run("pause", "--queue", "defualt")
    run("limits", "set", "--queue", "defualt", "--concurrency", "1")

    assert "nothing knows queue 'defualt'" in run("pause", "--queue", "defualt").stderr


def test_where_nothing_is_like_it_the_names_there_are_are_listed(run):
    assert run("pause", "--queue", "zzz").stderr.endswith("; there is default\n")


@pytest.mark.parametrize(
    ("word", "states"),
    [
        ("waiting", ["pending"]), ("active", ["running"]), ("processing", ["running"]), ("delayed", ["scheduled"]),
        ("failed", ["retrying", "dead"]), ("done", ["completed"]), ("succeeded", ["completed"]), ("SCHEDULED", ["scheduled"]),
    ],
)  # fmt: skip
def test_the_words_of_other_queues_are_taken_everywhere(system, run, word, states):
    """The same for every command, and for ``list_jobs``."""
    listed = json.loads(run("jobs", "--state", word, "--json").stdout)["jobs"]

    assert {job["id"] for job in listed} == ({ONE, TWIN, OTHER} if states == ["scheduled"] else set())
    assert switchyard.list_jobs(state=word.lower()) == switchyard.list_jobs(state=states)
    if set(states) & {"pending", "running", "scheduled", "retrying"}:
        assert ("3 wait" in run("cancel", "--state", word, "--dry-run").stdout) is (states == ["scheduled"])


@pytest.mark.parametrize("command", ["jobs", "cancel"])
def test_the_words_for_states_are_in_the_help_and_in_the_error(run, command):
    said = " ".join(run(command, "--help").stdout.split()), " ".join(run(command, "--state", "asleep", code=2).stderr.split())

    for text in said:
        assert "scheduled, pending, running, retrying, completed, dead, cancelled" in text
        assert "active (= running)" in text
        assert "failed (= retrying/dead)" in text


def test_jobs_are_chosen_by_age(system, run):
    system.rows(
        "UPDATE switchyard.job SET created_at = created_at - interval '1 day' WHERE id = (SELECT min(id) FROM switchyard.job) RETURNING 1"
    )

    old = json.loads(run("jobs", "--created-before", "2h", "--json").stdout)["jobs"]
    young = json.loads(run("jobs", "--created-after", "2h", "--json").stdout)["jobs"]

    assert ([job["id"] for job in old], {job["id"] for job in young}) == ([ONE], {TWIN, OTHER})


def test_a_tag_an_error_type_and_a_group_that_nothing_has_are_said_to(system, run):
    """Open sets: the list is as empty as it is, and the exit code the same."""
    system.rows(
        "UPDATE switchyard.job SET state = 'dead', dead_reason = 'permanent', error_type = 'ValueError', tags = '{night}',"
        " finished_at = now(), next_publish_at = NULL WHERE message_id = %s RETURNING 1",
        OTHER,
    )
    (fingerprint,) = system.rows("SELECT fingerprint FROM switchyard.job WHERE state = 'dead'")[0]

    for words, said in (
        (("jobs", "--tag", "nigth"), "nothing knows tag 'nigth': no job sent lately has it; did you mean night?"),
        (("cancel", "--tag", "Nightly", "--yes"), "nothing knows tag 'Nightly': no job sent lately has it; did you mean night?"),
        (("dead", "list", "--error-type", "valueerror"), "no dead letter of late has it; did you mean ValueError?"),
        (("dead", "groups", "--group", "x"), f"nothing knows group 'x': no dead letter of late is of it; there is {fingerprint}"),
    ):
        assert (
            run(*words).stderr == f"switchyard: warning: {said}\n" if said.startswith("nothing") else said in run(*words).stderr
        )
    for line in ("jobs --tag night", f"dead list --error-type ValueError --group {fingerprint}"):
        result = run(*line.split())
        assert OTHER in result.stdout
        assert result.stderr == ""


def test_a_group_of_jobs_that_there_is_not_is_no_empty_list(run):
    for words in (("jobs",), ("cancel", "--yes")):
        assert run(*words, "--batch", "0" * 32, code=1).stderr == f"switchyard: no group has the id '{UUID(int=0)}'\n"


@pytest.mark.parametrize(("word", "right"), [("runing", "running"), ("actve", "active"), ("Schedule", "scheduled")])
def test_a_mistyped_state_is_refused_with_what_was_meant(run, word, right):
    assert f"; did you mean {right}" in run("jobs", "--state", word, code=2).stderr


def test_a_mistyped_reason_to_wait_is_refused_with_what_was_meant(run):
    assert (
        "'concurency' is no reason to wait; did you mean concurrency?"
        in run("jobs", "--wait-reason", "concurency", code=2).stderr
    )
    assert "there are concurrency, rate_limit, paused" in run("jobs", "--wait-reason", "zzz", code=2).stderr


def limited(system, id_, state):
    """Have it wait for a slot."""
    system.rows(
        "UPDATE switchyard.job SET state = %s, wait_reason = 'concurrency', blocked_on = 'echo' WHERE message_id = %s RETURNING 1",
        state, id_,
    )  # fmt: skip


def test_what_waits_for_a_limit_is_found_by_its_reason_whatever_its_state(system, run):
    limited(system, ONE, "scheduled")
    limited(system, OTHER, "pending")

    shown = run("jobs", "--wait-reason", "CONCURRENCY", "--wait-reason", "rate_limit").stdout
    (only,) = json.loads(run("jobs", "--wait-reason", "concurrency", "--state", "waiting", "--json").stdout)["jobs"]

    assert ONE in shown
    assert OTHER in shown
    assert TWIN not in shown
    assert "a slot of echo" in shown
    assert only["id"] == OTHER
    assert run("jobs", "--wait-reason", "paused").stdout == "no job is like that\n"


def test_whoever_looks_for_what_waits_is_told_where_those_are_that_wait_for_a_limit(system, run):
    assert run("jobs", "--state", "waiting").stderr == ""
    limited(system, ONE, "scheduled")

    told = "`switchyard jobs --wait-reason concurrency --wait-reason rate_limit` lists them"
    assert told in run("jobs", "--state", "waiting").stderr
    assert told in run("jobs", "--state", "pending", "--actor", "echo").stderr
    # They are elsewhere, are in it, are what was asked for; and a script reads the object alone.
    for words in (("--queue", "other"), ("--state", "delayed"), ("--wait-reason", "concurrency"), ("--json",)):
        assert told not in run("jobs", "--state", "pending", *words).stderr
