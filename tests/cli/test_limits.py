"""``switchyard limits``: what an operator sees and types."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import dramatiq
import pytest
from click.testing import CliRunner, Result

from cli import main
from settings import Settings
from tests.conformance.system import System


def declare(broker: dramatiq.Broker) -> None:
    @dramatiq.actor(broker=broker, rate_limit="100/minute", concurrency=10)
    def mail() -> None:
        return None


@pytest.fixture
def run(settings: Settings) -> Iterator[Callable[..., Result]]:
    """Runs a command on a ledger to which a worker has declared its limits."""
    system = System(settings.model_copy(update={"queue_concurrency": {"exports": 1}}), declare)
    system.database.run(lambda connection: system.broker.limits.declare(connection, ["exports"]))

    def run(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["limits", *words], env={"COLUMNS": "200"})
        assert (result.exit_code, type(result.exception) in (type(None), SystemExit)) == (code, True), result.output
        return result

    yield run
    system.close()


def test_limits_are_listed(run):
    table = run("list").stdout

    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines == [
        "of limit keys used waiting next free",
        "queue exports 1 at once 0 0 0 now",
        "mail 10 at once 0 0 0 now",
        "mail 100/minute, burst 2 0 0 0 now",
    ]
    found = json.loads(run("list", "--json").stdout)["limits"]
    assert [(entry["kind"], entry["name"], entry["overridden"]) for entry in found] == [
        ("queue", "exports", False),
        ("concurrency", "mail", False),
        ("rate", "mail", False),
    ]
    assert found[2]["in_force"] == {"amount": 100, "period": 60.0, "burst": 2, "rate": "100/minute"}


def test_a_limit_is_set_shown_beside_the_declared_one_and_reset(run):
    assert run("set", "mail", "--rate", "5/30s", "--burst", "3", "--concurrency", "4").stdout.splitlines() == [
        "mail: 4 at once",
        "mail: 5/30s, burst 3",
    ]

    assert "5/30s, burst 3  100/minute, burst 2" in run("list").stdout
    assert run("reset", "mail").stdout == "mail: as declared\n"
    assert run("reset", "mail").stdout == "mail: nothing else was in force\n"
    assert "5/30s" not in run("list").stdout


def test_a_queue_gets_a_limit_that_no_setting_names(run):
    assert run("set", "--queue", "images", "--concurrency", "2").stdout == "queue images: 2 at once\n"
    assert "queue images 2 at once nothing" in " ".join(run("list").stdout.split())
    assert run("reset", "--queue", "images").stdout == "queue images: as declared\n"
    assert "images" not in run("list").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "mail"], "give a rate or concurrency"),
        (["set", "--concurrency", "2"], "say whose: an ACTOR, or --queue NAME"),
        (["set", "mail", "--queue", "exports", "--concurrency", "2"], "say whose"),
        (["set", "mail", "--rate", "often"], "is no rate; write a number and a period"),
        (["set", "mail", "--burst", "3"], "burst goes with a rate"),
        (["set", "mail", "--concurrency", "0"], "no whole number from 1"),
        (["set", "--queue", "exports", "--rate", "1/second"], "a queue has no rate"),
        (["set", "stranger", "--concurrency", "2"], "no worker or sender has declared an actor 'stranger' with concurrency"),
        (["set", "mial", "--concurrency", "2"], "'mial' with concurrency: its jobs are not counted; did you mean mail?"),
        (["set", "--queue", "no queue", "--concurrency", "2"], "is no name of a queue"),
        (["reset"], "say whose"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(run, words, said):
    assert said in run(*words, code=2).output
