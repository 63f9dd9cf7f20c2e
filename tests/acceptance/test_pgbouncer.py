"""Everything through a real PgBouncer in transaction mode, with fewer sessions than there are clients: each way of a job, what kills
workers, PgBouncer's own death, the commands; nothing of ours stays in a session, and nothing goes on where PGBOUNCER does not say so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack

import psycopg
import pytest
from click.testing import CliRunner
from dramatiq import Message

import migrations
import switchyard
from cli import main
from errors import LedgerUnavailable
from ledger.database import Database, require_migrated
from ledger.pooler import ADVICE
from ledger.states import State
from settings import variables
from tests.acceptance.jobs import TABLE
from tests.acceptance.pooled_jobs import declare
from tests.conformance.system import System
from tests.rig.pgbouncer import ADVICE as INSTALL
from tests.rig.pgbouncer import PrivatePgBouncer, find_binary
from tests.rig.postgres import PrivatePostgres
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.skipif(find_binary() is None, reason=INSTALL)

WORKER = "tests.acceptance.pooled_worker"
#: Sessions that all clients of one database share here.
POOL = 4
#: What PgBouncer itself sets in a session, to what the client at hand has told it.
TRACKED = ("application_name", "client_encoding", "DateStyle", "IntervalStyle", "standard_conforming_strings", "TimeZone")


@pytest.fixture(scope="module")
def bouncers(postgres_url):
    """Starts PgBouncers, each once: ``bouncers("pool_mode = session")``."""
    started = {}

    def start(*config):
        if config not in started:
            started[config] = PrivatePgBouncer(postgres_url, pool=POOL, config=("max_client_conn = 500", *config))
        started[config].start()
        return started[config]

    yield start
    for bouncer in started.values():
        bouncer.stop()


@pytest.fixture
def bouncer(bouncers):
    """One with the defaults of its version."""
    return bouncers()


@pytest.fixture
def settings(settings, bouncer):
    """The way through PgBouncer."""
    url = bouncer.through(settings.database_url.get_secret_value())
    return settings.model_copy(update={"database_url": type(settings.database_url)(url), "pgbouncer": True})


@pytest.fixture
def system(settings):
    system = System(settings, declare)
    system.database.run(lambda connection: connection.execute(TABLE))
    yield system
    system.close()


def traces(system, what):
    return system.rows("SELECT count(*) FROM effect WHERE what = %s", what)[0][0]


def states(system):
    """How many jobs there are, by state; the clock's left out."""
    return dict(system.rows("SELECT state, count(*) FROM switchyard.job WHERE actor <> 'every_second' GROUP BY state"))


