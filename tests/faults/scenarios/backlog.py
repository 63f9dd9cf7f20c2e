"""F18: a long backlog that nobody works on is not published over and over while it waits."""

from __future__ import annotations

import psutil

from tests.faults.rig import SWEEP, Rig, stopped
from tests.faults.scenarios import Plan, scenario

#: Rows of a backlog, and how often each may be published while it waits for an hour.
ROWS, SMALL, FULL = 5_000, 1_000, 1_000_000
COPIES = 1.1
#: How the hour is compressed: so many steps, each of which makes everything older, and sweeps between them.
STEPS, MINUTES, SWEEPS = 12, 5, 1
#: How much more memory the keeper's process may take in the end, in MB.
GROWTH = 100

_AGE = """
DO $$
DECLARE columns text;
BEGIN
    SELECT string_agg(format('%1$I = %1$I - interval ''{minutes} min''', column_name), ', ') INTO columns
    FROM information_schema.columns
    WHERE table_schema = 'switchyard' AND table_name = 'job' AND data_type = 'timestamp with time zone'
        AND column_name NOT IN ('started_at', 'finished_at', 'lease_until');
    EXECUTE 'UPDATE switchyard.job SET ' || columns || ' WHERE state = ''pending''';
    -- Those that arrived with an earlier backlog would else be younger than all of this one's triggers, as if they had overtaken them.
    UPDATE switchyard.mark SET at = at - interval '{minutes} min';
END $$
"""
_PENDING = "SELECT EXISTS (SELECT FROM switchyard.job WHERE state = 'pending')"


@scenario(
    "F18", "a backlog waits for an hour, with relays and without workers", unit="backlogs", full=1, brokers=("redis", "rabbitmq")
)
def let_wait(rig: Rig, plan: Plan) -> None:
    """One worker that serves another queue keeps the keeper's duties; the backlog grows old under it; then it is worked off."""
    rig.tended = False
    counted = {"FAULTS_COUNT": "1"}
    keeper = rig.hire(env=counted, queues=("poison",))
    (process, *_) = sorted(keeper.children(), key=psutil.Process.num_threads, reverse=True)
    for _ in plan:
        size = SMALL if plan.small else FULL if plan.full else ROWS
        before = _published(rig)
        rig.send("instant", size, bulk=1_000, env=counted)
        used = process.memory_info().rss
        rig.fault("an hour", rows=size)
        for _ in range(STEPS):
            rig.rows(_AGE.replace("{minutes}", str(MINUTES)))
            rig.go_on(SWEEPS * SWEEP)
        copies = (_published(rig) - before) / size
        grown = (process.memory_info().rss - used) / 2**20
        rig.healed("an hour")
        worker = rig.hire(threads=8)
        rig.patiently(lambda: rig.rows(_PENDING) == [(False,)], 45, lambda: f"the backlog is worked off: {rig.states()}")
        stopped(worker, 30.0)
        rig.workers.remove(worker)
        assert 1.0 <= copies <= COPIES, f"each row was published {copies:.2f} times in an hour"
        assert grown < GROWTH, f"the keeper's process has grown by {grown:.0f} MB"
    rig.hire()


def _published(rig: Rig) -> int:
    return sum(event.fields["triggers"] for event in rig.events if event.kind == "published")
