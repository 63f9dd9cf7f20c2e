"""F11: clocks that are wrong, and clocks that jump. Leases and due times are the database's; nobody else's clock may matter."""

from __future__ import annotations

from pathlib import Path

from tests.faults.rig import Rig, pause
from tests.faults.scenarios import Plan, scenario
from tests.rig.processes import ROOT
from tests.rig.service import Unavailable

#: Where Debian's package puts it, by architecture.
LIBRARY = "usr/lib/*/faketime/libfaketimeMT.so.1"
#: libfaketime takes the monotonic deadline of Python's sleep for a wall clock's, and refuses it after a jump (EINVAL); select works.
SITE = "import select, time\ntime.sleep = lambda seconds: select.select((), (), (), seconds) and None\n"


def library() -> Path:
    """Where libfaketime is. Raises: Unavailable: it is not installed."""
    found = sorted(Path("/").glob(LIBRARY))
    if not found:
        raise Unavailable("libfaketime is not installed (`apt-get install faketime`)")
    return found[0]


def skewed(rig: Rig, name: str) -> tuple[dict[str, str], Path]:
    """The environment of a process whose wall clock follows a file, and the file: it holds an offset such as ``+5m``.

    Raises: Unavailable: libfaketime is not installed.
    """
    offset = rig.directory / f"{name}.clock"
    offset.write_text("+0")
    (rig.directory / "sitecustomize.py").write_text(SITE)
    return {
        "PYTHONPATH": f"{rig.directory}:{ROOT}",
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        # The monotonic clock is what leases are measured with; no operator can set it.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }, offset


@scenario(
    "F11",
    "clocks: workers and producers up to 5 min off, jumps of an hour while leases are held",
    unit="jumps",
    full=100,
    weight=1,
    needs=library,
)
def set_clocks(rig: Rig, plan: Plan) -> None:
    """Two workers and a producer, each with a clock of its own that is set while jobs run."""
    clocks = []
    for name in ("one", "two"):
        environment, clock = skewed(rig, name)
        clocks.append(clock)
        rig.hire(env=environment)
    environment, clock = skewed(rig, "producer")
    clocks.append(clock)
    rig.produce(rate=25, env=environment)
    rig.flowing()
    for trial in plan:
        offset = ("+5m", "-5m", "+1h", "-1h", "+0")[trial % 5]
        with rig.faulty(f"clock {offset}"):
            rig.random.choice(clocks).write_text(offset)
            pause(1.0)
        rig.flowing(10)
    taken = rig.rows("SELECT count(*) FROM switchyard.attempt WHERE outcome = 'lost'")[0][0]
    assert taken == 0, f"{taken} jobs were taken from living workers because of their clocks"
