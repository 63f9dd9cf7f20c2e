"""The rig keeps its word: servers survive kill -9 with their data, frozen ones come back, and nothing outlives a run."""

from __future__ import annotations

import ast
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pika
import psutil
import psycopg
import pytest
import redis

from tests.rig.containers import run_container
from tests.rig.parallel import unit_of
from tests.rig.ports import free_port
from tests.rig.postgres import Databases, PrivatePostgres, find_postgres
from tests.rig.processes import ROOT, Child, base_environment
from tests.rig.rabbitmq import PrivateRabbit, find_rabbitmq, remove_queues
from tests.rig.redis import PrivateRedis, find_redis, remove_keys
from tests.rig.service import NoServer, Service, Unavailable, first_available
from tests.rig.waiting import Timeout, wait_until


def test_wait_until_returns_what_came_true_and_names_what_did_not():
    values = iter([None, 0, "there"])

    assert wait_until(lambda: next(values)) == "there"

    with pytest.raises(Timeout, match=r"not within 0.05 s: the moon rises; last seen: 0"):
        wait_until(lambda: 0, 0.05, "the moon rises")


def test_the_first_way_that_works_is_taken():
    def broken() -> Service:
        raise Unavailable("no such program")

    working = Service(url="x://y", source="here", close=lambda: None)

    assert first_available("X", "X_URL", [broken, lambda: working], "Install X") is working


def test_no_way_at_all_is_a_failure_that_says_every_reason_and_what_to_do():
    def broken() -> Service:
        raise Unavailable("no such program")

    with pytest.raises(NoServer, match=r"(?s)need X and found none:\n  - no such program\nInstall X, or set X_URL\."):
        first_available("X", "X_URL", [broken], "Install X")


def test_without_a_docker_engine_the_way_of_a_container_says_so_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    with pytest.raises(Unavailable, match=r"no Docker engine answers \(.*No such file or directory"):
        run_container("postgres:17-alpine", 5432, lambda host, port: f"{host}:{port}", lambda url: True)

    # A socket that nobody closed is a warning now, and so a failure of this test.
    gc.collect()


