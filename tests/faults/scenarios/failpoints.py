"""F2: a process dies at each named instant of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.failpoints import SENDING, WORKING
from tests.faults.rig import Rig
from tests.faults.scenarios import Plan, scenario

#: In the order in which the suite, which tries few of them, should have them.
POINTS: Sequence[str] = (
    "after_claim_commit", "before_finish_commit", "relay_after_commit", "after_insert_commit",
    *(point for point in WORKING + SENDING
      if point not in ("after_claim_commit", "before_finish_commit", "relay_after_commit", "after_insert_commit")),
)  # fmt: skip


@scenario("F2", "kill -9 at each failpoint", unit="deaths", full=5 * len(POINTS), weight=3, kinds=len(POINTS))
def die_at_points(rig: Rig, plan: Plan) -> None:
    """A healthy worker, and one after the other that dies where it was told to."""
    rig.staff(1)
    rig.stream()
    for trial in plan:
        point = POINTS[trial % len(POINTS)]
        passage = 1 if point == "release_on_sigterm" else rig.random.randrange(1, 4)
        died = rig.count("failpoint")
        if point in SENDING:
            producer = rig.produce("mixed", rate=20, env={"FAILPOINT": f"{point}:crash:{passage}"})
            rig.until(lambda producer=producer: not producer.running, 60, f"a producer dies at {point}")
        else:
            worker = rig.hire(failpoint=f"{point}:crash:{passage}", ready=point == "release_on_sigterm", passing=True)
            if point == "release_on_sigterm":
                worker.terminate()
            rig.until(
                lambda died=died: rig.count("failpoint") > died,
                60,
                lambda point=point, worker=worker: f"a worker dies at {point}: {worker.output(3_000)}",
            )
            rig.until(lambda worker=worker: not worker.running, 30, "it is gone")
        assert rig.count("failpoint") == died + 1, f"nothing passed the point {point}"
        rig.flowing(10)
