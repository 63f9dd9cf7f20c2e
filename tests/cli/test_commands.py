"""The commands as somebody types them: help, ``migrate``, and what they say when something is wrong."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import psycopg
import pytest
from click.testing import CliRunner, Result

import migrations
import switchyard
from cli import main
from cli.choosing import confirm
from cli.commands import up
from cli.refusals import database_refusal
from errors import LedgerNotMigrated, LedgerUnavailable
from ledger.control import CancelCount
from settings import load

#: Nobody listens there.
NOWHERE = "postgresql://postgres@127.0.0.1:9/nothing"


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main, arguments, env=variables)


def refused(result: Result) -> str:
    """The one line of a refusal, which is all there is to see."""
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line


def test_the_help_names_every_command():
    result = run("--help")

    assert result.exit_code == 0
    for command in ("migrate", "keeper", "demo", "up"):
        assert re.search(rf"^  {command} [^.]+\.$", result.stdout, re.MULTILINE)


def test_every_command_has_help():
    for name in main.commands:
        assert run(name, "--help").exit_code == 0


def test_it_says_its_version():
    assert run("--version").stdout.startswith("switchyard, version ")


def test_an_empty_database_is_migrated_and_one_that_is_not_is_left_alone(empty_database_url: str):
    first = run("migrate", DATABASE_URL=empty_database_url)
    second = run("migrate", DATABASE_URL=empty_database_url)

    assert (first.exit_code, first.stdout) == (0, f"migrated the ledger: empty -> {migrations.HEAD}\n")
    assert (second.exit_code, second.stdout) == (0, f"the ledger is at {migrations.HEAD} already\n")


def test_a_database_of_a_newer_version_is_left_alone(database_url: str):
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE switchyard.alembic_version SET version_num = '9999'")

    result = run("migrate", DATABASE_URL=database_url)

    assert (result.exit_code, result.stdout) == (0, "the ledger is at 9999 already\n")


def test_a_database_that_may_not_be_changed_is_reported(database_url: str):
    with psycopg.connect(database_url) as connection:
        connection.execute("DROP SCHEMA switchyard CASCADE")
        connection.execute("DROP SCHEMA IF EXISTS switchyard_jobs CASCADE")
    readonly = f"{database_url}?options=-c%20default_transaction_read_only%3Don"

    assert "cannot migrate: cannot execute CREATE SCHEMA in a read-only" in refused(run("migrate", DATABASE_URL=readonly))


@pytest.mark.parametrize("command", ["migrate", "demo", "up"])
def test_a_database_that_does_not_answer_is_reported_in_one_line(command: str, tmp_path: Path):
    line = refused(run(command, DATABASE_URL=NOWHERE, DATA_DIR=str(tmp_path)))

    assert line == "switchyard: DATABASE_URL: nobody answers at 127.0.0.1:9 (Connection refused)"


def test_a_database_that_does_not_exist_is_named_with_the_command_that_makes_it(postgres_url: str):
    server = urlsplit(postgres_url)
    url = f"postgresql://{server.netloc}/no_such_database"

    line = refused(run("migrate", DATABASE_URL=url))

    port = f" -p {server.port}" if server.port not in (None, 5432) else ""
    place = f"{server.hostname}:{server.port or 5432}"
    command = f"createdb -h {server.hostname}{port} -U {server.username} no_such_database"
    assert line == f'switchyard: DATABASE_URL: Postgres at {place} has no database "no_such_database"; create it: {command}'


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('connection to server at "::1", port 5432 failed: FATAL:  role "app" does not exist', '::1:5432 has no user "app"'),
        (
            'connection to server at "db" (10.0.0.7), port 6000 failed: FATAL:  password authentication failed for user "app"',
            "Postgres at db:6000 refused the login; check user and password",
        ),
        ('connection to server on socket "/run/x" failed: No such file', "nobody answers at /run/x (No such file)"),
        ('connection to server at "db", port 1 failed: FATAL:  too many connections', "at db:1 refused: too many connections"),
        ("failed to resolve host 'db': Name or service not known", "DATABASE_URL: failed to resolve host 'db'"),
    ],
)
def test_what_postgres_says_is_told_as_a_sentence_about_the_variable(said: str, shown: str):
    error = LedgerUnavailable(f"connection failed: {said}\n\tIs the server running on that host?")

    found = str(database_refusal(error, load(database_url="postgresql://me:hunter2@db/app")))

    assert found.startswith("DATABASE_URL: ")
    assert shown in found
    assert "\n" not in found
    assert "hunter2" not in found


def test_a_default_that_was_tried_is_told_apart_from_a_value_that_was_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    error = LedgerUnavailable("failed to resolve host 'db'")

    found = str(database_refusal(error, load()))

    assert found.startswith("DATABASE_URL: it is not set, so the default was tried: failed")
    assert found.endswith("Where `switchyard up` runs, paste the lines that it printed instead")


@pytest.mark.parametrize("command", ["migrate", "demo", "up"])
def test_a_database_url_that_cannot_be_read_is_a_wrong_setting(command: str, tmp_path: Path):
    line = refused(run(command, DATABASE_URL="postgresql://me@db:abc/x", DATA_DIR=str(tmp_path)))

    assert line.startswith("switchyard: DATABASE_URL: the port has to be a number")


@pytest.mark.parametrize("command", ["migrate", "demo", "up"])
def test_a_wrong_setting_is_named(command: str):
    assert refused(run(command, BROKER="kafka")).startswith("switchyard: BROKER: ")


@pytest.mark.parametrize("command", ["demo", "up"])
def test_the_stub_broker_has_no_stack(command: str, tmp_path: Path):
    assert "BROKER: stub has no workers" in refused(run(command, BROKER="stub", DATA_DIR=str(tmp_path)))


@pytest.mark.parametrize("command", ["demo", "up"])
def test_a_rabbitmq_that_does_not_answer_is_named(command: str, database_url: str, tmp_path: Path):
    url = "amqp://guest:guest@127.0.0.1:9/%2F"
    result = run(command, BROKER="rabbitmq", RABBITMQ_URL=url, DATABASE_URL=database_url, DATA_DIR=str(tmp_path))

    said = "RABBITMQ_URL: nobody answers at 127.0.0.1:9 (connection refused); BROKER=rabbitmq needs it"
    assert refused(result) == f"switchyard: {said}"


def test_a_login_that_rabbitmq_refuses_is_named_without_the_password(database_url: str, rabbitmq_url: str, tmp_path: Path):
    server = urlsplit(rabbitmq_url)
    url = f"amqp://nobody:hunter2@{server.hostname}:{server.port or 5672}/%2F"
    result = run("up", BROKER="rabbitmq", RABBITMQ_URL=url, DATABASE_URL=database_url, DATA_DIR=str(tmp_path))

    said = f"RABBITMQ_URL: {server.hostname}:{server.port or 5672} refused the login of 'nobody'; BROKER=rabbitmq needs it"
    assert refused(result) == f"switchyard: {said}"


def test_a_redis_that_does_not_answer_is_named(database_url: str, tmp_path: Path):
    result = run("up", BROKER="redis", REDIS_URL="redis://127.0.0.1:9/0", DATABASE_URL=database_url, DATA_DIR=str(tmp_path))

    assert re.match("switchyard: REDIS_URL: .*127.0.0.1:9.*refused; BROKER=redis needs it$", refused(result))


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")

    assert "DATA_DIR: cannot use" in refused(run("up", DATA_DIR=str(tmp_path / "file" / "var")))


def test_actors_that_cannot_be_imported_are_found_in_the_workers_log(database_url: str, tmp_path: Path):
    result = run("up", "--actors", "no_such_module", DATABASE_URL=database_url, DATA_DIR=str(tmp_path))

    assert result.exit_code == 1
    assert "switchyard: worker ended with exit code" in result.stderr
    assert "No module named 'no_such_module'" in result.stderr
    assert not list((tmp_path / "run").iterdir())


def test_up_takes_several_modules():
    (option,) = [parameter for parameter in up.params if parameter.name == "actors"]

    assert option.multiple


def test_a_drain_refuses_a_queue_that_cannot_exist():
    result = run("broker", "drain", "redis", "--to", "postgres", "--queue", "my queue")

    assert result.exit_code == 2
    assert "'my queue' is no name of a queue" in result.stderr


def test_a_send_that_failed_says_what_became_of_its_job():
    message = dramatiq.Message(queue_name="default", actor_name="pay", args=(), kwargs={}, options={})

    unknown = str(LedgerUnavailable("connection failed: refused\n\tIs the server running?", message=message))
    refused = LedgerNotMigrated(None, "0003")
    refused.message = message

    assert unknown.startswith(
        f"the ledger (Postgres) is not available: refused; whether job {message.message_id} is stored is unknown"
    )
    assert str(refused).endswith(f"run `switchyard migrate`; job {message.message_id} is not stored")


#: Commands that ask the ledger, each with what it needs to be one that could be done.
ASKING = {
    "jobs": ["jobs"], "show": ["show", "aaaaaaaa"], "cancel": ["cancel", "aaaaaaaa"], "cancel all": ["cancel", "--all", "--yes"],
    "pause": ["pause", "--queue", "default"], "resume": ["resume", "--queue", "default"], "paused": ["paused"],
    "dead list": ["dead", "list"], "dead groups": ["dead", "groups"], "dead replay": ["dead", "replay", "--all", "--yes"],
    "dead discard": ["dead", "discard", "--all", "--yes"], "dead show": ["dead", "show", "aaaaaaaa"],
    "batches list": ["batches", "list"], "batches show": ["batches", "show", "aaaaaaaa"], "limits list": ["limits", "list"],
    "limits set": ["limits", "set", "--queue", "default", "--concurrency", "1"], "limits reset": ["limits", "reset", "echo"],
    "schedules list": ["schedules", "list"], "schedules show": ["schedules", "show", "x"], "schedules pause": ["schedules", "pause", "x"],
    "broker status": ["broker", "status"], "broker drain": ["broker", "drain", "postgres", "--to", "redis"], "key": ["key", "a", "k"],
    "workers": ["workers"], "edit": ["edit", "aaaaaaaa-0000-4000-8000-000000000001", "--priority", "1"],
}  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that is not configured yet, as one that somebody has just started."""
    monkeypatch.setattr(switchyard, "_configured", None)
    yield
    if switchyard._configured is not None:
        switchyard._configured[2].close()


