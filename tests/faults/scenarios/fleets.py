"""F14 and F15: two fleets at once, of different brokers, or of different versions of the code."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

from tests.faults.rig import Rig, stopped
from tests.faults.scenarios import Plan, scenario
from tests.rig.processes import ROOT, Child

#: From each broker to which other, and back.
PARTNER = {"postgres": "redis", "redis": "rabbitmq", "rabbitmq": "postgres"}


#: Of six switches, the n-th ones by ``switchyard broker drain`` (there and back), and those with the old broker killed.
DRAINED, KILLED = (2, 3), (4, 5)
#: Of twelve, those by a drain from a dead broker, and the rolling restarts that leave one queue where it was, by QUEUE_BROKERS.
DRAINED_DEAD, ROUTED = (8, 9), (6, 7)
#: Jobs that wait at each switch.
BACKLOG, SMALL, FULL = 2_000, 100, 12_000


@scenario(
    "F14",
    "BROKER changed under load, both ways: by rolling restarts or `broker drain`, some with the old broker killed or one queue left there",
    unit="switches",
    full=12,
    weight=2,
    settings={"brokers": PARTNER, "shutdown_grace": 3.0},
    quiet=90.0,
)
def switch_brokers(rig: Rig, plan: Plan) -> None:
    """A backlog, scheduled jobs and a steady stream in two queues; then everything moves: process after process, or at a word."""
    rig.tended = False
    for _ in range(2):
        rig.hire()
    stream = rig.produce("routed", rate=20)
    rig.flowing()
    for trial in plan:
        old, new = rig.broker, PARTNER[rig.broker] if trial % 2 == 0 else next(k for k in PARTNER if PARTNER[k] == rig.broker)
        rig.send("waiting", SMALL if plan.small else FULL if plan.full else BACKLOG)
        drained, carries = trial % 6 in DRAINED, old != "postgres"
        rig.fault("switch", old=old, new=new, drained=drained)
        if drained:
            if trial % 12 in DRAINED_DEAD and carries:
                rig.servers.named(old).kill()
            _drain(rig, old, new)
            rig.move(new)
        else:
            _restart_workers(rig, new, {"QUEUE_BROKERS": f"aside={old}"} if trial % 12 in ROUTED else {}, plan.small)
            rig.retire(stream)
            if trial % 6 in KILLED and carries:
                rig.servers.named(old).kill()
            rig.move(new)
            stream = rig.produce("routed", rate=20)
        rig.healed("switch")
        rig.patiently(lambda: _due(rig) < 50, 90, lambda: f"the backlog goes down: {rig.states()}")
        rig.servers.mend()


def _restart_workers(rig: Rig, new: str, more: dict[str, str], small: bool) -> None:
    """Restart the workers one after the other with another BROKER."""
    for number, worker in enumerate(list(rig.workers)):
        rig.hire(env={"BROKER": new} | more)
        # By a process that says the old broker, while some workers are gone from it already.
        if number == 0 and not small:
            rig.send("waiting", 20, bulk=20)
        stopped(worker, 30.0)
        rig.workers.remove(worker)


def _drain(rig: Rig, old: str, new: str) -> None:
    """``switchyard broker drain``, as in docs/howto/switch-broker.md."""
    words = [sys.executable, "-m", "cli", "broker", "drain", old, "--to", new]
    log = rig.directory / f"drain-{old}-{new}.log"
    command = Child(words, log=log, env=rig.environment(), cwd=rig.directory)
    try:
        rig.patiently(lambda: not command.running, 60, lambda: f"{old} is drained: {command.output(4_000)}")
    finally:
        command.kill()
    assert command.returncode == 0, f"the drain of {old} ended with {command.returncode}: {command.output(4_000)}"


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
