"""``docs/reference/cli.md`` is what the parser says, what lists has ``--json``, and its objects have the names of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import click
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

import switchyard
from cli import main
from runtime.secrets import new_key
from settings import Settings
from switchyard import group
from tests.cli_reference import JSON_NAMES, PAGE, commands, page
from tests.conformance import control_jobs
from tests.conformance.system import System

HOUR = 3_600_000
#: Commands that print nothing for scripts: they run until they are ended, do one thing, or print what a script reads as it is.
PLAIN = {
    "broker drain", "demo", "edit", "keeper", "limits reset", "limits set", "migrate", "pause", "resume", "schedules delete",
    "schedules pause", "schedules resume", "schedules run", "secrets new-key", "up", "worker",
}  # fmt: skip
LEAVES = {" ".join(path): command for path, command in commands() if not isinstance(command, click.Group)}


def test_the_page_is_what_the_parser_says():
    assert PAGE.read_text() == page(), "run `make reference`"


def test_every_command_is_for_scripts_or_said_not_to_be():
    with_json = {name for name, command in LEAVES.items() if any(option.name == "as_json" for option in command.params)}

    assert with_json.isdisjoint(PLAIN)
    assert with_json | PLAIN == set(LEAVES)
    assert {name.removesuffix(" ID") for name in JSON_NAMES} == with_json


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("columns", [80, 140])
def test_help_is_there_fits_and_explains_every_option(name, columns):
    shown = CliRunner().invoke(main, [*name.split(), "--help"], env={"COLUMNS": str(columns)}, terminal_width=columns)

    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= columns
    options = [option for option in LEAVES[name].params if isinstance(option, click.Option)]
    assert all(option.help and option.help.endswith((".", "]", "/hour.")) for option in options)
    # Where it takes a value, a word says what kind; TEXT says nothing.
    assert not re.search(r"^ +-.* TEXT", shown.stdout, re.MULTILINE)


@pytest.fixture
def run(settings: Settings) -> Iterator[Callable[..., dict[str, object]]]:
    """Runs a command with ``--json`` on a system that has some of everything, and gives what it printed."""
    system = System(settings.model_copy(update={"secret_keys": SecretStr(new_key())}), declare=control_jobs.declare)
    jobs = system.jobs
    waiting = jobs.echo.send_with_options(args=("k",), delay=HOUR, idempotency_key="k")
    dead = jobs.echo.send_with_options(args=("k",), delay=HOUR)
    system.rows(
        "UPDATE switchyard.job SET state = 'dead', dead_reason = 'expired', finished_at = now(), next_publish_at = NULL"
        " WHERE message_id = %s RETURNING 1",
        dead.message_id,
    )
    batch = group([jobs.echo.message("k")]).run()
    switchyard.create_schedule("daily", "echo", "@daily", ["k"])
    switchyard.pause(queue="default")
    words = {
        "batches show": [batch.id], "cancel": ["--queue", "other", "--yes"], "cancel ID": [waiting.message_id],
        "dead discard": ["--all", "--yes"], "dead discard ID": [dead.message_id, "--yes"], "dead replay": ["--all", "--yes"],
        "dead replay ID": [dead.message_id], "dead show": [dead.message_id], "key": ["echo", "k"], "show": [waiting.message_id],
        "schedules create": ["weekly", "echo", "@weekly", "--args", '["k"]'], "schedules next": ["daily"], "schedules show": ["daily"],
    }  # fmt: skip
    variables = {
        "DATABASE_URL": settings.database_url.get_secret_value(), "REDIS_URL": settings.redis_url.get_secret_value(),
        "BROKER": settings.broker,
    }  # fmt: skip

    def run(name: str) -> dict[str, object]:
        words_here = [*name.removesuffix(" ID").split(), *words.get(name, []), "--json"]
        result = CliRunner().invoke(main, words_here, env=variables)
        # One object on one line, and nothing else beside it.
        (line,) = result.stdout.splitlines()
        assert line.isascii()
        found: dict[str, object] = json.loads(line)
        return found

    yield run
    system.close()


@pytest.mark.parametrize("name", JSON_NAMES)
def test_what_is_printed_for_scripts_has_the_names_of_the_page(run, name):
    found = run(name)

    missing = set(JSON_NAMES[name]) - set(found)
    assert not missing
    # Where everything is in the object itself, the page has the most important alone.
    assert set(found) == set(JSON_NAMES[name]) or name in ("batches show", "dead show", "schedules create", "schedules show")
    times = re.findall(r'"\d{4}-\d\d-\d\d[^"]*"', json.dumps(found))
    assert all(re.fullmatch(r'"[\d-]+T[\d:.]+\+00:00"', time) for time in times), times