def traces_in_sessions(url):
    """Whatever a client has left in the sessions of a pool, after all of it were taken at once."""
    with ExitStack() as stack:
        sessions = {}
        for _ in range(POOL):
            connection = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
            (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone()
            sessions[pid] = connection.execute(
                """
                SELECT 'prepared ' || name FROM pg_prepared_statements
                UNION ALL SELECT 'listens to ' || channel FROM pg_listening_channels() AS channel
                UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
                UNION ALL SELECT 'locks ' || objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
                UNION ALL SELECT name || ' = ' || setting FROM pg_settings WHERE source = 'session' AND name <> ALL (%s)
                """,
                [list(TRACKED)],
            ).fetchall()
        assert len(sessions) == POOL
    return [what for left in sessions.values() for (what,) in left]


def test_every_way_of_a_job_leads_through_it(system, settings, worker_process, broker_name):
    jobs, url = system.jobs, settings.database_url.get_secret_value()
    contacts = settings.data_dir / "storage" / "contacts.csv"
    contacts.parent.mkdir(parents=True)
    contacts.write_text("email,name\n" + "".join(f"person{n}@example.com,Person {n}\n" for n in range(1_200)))
    switchyard.pause(queue="aside")
    worker_process(WORKER, "actors", supervised=True, threads=8)

    completed = {
        "one": jobs.quick.send(1),
        "later": jobs.quick.send_with_options(args=(2,), delay=400),
        "again": jobs.fails_first.send(),
        "in one commit": jobs.charges.send(),
        "an import": system.broker.enqueue(Message("imports", "import_csv", (), {"source": "contacts.csv"}, {})),
    }
    with psycopg.connect(url, prepare_threshold=None) as connection, switchyard.enlist(connection):
        completed["enlisted"] = jobs.quick.send(3)
    keyed = [jobs.quick.send_with_options(args=(4,), idempotency_key="key") for _ in range(2)]
    many = switchyard.enqueue_many(jobs.quick.message(n) for n in range(300))
    slots = switchyard.enqueue_many(jobs.one_at_a_time.message("ada") for _ in range(12))
    rated = switchyard.enqueue_many(jobs.measured.message() for _ in range(3))
    whole = switchyard.group([jobs.quick.message(n) for n in range(5)], on_success=jobs.traced.message()).run()
    last = switchyard.pipeline([jobs.quick.message(8), jobs.quick.message()]).run().messages[-1]
    held, endless = jobs.aside.send(), jobs.runs_on.send()
    wait_until(lambda: traces(system, "runs on"), 60, "the endless one runs")
    assert switchyard.cancel(endless.message_id)

    ended = {name: system.ended(message) for name, message in completed.items()}
    assert {name: job.state for name, job in ended.items()} == dict.fromkeys(completed, State.COMPLETED)
    assert [ended[name].result for name in ("one", "later", "again", "in one commit", "enlisted")] == [1, 2, 2, "charged", 3]
    assert ended["an import"].result["inserted"] == 1_200
    assert system.ended(endless).state is State.CANCELLED
    assert keyed[0].message_id == keyed[1].message_id
    for message in (*many, *slots, *rated, *keyed, last):
        assert system.ended(message).state is State.COMPLETED
    wait_until(lambda: traces(system, "ran") == 1, 30, "the group's callback has run")
    assert switchyard.batch(whole.id).total == 5
    alternately = [what for (what,) in system.rows("SELECT what FROM effect WHERE what IN ('began', 'ended') ORDER BY at")]
    assert alternately == ["began", "ended"] * 12
    (gap,) = system.rows(
        "SELECT min(gap) FROM (SELECT at - lag(at) OVER (ORDER BY at) gap FROM effect WHERE what = 'measured') g"
    )
    # Two a second, less what a busy machine may be late with a trace.
    assert gap[0].total_seconds() > 0.3
    wait_until(lambda: traces(system, "tick"), 30, "the clock ticks")
    assert system.rows("SELECT count(*) FROM switchyard.tick GROUP BY tick_at HAVING count(*) > 1") == []
    assert system.job(held).state is State.PENDING
    switchyard.resume(queue="aside")
    assert system.ended(held).state is State.COMPLETED
    assert traces_in_sessions(url) == []


def test_a_worker_that_was_killed_is_noticed_by_a_keeper_and_its_jobs_run_again(system, settings, worker_process, tmp_path):
    go = tmp_path / "go"
    running = [system.jobs.wait_for_file.send(str(go)) for _ in range(3)]
    environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT)}
    keeper = Child([sys.executable, "-m", "cli", "keeper"], log=tmp_path / "keeper.log", env=environment, cwd=tmp_path)
    worker = worker_process(WORKER, threads=3)
    wait_until(lambda: traces(system, "started") == 3, 60, "they run")
    wait_until(lambda: "keeping the ledger" in keeper.output(), 60, keeper.output)

    worker.kill()
    wait_until(lambda: states(system) == {"pending": 3}, 30, lambda: f"they are sent back: {states(system)}\n{keeper.output()}")
    keeper.terminate()
    assert keeper.wait() == 0
    go.touch()
    worker_process(WORKER)

    assert [system.ended(message).result for message in running] == [2] * 3
    assert {attempt.outcome for message in running for attempt in system.attempts(message)} == {"lost", "completed"}
    assert traces_in_sessions(settings.database_url.get_secret_value()) == []


def test_a_pgbouncer_that_dies_and_comes_back_costs_no_job(system, bouncer, worker_process, tmp_path):
    go = tmp_path / "go"
    held = system.jobs.wait_for_file.send(str(go))
    worker = worker_process(WORKER, threads=4)
    wait_until(lambda: traces(system, "started"), 60, "it runs")
    switchyard.enqueue_many(system.jobs.brief.message(0.01) for _ in range(200))
    wait_until(lambda: states(system).get("completed", 0) > 20, 30, "the others flow")

    bouncer.kill()
    with pytest.raises(LedgerUnavailable) as refused:
        system.jobs.quick.send(1)
    go.touch()
    wait_until(lambda: "holding results" in worker.output(), 30, "the worker misses it")
    bouncer.start()
    system.broker.enqueue(refused.value.message)

    wait_until(lambda: states(system) == {"completed": 202}, 30, lambda: f"all end: {states(system)}")
    assert system.job(held).result == 1
    assert system.rows("SELECT max(attempt), max(lost) FROM switchyard.job WHERE actor <> 'every_second'") == [(1, 0)]
    assert worker.stop() == 0


COMMANDS = """
import json, sys
from click.testing import CliRunner
from cli import main

for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, arguments)
    print(json.dumps([arguments, result.exit_code, result.output + repr(result.exception or "")]))
"""


