"""Every table of every command, with long names in it, on a narrow, a usual and a wide terminal, and in a pipe: words stay whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner

import switchyard
from cli import main
from settings import Settings
from switchyard import group
from tests.conformance import control_jobs
from tests.conformance.system import System

HOUR = 3_600_000
QUEUE, ACTOR = "exports_of_the_whole_night", "reconcile_payments_of_yesterday"
WORKER = "worker-0.eu-west-1.internal:29546:ad7b6991"
#: Each with the headings that its table may have, more or fewer of them.
TABLES = {
    "jobs": "id state actor queue age waits for",
    "dead list": "id died actor reason group error",
    "dead groups": "jobs group actor reason last first error",
    "batches list": "batch name state jobs done dead cancelled age",
    "limits list": "of limit declared keys used waiting next free",
    "paused": "paused since for jobs waiting",
    "schedules list": "name actor cron time zone last next state",
    "schedules show daily": "tick made job state",
    "workers": "worker version host pid busy heartbeat up broker state queues",
    "broker status": "broker waiting triggers oldest declare consume epoch carries",
    "status": "queue waiting running retrying scheduled limited dead workers oldest state",
}


@pytest.fixture
def system(settings: Settings) -> Iterator[System]:
    """A system that has some of everything, under names as long as people give them."""
    system = System(settings.model_copy(update={"broker": "postgres"}), declare=control_jobs.declare)
    for _ in range(3):
        system.jobs.echo.send_with_options(args=("k",), delay=HOUR)
    system.rows("UPDATE switchyard.job SET queue = %s, actor = %s RETURNING 1", QUEUE, ACTOR)
    system.rows(
        "UPDATE switchyard.job SET state = 'dead', dead_reason = 'result_unstorable', finished_at = now(), next_publish_at = NULL,"
        " error_type = 'ValueError', error = repeat('no card ', 30) WHERE id = (SELECT max(id) FROM switchyard.job) RETURNING 1"
    )
    system.rows(
        "UPDATE switchyard.job SET wait_reason = 'concurrency', blocked_on = actor"
        " WHERE id = (SELECT min(id) FROM switchyard.job) RETURNING 1"
    )
    group([system.jobs.echo.message("k")]).run()
    switchyard.create_schedule("daily", "echo", "@daily", ["k"], timezone="Europe/Berlin")
    system.rows(
        "INSERT INTO switchyard.tick (schedule, tick_at, message_id, error) VALUES ('daily', now(), gen_random_uuid(), NULL),"
        " ('daily', now() - interval '1 day', NULL, repeat('no ', 30)) RETURNING 1"
    )
    switchyard.pause(queue=QUEUE)
    switchyard.set_limit(queue=QUEUE, concurrency=3)
    system.rows(
        "INSERT INTO switchyard.worker (id, host, pid, broker, queues, consumes, threads, lease_seconds)"
        " VALUES (%s, 'worker-0.eu-west-1.internal', 29546, 'postgres', %s, '{postgres}', 4, 30) RETURNING 1",
        WORKER, [QUEUE, "default", "other"],
    )  # fmt: skip
    yield system
    system.close()


@pytest.fixture
def run(system: System) -> Callable[[str, int | None], list[str]]:
    def run(words: str, columns: int | None) -> list[str]:
        variables = {"DATABASE_URL": system.settings.database_url.get_secret_value(), "BROKER": "postgres"}
        result = CliRunner().invoke(main, words.split(), env=variables | {"COLUMNS": None if columns is None else str(columns)})
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    return run


def test_words_stay_whole_and_nothing_is_too_wide_in_any_table(run):
    for words, headings in TABLES.items():
        named = headings.split()
        for columns in (60, 80, 200):
            lines = run(words, columns)

            assert max(map(len, lines)) <= columns, (words, columns)
            assert not any(line != line.rstrip() for line in lines)
            head = next(line for line in lines if line.startswith(named[0] + " ") and set(line.split()) <= set(named))
            # A heading that was broken would go on in the line below it.
            assert not {piece for name in named for piece in broken(name)} & set(head.split()), (words, columns, head)
            text = "\n".join(lines)
            assert not re.search(r"^ {20,}\S{1,3}$", text, re.MULTILINE), (words, columns, text)


def broken(name: str) -> set[str]:
    """The beginnings of a word that are none of its own."""
    return {name[:length] for length in range(4, len(name))} if len(name) > 4 else set()


def test_names_are_whole_at_any_width(run):
    for columns in (60, 80, 200):
        assert any(QUEUE in line for line in run("jobs", columns))
        assert any(ACTOR in line for line in run("jobs", columns))
        assert any(ACTOR in line for line in run("dead list", columns))
        assert any(line.startswith(QUEUE + " ") for line in run("status", columns))
        assert any(line.startswith(WORKER) for line in run("workers", columns))


def test_figures_that_count_nothing_need_no_room_and_the_others_stand_below(run):
    narrow = run("status", 60)

    (place,) = [number for number, line in enumerate(narrow) if line.startswith(QUEUE)]
    assert "retrying" not in "\n".join(narrow)
    assert narrow[place + 1] == "    scheduled: 2  limited: 1  state: paused"
    assert any(re.match(r"queue +waiting +running +retrying +scheduled +limited +dead", line) for line in run("status", 200))


@pytest.mark.parametrize("words", TABLES)
def test_a_pipe_gets_each_row_in_a_line(run, words):
    lines = run(words, None)

    # What has no room stands below its row, by its name.
    assert not any(re.match(r" {4}\w+: ", line) for line in lines)
