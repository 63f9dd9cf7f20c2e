"""F14 and F15: two fleets at once, of different brokers, or of different versions of the code."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

from tests.faults.rig import Rig, stopped
from tests.faults.scenarios import Plan, scenario
from tests.rig.processes import ROOT

#: From each broker to which other, and back.
PARTNER = {"postgres": "redis", "redis": "rabbitmq", "rabbitmq": "postgres"}


@scenario(
    "F14",
    "BROKER changed by a rolling restart under load, both ways, at times with the old broker killed",
    unit="switches",
    full=10,
    weight=2,
    settings={"brokers": PARTNER, "shutdown_grace": 3.0},
    quiet=90.0,
)
def switch_brokers(rig: Rig, plan: Plan) -> None:
    """A backlog, scheduled jobs and a steady stream; then the fleet moves, one process after the other."""
    rig.tended = False
    for _ in range(2):
        rig.hire()
    stream = rig.produce(rate=20)
    rig.flowing()
    for trial in plan:
        old, new = rig.broker, PARTNER[rig.broker] if trial % 2 == 0 else next(k for k in PARTNER if PARTNER[k] == rig.broker)
        env = {"BROKER": new}
        rig.send("fenced", 100 if plan.small else 2_000)
        if not plan.small:
            rig.send("delayed", 300)
        rig.fault("switch", old=old, new=new)
        for worker in list(rig.workers):
            rig.hire(env=env)
            # Sent to the old broker, while some workers are gone from it already.
            if not plan.small:
                rig.send("fenced", 20, bulk=20)
            stopped(worker, 30.0)
            rig.workers.remove(worker)
        rig.retire(stream)
        if trial % 3 == 2 and old != "postgres":
            rig.servers.named(old).kill()
        rig.move(new)
        stream = rig.produce(rate=20)
        rig.healed("switch")
        rig.patiently(lambda: _due(rig) < 50, 90, lambda: f"the backlog goes down: {rig.states()}")
        rig.servers.mend()


def _due(rig: Rig) -> int:
    return int(rig.rows("SELECT count(*) FROM switchyard.job WHERE state = 'pending'")[0][0])


@scenario(
    "F15",
    "rolling upgrade: the code of the previous commit beside the present one",
    unit="restarts",
    full=50,
    weight=1,
)
def upgrade(rig: Rig, plan: Plan) -> None:
    """Workers of both versions on one migrated ledger; old ones meet jobs whose actor they do not know, which wait for a new one."""
    old = {"PYTHONPATH": str(previous_version(rig.directory / "previous"))}
    new = {"FAULTS_NEWER": "1"}
    rig.tended = False
    rig.hire(env=old)
    rig.hire(env=old)
    rig.produce(rate=20)
    rig.flowing()
    for trial in plan:
        rig.produce("newer", rate=0, limit=10, env=new)
        upgrading = trial % 4 < 2
        oldest = rig.workers.pop(0)
        rig.fault("restart", to="new" if upgrading else "old")
        rig.hire(env=new if upgrading else old)
        stopped(oldest, 30.0)
        rig.healed("restart")
        rig.flowing(10)
    rig.hire(env=new)


def previous_version(directory: Path) -> Path:
    """The code of the commit before this one, with the rig of this one. Raises: AssertionError: the checkout has no history."""
    for commit in ("HEAD~1", "HEAD"):
        done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        if done.returncode == 0:
            break
    assert done.returncode == 0, f"the code of the previous commit cannot be had: {done.stderr.decode()}"
    directory.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")
    for part in ("faults", "rig"):
        with suppress(FileNotFoundError):
            shutil.rmtree(directory / "tests" / part)
        shutil.copytree(ROOT / "tests" / part, directory / "tests" / part, ignore=shutil.ignore_patterns("__pycache__"))
    return directory