def test_the_commands_go_through_it(system, settings, redis_url):
    waiting, other = system.jobs.quick.send_with_options(args=(1,), delay=600_000), system.jobs.quick.send(2)
    system.jobs.quick.send_with_options(args=(3,), idempotency_key="key")
    lines = [
        "migrate", "jobs", f"show {waiting.message_id}", f"edit {waiting.message_id} --priority 3", f"cancel {other.message_id} --yes",
        "pause --queue aside", "paused", "resume --queue aside", "limits set --queue aside --concurrency 2", "limits list",
        "limits reset --queue aside", "schedules create hourly quick @hourly --args [1]", "schedules pause hourly", "schedules list",
        "batches list", "dead list", "key quick key", "broker drain redis --to postgres", "broker status",
    ]  # fmt: skip
    environment = base_environment() | variables(settings) | {"PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMANDS, json.dumps([line.split() for line in lines])],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout)
    assert [result for result in results if result[1] != 0] == []
    assert len(results) == len(lines)
    assert system.job(other).state is State.CANCELLED
    assert system.job(waiting).priority == 3
    assert traces_in_sessions(settings.database_url.get_secret_value()) == []


def test_a_database_is_migrated_through_it_and_no_lock_stays(bouncer, empty_database_url):
    url = bouncer.through(empty_database_url)

    result = CliRunner().invoke(main, ["migrate"], env={"DATABASE_URL": url, "PGBOUNCER": "true"})

    assert (result.exit_code, result.output) == (0, f"migrated the ledger: empty -> {migrations.HEAD}\n")
    assert traces_in_sessions(url) == []


def refused(url):
    """Whether nobody gets through without the setting, and each is told about it."""
    migrate = CliRunner().invoke(main, ["migrate"], env={"DATABASE_URL": url, "PGBOUNCER": "false"})
    assert (migrate.exit_code, migrate.output) == (1, f"switchyard: DATABASE_URL: {ADVICE}\n")
    database = Database(url, timeout=0.5)
    for ask in (lambda: database.dedicated("test"), lambda: database.run(lambda connection: connection.execute("SELECT 1"))):
        with pytest.raises(LedgerUnavailable, match="set PGBOUNCER=true"):
            ask()
    database.close()
    return True


def test_without_the_setting_nothing_starts_and_the_reason_names_it(bouncers, settings, database_url, worker_process):
    with_defaults = bouncers().through(database_url)
    url = bouncers("ignore_startup_parameters = options").through(database_url)

    worker = worker_process(WORKER, env={"DATABASE_URL": url, "PGBOUNCER": "false"})

    assert refused(with_defaults)
    assert refused(url)
    assert worker.wait(60) == 3
    assert [line for line in worker.output().splitlines() if "PGBOUNCER" in line] == [f"switchyard: DATABASE_URL: {ADVICE}"]
    assert traces_in_sessions(url) == []


def test_options_in_the_url_are_refused_with_the_way_out(settings):
    url = f"{settings.database_url.get_secret_value()}?options=-c%20search_path%3Dshop"

    with pytest.raises(LedgerUnavailable, match=r"take them out of DATABASE_URL.*ALTER ROLE"):
        Database(url, pgbouncer=True).dedicated("test")


def test_a_pooler_that_lends_a_session_for_a_statement_is_refused(bouncers, database_url):
    url = bouncers("pool_mode = statement").through(database_url)

    with pytest.raises(LedgerUnavailable, match="PgBouncer needs pool_mode = transaction"):
        require_migrated(Database(url, pgbouncer=True))


def test_a_pooler_that_lends_a_session_for_good_is_as_good_as_a_server(bouncers, database_url):
    url = bouncers("pool_mode = session", "ignore_startup_parameters = options").through(database_url)

    with Database(url).dedicated("test") as connection:
        assert connection.execute("SHOW plan_cache_mode").fetchone() == ("force_generic_plan",)


GUIDE = (ROOT / "docs" / "howto" / "pgbouncer.md").read_text()


def block(language):
    """A code block of the guide."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    return text


@pytest.fixture
def shop():
    """A Postgres with the guide's database, its user, and what the guide sets for them."""
    server = PrivatePostgres()
    server.start()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE shop LOGIN PASSWORD 'secret'")
        connection.execute("CREATE DATABASE shop OWNER shop")
        connection.execute("ALTER DATABASE shop SET default_transaction_isolation = 'serializable'")
        connection.execute(block("sql").encode())
    yield server
    server.stop()


def test_the_guides_configuration_works_as_written(shop):
    (userlist,) = re.findall(r'^; ("shop" "secret")$', block("ini"), re.MULTILINE)
    bouncer = PrivatePgBouncer(shop.url)
    (bouncer.directory / "userlist.txt").write_text(userlist + "\n")
    ini = block("ini").replace("port=5432", f"port={shop.port}").replace("= 6432", f"= {bouncer.port}")
    bouncer.ini = ini.replace("/etc/pgbouncer", str(bouncer.directory))
    variables = dict(re.findall(r"^export (\w+)=(\S+)", block("sh"), re.MULTILINE))
    variables["DATABASE_URL"] = variables["DATABASE_URL"].replace(":6432", f":{bouncer.port}")
    try:
        bouncer.start()

        result = CliRunner().invoke(main, ["migrate"], env=variables)
        assert result.exit_code == 0, result.output
        database = Database(variables["DATABASE_URL"], pgbouncer=variables["PGBOUNCER"] == "true")
        require_migrated(database)
        with database.dedicated("test") as connection:
            assert connection.execute("SHOW jit").fetchone() == ("off",)
    finally:
        bouncer.stop()