@pytest.mark.parametrize("name", ASKING)
def test_a_command_without_its_database_says_so_in_a_line_with_the_way_out(alone, name: str):
    url = "postgresql://me:hunter2@127.0.0.1:9/nothing"
    line = refused(run(*ASKING[name], DATABASE_URL=url))

    assert line == "switchyard: DATABASE_URL: nobody answers at 127.0.0.1:9 (Connection refused)"


@pytest.mark.parametrize("name", ASKING)
def test_a_command_on_a_database_that_is_not_migrated_says_so_in_a_line(
    alone, name: str, empty_database_url: str, redis_url: str
):
    line = refused(run(*ASKING[name], DATABASE_URL=empty_database_url, REDIS_URL=redis_url))

    assert line.endswith("run `switchyard migrate`")


@pytest.mark.parametrize("name", ASKING)
def test_a_wrong_setting_is_named_by_every_command(alone, name: str, database_url: str):
    assert refused(run(*ASKING[name], DATABASE_URL=database_url, LEASE="soon")).startswith("switchyard: LEASE: ")


def test_ctrl_c_has_the_exit_code_that_shells_know_it_by(alone, database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(switchyard, "paused", lambda: signal.raise_signal(signal.SIGINT))

    result = run("paused", DATABASE_URL=database_url)

    assert (result.exit_code, result.stdout) == (130, "")


def test_ctrl_c_at_a_question_is_ctrl_c(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt):
        confirm("Cancel them?", yes=False)


@pytest.mark.parametrize(
    ("answer", "code", "said"), [("n\n", 1, "nothing was done"), ("", 2, "say --yes"), ("y\n", 0, "cancelled 0")]
)
def test_a_question_may_be_answered_by_a_pipe_and_does_nothing_without_an_answer(
    alone, database_url: str, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, said: str
):
    done = []

    def cancel_many(**options: Any) -> CancelCount:
        done.append(options.get("dry_run", False))
        return CancelCount(cancelled=1 if options.get("dry_run") else 0, asked=0)

    monkeypatch.setattr(switchyard, "cancel_many", cancel_many)

    result = CliRunner().invoke(main, ["cancel", "--all"], input=answer, env={"DATABASE_URL": database_url})

    assert (result.exit_code, said in result.output) == (code, True), result.output
    assert done == ([True, False] if code == 0 else [True])
