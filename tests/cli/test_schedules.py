"""``switchyard schedules`` as somebody types it."""

from __future__ import annotations

import json
import re
from datetime import datetime

import dramatiq
import pytest
from click.testing import CliRunner

import switchyard
from cli import main
from control.schedules import cron
from tests.conformance.system import System


def declare(broker):
    @dramatiq.actor(broker=broker, periodic=cron("0 8 * * *", "Europe/Berlin"))
    def digest():
        return None

    @dramatiq.actor(broker=broker)
    def export(region, rows=1):
        return None


@pytest.fixture
def system(settings):
    """The process's system, which the commands find configured."""
    system = System(settings, declare)
    yield system
    system.close()


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["schedules", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_a_schedule_is_made_looked_at_paused_run_and_removed(system):
    assert "there are no schedules" in run("list")
    assert "created eu; its first job comes" in run(
        "create", "eu", "export", "30 2 * * *", "--timezone", "Europe/Berlin", "--args", '["eu"]', "--kwargs", '{"rows": 5}',
        "--catch-up", "last", "--window", "36h", "--jitter", "90", "--queue", "exports",
    )  # fmt: skip
    found = switchyard.get_schedule("eu")
    assert (found.args, found.kwargs, found.queue) == (("eu",), {"rows": 5}, "exports")
    assert (found.catch_up, found.window, found.jitter, found.timezone) == ("last", 129_600, 90, "Europe/Berlin")

    line = next(line for line in run("list").splitlines() if line.startswith("eu "))
    assert re.search(r"export +30 2 \* \* \* +Europe/Berlin +\d{4}-\d\d-\d\d \d\d:30:00 UTC +active", line)
    shown = run("show", "eu")
    assert "export('eu', rows=5) on queue exports" in shown
    assert "last, up to 1.5d back" in shown
    assert "no tick has come yet" in shown

    assert run("pause", "eu", "eu") == "paused eu\neu is paused already\n"
    assert "paused" in run("list")
    job = switchyard.get_job(run("run", "eu", "--actors", "errors").strip())
    assert (job.schedule, job.args, job.queue) == ("eu", ("eu",), "exports")
    assert run("resume", "eu").startswith("resumed eu; next ")
    assert run("resume", "eu") == "eu is not paused\n"
    assert run("delete", "eu") == "deleted eu\n"
    assert switchyard.schedules() == []


def test_json_has_it_all(system):
    created = json.loads(run("create", "eu", "export", "@daily", "--args", '["eu"]', "--json"))
    (listed,) = json.loads(run("list", "--json"))["schedules"]
    shown = json.loads(run("show", "eu", "--json"))
    following = json.loads(run("next", "eu", "-n", "2", "--json"))

    assert created["name"] == listed["name"] == shown["name"] == "eu"
    assert (listed["state"], shown["ticks"]) == ("active", [])
    assert datetime.fromisoformat(listed["next_tick_at"]).utcoffset() is not None
    assert len(following["utc"]) == 2
    assert following["utc"][0] == listed["next_tick_at"]


def test_what_comes_next_is_shown_in_utc_and_in_the_zone():
    shown = run("next", "--cron", "30 2 * * *", "--timezone", "Asia/Tokyo", "-n", "3")

    rows = re.findall(r"^\w{3} [\d-]+ 17:30:00 UTC +\w{3} [\d-]+ 02:30:00 JST$", shown, re.MULTILINE)
    assert len(rows) == 3


@pytest.mark.parametrize("zone", ["UTC", "Etc/UTC", "Africa/Abidjan"])
def test_a_zone_that_keeps_utc_needs_no_column_of_its_own(zone):
    first, *rows, note = run("next", "--cron", "30 2 * * *", "--timezone", zone, "-n", "2").splitlines()

    assert first == "UTC"
    assert all(re.fullmatch(r"\w{3} [\d-]+ 02:30:00 UTC", row) for row in rows)
    assert (len(rows), note) == (2, f"cron 30 2 * * *, time zone {zone}")


@pytest.mark.parametrize("verb", ["show", "next", "run", "pause", "resume", "delete"])
def test_a_mistyped_name_is_refused_with_what_was_meant(system, verb):
    switchyard.create_schedule("nightly-export", "export", "@daily", ["eu"])

    assert run(verb, "nightly-exprot", code=1) == (
        "switchyard: no schedule has the name 'nightly-exprot'; did you mean nightly-export?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "nobody"), "no schedule has the name 'nobody'"),
        (("run", "nobody"), "no schedule has the name 'nobody'"),
        (("pause", "nobody"), "no schedule has the name 'nobody'"),
        (("delete", "nobody"), "no schedule has the name 'nobody'"),
        (("next", "nobody"), "no schedule has the name 'nobody'"),
        (("create", "x", "export", "@daily"), "field 'region'"),
        (("create", "", "export", "@daily"), "a name has 1 to 200 printable characters"),
        (("create", "there", "export", "@daily", "--args", '["eu"]'), "a schedule 'there' exists already"),
    ],
)
def test_what_cannot_be_done_is_one_line(system, arguments, says):
    switchyard.create_schedule("there", "export", "@daily", ["eu"])

    (line,) = run(*arguments, code=1).splitlines()

    assert line.startswith("switchyard: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "x", "export", "@daily", "--args", "eu"), "is no JSON"),
        (("create", "x", "export", "@daily", "--args", '{"a": 1}'), "is no JSON list"),
        (("create", "x", "export", "@daily", "--window", "soon"), "write seconds, or a number with s, m, h or d"),
        (("create", "x", "export", "@daily", "--queue", "a b"), "'a b' is no name of a queue"),
        (("create", "x", "export", "@daily", "--catch-up", "some"), "is not one of"),
        (("create", "x", "export", "61 * * * *"), "'CRON': cron expression '61 * * * *': minute 61 is out of range"),
        (("create", "x", "export", "@daily", "--timezone", "Mars"), "'--timezone': 'Mars' is no time zone"),
        (("next", "--cron", "61 * * * *"), "'--cron': cron expression '61 * * * *': minute 61 is out of range"),
        (("next", "--cron", "@daily", "--timezone", "Europe/Berln"), "; did you mean Europe/Berlin"),
        (("next", "there", "--timezone", "Mars"), "'--timezone': 'Mars' is no time zone"),
        (("next",), "give the NAME of a schedule, or an expression"),
        (("next", "x", "--cron", "@daily"), "give the NAME of a schedule, or an expression"),
    ],
)
def test_what_is_typed_wrongly_is_a_usage_error(arguments, says):
    assert says in run(*arguments, code=2)


def test_an_actor_that_nobody_imported_is_told_with_the_way_out(system):
    switchyard.create_schedule("far", "elsewhere", "@daily")

    assert "does not know its actor 'elsewhere'; import the module" in run("run", "far", "--actors", "errors", code=1)
    assert "no_such_module cannot be imported" in run("run", "far", "--actors", "no_such_module", code=2)


def test_a_schedule_whose_actor_no_worker_knows_shows_as_overdue(system):
    switchyard.create_schedule("far", "elsewhere", "@daily")
    system.rows("UPDATE switchyard.schedule SET due_at = now() - interval '1 hour' RETURNING 1")

    assert "overdue: no living worker knows elsewhere" in run("list")