@pytest.mark.parametrize("file", sorted(Path(ROOT, "tests", "rig").glob("*.py")), ids=lambda file: file.stem)
def test_no_process_of_the_rig_is_started_with_the_environment_that_pytest_writes_to(file: Path):
    """In one of some 40 starts beside a thread that writes to it, the kernel was handed an environment that had moved."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    starts = [call for call in calls if ast.unparse(call.func) in ("subprocess.run", "subprocess.Popen")]

    assert [call.lineno for call in starts if "env" not in {keyword.arg for keyword in call.keywords}] == []


@pytest.mark.parametrize(
    ("test", "unit"),
    [
        ("tests/acceptance/test_demo.py::test_every_file_is_there[redis]", "acceptance demo"),
        ("tests/conformance/test_sending.py::test_a_send[rabbitmq]", "conformance rabbitmq"),
        ("tests/conformance/test_enlist.py::test_a_send[redis-before-Session/psycopg]", "conformance redis"),
        ("tests/conformance/test_enlist.py::test_a_send[before-postgres]", "conformance postgres"),
        ("tests/conformance/test_seams.py::test_no_broker", "conformance"),
        ("tests/test_rig.py::test_this", "tests"),
    ],
)
def test_a_folder_runs_in_one_process_and_so_does_each_acceptance_file_and_each_broker_of_the_conformance_suite(
    test: str, unit: str
):
    assert unit_of(test) == unit


def test_a_process_that_crashes_is_one_failure_and_the_rest_of_its_tests_run(tmp_path: Path):
    hook = "def pytest_xdist_make_scheduler(config, log):\n    return by_units(config, log)\n"
    (tmp_path / "conftest.py").write_text(f"from tests.rig.parallel import by_units\n{hook}")
    (tmp_path / "pytest.ini").touch()
    fine, crash = "def test_{0}(): assert True\n", "def test_crash():\n    import os\n    os._exit(7)\n"
    for unit, text in (("a", fine.format("a")), ("b", fine.format("before") + crash + fine.format("after"))):
        (tmp_path / "tests" / unit).mkdir(parents=True)
        (tmp_path / "tests" / unit / f"test_{unit}.py").write_text(text)

    command = [sys.executable, "-m", "pytest", "-n", "1", "--max-worker-restart", "5", "-p", "no:cacheprovider"]
    environment = base_environment() | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)

    assert run.returncode == 1
    assert "FAILED tests/b/test_b.py::test_crash - worker 'gw0' crashed while running" in run.stdout
    assert "1 failed, 3 passed" in run.stdout.splitlines()[-1]


def test_processes_that_share_a_run_take_different_ports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    taken = []
    # The third takes the place of the first, which has crashed.
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        taken.append({free_port() for _ in range(50)})

    assert max(taken[0] | taken[2]) < min(taken[1])


def test_a_private_postgres_keeps_committed_rows_and_its_port_over_kill_9():
    server = PrivatePostgres()
    try:
        server.start()
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")

        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url, connect_timeout=3)
        server.start()

        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    finally:
        server.stop()


def test_a_frozen_redis_answers_nobody_until_it_is_thawed():
    server = PrivateRedis()
    try:
        server.start()
        client = redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None)

        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.thaw()

        assert wait_until(client.ping)
        client.close()
    finally:
        server.stop()


def test_every_database_of_the_template_is_alone_and_only_ours_can_be_dropped(databases: Databases):
    first, second = databases.create(), databases.create()
    try:
        with psycopg.connect(first) as connection:
            connection.execute("CREATE TABLE mine ()")

        with psycopg.connect(second) as connection:
            row = connection.execute("SELECT to_regclass('mine'), to_regclass('switchyard.job')").fetchone()
            assert row == (None, "switchyard.job")
    finally:
        databases.drop(first)
        databases.drop(second)

    with pytest.raises(ValueError, match="no database of these tests"):
        databases.drop(first.replace(Databases.name_of(first), "postgres"))


def test_a_url_in_the_environment_wins_over_everything(postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("REDIS_URL", redis_url)

    assert (find_postgres().url, find_redis().url) == (postgres_url, redis_url)


def test_a_url_in_the_environment_that_does_not_answer_is_no_reason_to_use_another_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("RABBITMQ_URL", f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F")

    with pytest.raises(psycopg.OperationalError, match="refused"):
        find_postgres()
    with pytest.raises(RuntimeError, match="REDIS_URL does not answer"):
        find_redis()
    with pytest.raises(RuntimeError, match="RABBITMQ_URL does not answer"):
        find_rabbitmq()


def test_cleaning_up_on_somebodys_server_removes_our_keys_and_queues_only(redis_url: str, rabbitmq_url: str, broker_prefix: str):
    client = redis.Redis.from_url(redis_url)
    client.set(f"{broker_prefix}:key", "ours")
    client.set(f"theirs-{broker_prefix}", "theirs")
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    channel = connection.channel()
    for queue in (f"{broker_prefix}.q.p10", f"theirs.{broker_prefix}"):
        channel.queue_declare(queue)

    remove_keys(redis_url, broker_prefix)
    remove_queues(rabbitmq_url, [f"{broker_prefix}.q.p10", f"{broker_prefix}.never-declared.p10"])

    assert client.keys(f"*{broker_prefix}*") == [f"theirs-{broker_prefix}".encode()]
    assert channel.queue_declare(f"theirs.{broker_prefix}", passive=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="no queue"):
        channel.queue_declare(f"{broker_prefix}.q.p10", passive=True)
    client.delete(f"theirs-{broker_prefix}")
    client.close()
    connection.channel().queue_delete(f"theirs.{broker_prefix}")
    connection.close()


def test_killing_a_child_ends_its_children_too(tmp_path: Path):
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE).wait()"
    child = Child([sys.executable, "-c", script], log=tmp_path / "log", env=base_environment())
    (grandchild,) = wait_until(child.children)

    child.kill()

    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert child.returncode == -signal.SIGKILL


def test_a_run_that_is_killed_leaves_no_server_and_no_directory(tmp_path: Path):
    script = (
        "from tests.rig.redis import PrivateRedis; import os, signal; server = PrivateRedis(); server.start();"
        "print(server.child.pid, server.directory, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=base_environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, directory = run.stdout.split()

    assert run.returncode == -signal.SIGKILL
    wait_until(lambda: not psutil.pid_exists(int(pid)), 30, f"the server {pid} of the killed run ends")
    wait_until(lambda: not os.path.exists(directory), 30, f"{directory} is removed")


def test_a_private_rabbitmq_answers_its_control_program_and_restarts_on_its_port(rabbitmq_url: str):
    server = PrivateRabbit()
    try:
        server.start()
        server.ctl("add_vhost", "kept")

        server.restart()

        assert "kept" in server.ctl("list_vhosts").split()
        assert server.url != rabbitmq_url
    finally:
        server.stop()
