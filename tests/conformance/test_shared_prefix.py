"""Two systems, each with a ledger of its own, that share a broker and a BROKER_PREFIX are told so; no others are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

import brokers
from cli import main
from ledger import sent
from middleware.log_context import configure_structlog
from settings import Settings
from tests.conformance.system import System
from tests.rig.waiting import wait_until

SAID = "another ledger uses the same broker and BROKER_PREFIX"


@pytest.fixture
def make(make_settings: Callable[..., Settings], broker_name: str) -> Iterator[Callable[..., System]]:
    """Running systems: ``system = make()``; with the prefix of another one ``make(broker_prefix=...)``; as another process of one that is
    there ``make(of=system)``."""
    if broker_name == "postgres":
        pytest.skip("its rows are the messages: there is nothing to share")
    made: list[System] = []

    def make(of: System | None = None, **fields: object) -> System:
        settings = make_settings(**({"sweep": 0.2} | fields)) if of is None else of.settings.model_copy(update=fields)
        made.append(System(settings).start(threads=2))
        return made[-1]

    yield make
    for system in reversed(made):
        system.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Any]]:
    configure_structlog()
    return lambda: [record for record in caplog.records if SAID in record.getMessage()]


def run(system: System, *words: str) -> tuple[int, str]:
    """The exit code of a command about a system, and what it says, with single spaces."""
    settings = system.settings
    variables = {
        name.upper(): getattr(settings, name).get_secret_value() for name in ("database_url", "redis_url", "rabbitmq_url")
    }
    variables |= {"BROKER": settings.broker, "BROKER_PREFIX": settings.broker_prefix}
    result = CliRunner().invoke(main, words, env=variables)
    return result.exit_code, " ".join(result.stdout.split())


def answer(system: System, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a command about a system, and what it says with ``--json``."""
    code, text = run(system, *words, "--json")
    return code, json.loads(text)


def shared_with(system: System, *words: str) -> list[str]:
    """The other ledgers that a command shows."""
    _, value = answer(system, *words)
    (found,) = [broker["shared_with"] for broker in value["brokers"] if broker["name"] == system.settings.broker]
    return list(found)


def name_of(system: System) -> str:
    """The name of its database."""
    return system.settings.database_url.get_secret_value().rpartition("/")[2].partition("?")[0]


def beats(system: System, count: int) -> None:
    """Wait until the keeper that watches for a system has said so this often since now."""
    transport = brokers.make_transport(system.settings.broker, system.settings)
    seen: set[tuple[str, int]] = set()

    def look() -> bool:
        for keeper in system.database.run(sent.keepers).values():
            presence = transport.presence(keeper)
            if presence is not None:
                seen.add((keeper, presence.beat))
        return len(seen) > count

    wait_until(look, 60, lambda: f"it goes on: {seen}")
    transport.close()


def test_two_ledgers_under_one_prefix_are_told_of_each_other_until_one_ends(make: Callable[..., System], lines: Any) -> None:
    one = make()
    other = make(broker_prefix=one.settings.broker_prefix)

    wait_until(lambda: len(lines()) >= 2, 60, "both say so")
    texts = [record.getMessage() for record in lines()]
    for system, foreign in ((one, other), (other, one)):
        (text,) = [text for text in texts if name_of(system) in text.partition("'others'")[0]]
        assert name_of(foreign) in text.partition("'others'")[2]
        assert f"'prefix': '{one.settings.broker_prefix}'" in text
        assert f"'broker': '{one.settings.broker}'" in text
        assert "a BROKER_PREFIX of its own" in text
    assert {record.levelname for record in lines()} == {"ERROR"}

    for system, foreign in ((one, other), (other, one)):
        for words in (("status",), ("broker", "status")):
            wait_until(lambda: bool(shared_with(system, *words)), 30, "it is shown")  # noqa: B023
            (shown,) = shared_with(system, *words)
            assert name_of(foreign) in shown
    code, value = answer(one, "status")
    (problem,) = [problem for problem in value["problems"] if problem["kind"] == "prefix_shared"]
    assert code == 1
    for word in (one.settings.broker, one.settings.broker_prefix, name_of(other)):
        assert word in problem["text"]
    assert "a BROKER_PREFIX of its own" in problem["advice"]

    for words in (("status",), ("broker", "status")):
        assert f"under the same BROKER_PREFIX, {one.settings.broker_prefix}: " in run(one, *words)[1]

    # Jobs run all the same, though they may wait for the watch.
    one.activate()
    message = one.jobs.echo.send("still")
    assert one.ended(message, 60).state == "completed"

    other.stop()
    wait_until(lambda: not shared_with(one, "status"), 60, "it is over")
    assert answer(one, "status")[0] == 0
    assert len(lines()) == 2


def test_processes_of_one_ledger_that_come_and_go_are_never_told(make: Callable[..., System], lines: Any) -> None:
    one = make()
    second = make(of=one)
    beats(one, 5)
    for system in (one, second):
        # Whoever watches, it is one of them.
        system.stop()
        beats(one, 8)
        assert shared_with(one, "status") == []
        system.start(threads=2)
        beats(one, 5)

    assert lines() == []


def test_ledgers_with_prefixes_of_their_own_are_not_told(make: Callable[..., System], lines: Any) -> None:
    one, other = make(), make()
    beats(one, 8)
    beats(other, 8)

    assert shared_with(one, "status") == shared_with(other, "broker", "status") == []
    assert lines() == []


def test_what_waited_under_one_prefix_is_published_again_under_another(make: Callable[..., System]) -> None:
    one = make(lease=60.0)
    beats(one, 2)
    # Its epoch is known when a job has run.
    one.ended(one.jobs.echo.send("first"))
    beats(one, 2)
    one.stop()
    messages = [one.jobs.echo.send(number) for number in range(5)]
    wait_until(
        lambda: not one.rows("SELECT 1 FROM switchyard.job WHERE state = 'pending' AND publish_count = 0"), 30, "all are sent"
    )

    changed = make(of=one, broker_prefix=f"{one.settings.broker_prefix}x")

    # Long before a lease is over.
    assert {changed.ended(message, 30).state for message in messages} == {"completed"}
