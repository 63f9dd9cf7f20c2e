"""F21: a rate limit over ten thousand jobs, and over a thousand keys. Nothing is hurt: what is judged is the limit itself."""

from __future__ import annotations

import subprocess
import sys

from tests.faults.rig import Rig
from tests.faults.scenarios import Plan, scenario
from tests.rig.processes import ROOT

#: One limiter, and a thousand with a burst that outlasts a busy machine's pauses.
RUNS = (("--rate", "100/second"), ("--rate", "1/10s", "--burst", "2", "--keys", "1000"))
#: Of each run.
JOBS = 10_000
#: Seconds for one run, which takes about a hundred.
LIMIT = 400


@scenario(
    "F21",
    "10,000 jobs over a limit of 100 a second, and as many over the limits of 1,000 keys: on time, never too many, touched at most twice",
    unit="runs",
    full=2,
    brokers=("redis",),
    weight=0.01,
    kinds=len(RUNS),
    least=len(RUNS),
)
def keep_rates(rig: Rig, plan: Plan) -> None:
    """The load script, which has a witness of its own in the database, and judges by it; see ``loadtest.limits``."""
    for trial in plan:
        words = ["--broker", rig.settings.broker, "--jobs", str(JOBS), *RUNS[trial % len(RUNS)]]
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.limits", *words],
            env=rig.environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        rig.elsewhere += JOBS
