"""F17: those who hold the slots of a limit are killed."""

from __future__ import annotations

from time import monotonic

from tests.faults.checker import Verdict
from tests.faults.jobs import SLOTS
from tests.faults.recorder import Event
from tests.faults.rig import LEASE, SWEEP, Rig
from tests.faults.scenarios import Plan, scenario

#: What the way from the end of a lease to the start of the next job may take, in seconds: a sweep, a wake, a claim, on a busy machine.
SLACK = 3.0


def running(events: list[Event]) -> tuple[int, int]:
    """How many executions run now, and how many ran at once at the most: begun, not ended, and their process not killed."""
    now: dict[tuple[str, str], int] = {}
    killed: set[int] = set()
    most = 0
    # A kill is noted right before it comes. What the process begins in between never ends, and has ended with it all the same.
    for event in sorted(events, key=lambda event: event.at):
        if event.kind == "start" and event.pid in killed:
            most = max(most, len(now) + 1)
        elif event.kind == "start":
            now[(event.job, event.fields["token"])] = event.pid
            most = max(most, len(now))
        elif event.kind == "end":
            now.pop((event.job, event.fields["token"]), None)
        elif event.fields.get("killed"):
            killed |= set(event.fields["killed"])
            now = {run: pid for run, pid in now.items() if pid not in event.fields["killed"]}
    return len(now), most


@scenario(
    "F17",
    f"kill -9 of those who hold the slots of a limit, {SLOTS} at once",
    unit="kills",
    full=100,
    weight=2,
    ends={"slotted": "completed"},
    after=lambda rig, verdict: _never_more(rig, verdict),
)
def kill_holders(rig: Rig, plan: Plan) -> None:
    """Two workers with more threads than there are slots, and more jobs than they can run: each kill frees what the dead held, after its
    lease and once; then as many run as before."""
    rig.staff(2)
    rig.send("slotted", 60, bulk=60)
    rig.stream("slotted", rate=8)
    worst = 0.0
    for _ in plan:
        rig.until(lambda: running(rig.events)[0] == SLOTS, 60, lambda: f"all slots are taken: {rig.states()}")
        holders = {event.pid for event in rig.events if event.kind == "start"}
        victims = [worker for worker in rig.workers if holders & set(rig.pids(worker))]
        rig.kill(rig.random.choice(victims or rig.workers))
        began = monotonic()
        rig.until(
            lambda: running(rig.events)[0] == SLOTS, LEASE + SWEEP + 60, lambda: f"all slots are taken again: {rig.states()}"
        )
        worst = max(worst, monotonic() - began)
        rig.until(lambda: sum(map(rig.is_ready, rig.workers)) > 1, 60, "there are two workers again")
    assert plan.small or worst < LEASE + SWEEP + SLACK, f"full capacity came back after {worst:.1f} s only"


def _never_more(rig: Rig, verdict: Verdict) -> None:
    left, most = running(rig.events)
    verdict.complain("I10", f"ran at once where {SLOTS} may", [most] if most > SLOTS else [])
    verdict.complain("I10", "slots are held at the end", [left] if left else [])
    taken = rig.rows(
        "SELECT count(*) FROM switchyard.job WHERE state = 'running' OR blocked_on IS NOT NULL AND finished_at IS NULL"
    )
    verdict.complain("I10", "rows hold or want a slot at the end", [taken[0][0]] if taken[0][0] else [])
