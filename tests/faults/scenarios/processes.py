"""F1, F3, F4, F5: worker and producer processes that are killed, stopped and paused."""

from __future__ import annotations

from statistics import median

from tests.faults.checker import Verdict, waited_for_leases
from tests.faults.rig import LEASE, Rig, pause, stopped
from tests.faults.scenarios import Plan, scenario

#: The worker as deployments start it.
SUPERVISED = ("-m", "cli", "worker", "tests.faults.worker", "-p", "1", "-t", "8")
#: What ``dramatiq`` adds to the time of a stop: its worker process looks once a second whether it was told to stop, and its main process
#: looks once a second whether it can stop reading logs.
DRAMATIQ_LOOKS = 2.0


@scenario("F1", "kill -9 of a random worker every 0.5 to 3 s", unit="kills", full=200, weight=3, bounded=True)
def kill_workers(rig: Rig, plan: Plan) -> None:
    """Two workers under load; one of them dies, the other goes on, and the dead one's jobs come back after their lease."""
    rig.staff(2)
    rig.stream()
    for _ in plan:
        alive = [worker for worker in rig.workers if worker.running and rig.is_ready(worker)]
        if len(alive) > 1:
            rig.kill(rig.random.choice(alive))
        rig.go_on(rig.random.uniform(0.5, 3.0))
        rig.until(lambda: sum(map(rig.is_ready, rig.workers)) > 1, 60, "there are two workers again")


@scenario("F3", "kill -9 of a producer around its commit and its publish", unit="kills", full=1_000, weight=1)
def kill_producers(rig: Rig, plan: Plan) -> None:
    """Forked children of a producer, each of which dies before or after a commit, or after a publish."""
    rig.staff(1)
    mortal = rig.produce("mixed", rate=0, fork=6)
    before = rig.count("failpoint")
    for trial in plan:
        rig.until(lambda trial=trial: rig.count("failpoint") > before + trial, 60, "a producer dies")
    rig.retire(mortal)


@scenario(
    "F4",
    "SIGTERM, a rolling restart under load",
    unit="restarts",
    full=50,
    weight=2,
    after=lambda rig, verdict: _nothing_waited(rig, verdict),
)
def restart_workers(rig: Rig, plan: Plan) -> None:
    """Jobs of up to 4 s, a grace of 2 s: each restart ends in time, and no job waits for a lease because of it.

    The new one is started by ``switchyard worker`` and by ``dramatiq`` in turns.
    """
    rig.tended = False
    rig.staff(2)
    rig.stream("long", rate=15)
    times: dict[str, list[float]] = {"dramatiq": [], "switchyard worker": []}
    for trial in plan:
        oldest = rig.workers[0]
        command = "switchyard worker" if "cli" in oldest.argv else "dramatiq"
        rig.fault("SIGTERM", worker=oldest.pid, command=command)
        took = stopped(oldest, 30.0)
        rig.healed("SIGTERM")
        assert oldest.returncode == 0, f"a worker that was told to stop ended with {oldest.returncode}: {oldest.output(4_000)}"
        times[command].append(took)
        rig.hire(command=SUPERVISED if trial % 2 == 0 else ())
        rig.tend()
        rig.flowing(10)
    rig.tended = True
    for command, own in (("switchyard worker", 0.0), ("dramatiq", DRAMATIQ_LOOKS)):
        bound = rig.settings.shutdown_grace + 2.0 + own
        assert plan.small or not times[command] or median(times[command]) < bound, (
            f"restarts of {command} took {', '.join(f'{took:.1f}' for took in times[command])} s, not below {bound:g} s"
        )


def _nothing_waited(rig: Rig, verdict: Verdict) -> None:
    verdict.complain("I7", "jobs waited for a lease because of a restart", waited_for_leases(rig.case()))


@scenario("F5", "SIGSTOP of a worker for 0.5, 1 and 3 leases, then SIGCONT", unit="pauses", full=200, weight=2)
def pause_workers(rig: Rig, plan: Plan) -> None:
    """A worker that stands still loses its leases without knowing; what it writes when it goes on must not count."""
    first, _ = rig.staff(2)
    rig.stream("long", rate=15)
    for trial in plan:
        # In the suite: the pause that makes zombies.
        share = 1.75 if plan.small else (0.5, 1.0, 3.0)[trial % 3]
        victim = first if plan.small else rig.random.choice(rig.workers)
        if plan.small:
            rig.until(lambda: _runs_long(rig, rig.pids(first)), 40, "it runs a job")
        with rig.faulty("pause", worker=victim.pid, leases=share):
            victim.freeze()
            pause(share * LEASE)
            victim.thaw()
        rig.flowing(10)


def _runs_long(rig: Rig, pids: list[int]) -> bool:
    """Whether one of these processes is in the middle of a job."""
    return bool(
        rig.rows(
            "SELECT 1 FROM switchyard.job j JOIN switchyard.worker w ON w.id = j.worker WHERE w.pid = ANY(%s) AND j.state = 'running'",
            pids,
        )
    )
