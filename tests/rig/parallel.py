"""Which tests may run at the same time, in two or more pytest processes that pytest-xdist starts (``pytest -n 4``).

A unit is a folder of tests; the conformance suite is one unit per broker, and the acceptance tests, which take longest and share nothing
but servers, are one per file. A unit's tests run in one process and in their order, so that what they share is made once and a failure
that depends on the order comes back; a process that has nothing left takes the next unit. The longest units come first, so that the
processes end at about the same time. Most tests wait, for leases, servers and processes, more than they compute: four pytest processes
fill two processors. Every process has servers of its own. A process that crashes is a failure of the test it was at, and another takes
its place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

_FOLDER = re.compile(r"tests/(\w+)/(?:test_(\w+)\.py)?")
_BROKER = re.compile(r"\[(?:.*-)?(postgres|redis|rabbitmq)\b")

#: The units that take longest, in the order in which they are begun; the others follow in the order of their names.
_LONGEST = (
    "faults", "conformance redis", "cli", "conformance rabbitmq", "loadtest", "soak", "conformance postgres", "ledger",
    "acceptance processes", "brokers", "keeper", "acceptance supervisor", "acceptance outages", "acceptance watchdog", "acceptance demo",
    "acceptance switch", "acceptance up", "runtime", "acceptance pgbouncer", "actors",
)  # fmt: skip


def unit_of(nodeid: str) -> str:
    """The unit that a test belongs to: "ledger", "conformance redis", "acceptance demo"; "tests" for what lies in no folder of its own."""
    folder = _FOLDER.match(nodeid)
    unit = folder[1] if folder else "tests"
    if folder and unit == "acceptance":
        return f"{unit} {folder[2]}"
    broker = _BROKER.search(nodeid) if unit == "conformance" else None
    return f"{unit} {broker[1]}" if broker else unit


def _rank(unit: str) -> int:
    return _LONGEST.index(unit) if unit in _LONGEST else len(_LONGEST)


def by_units(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """What hands the tests to the processes, a unit at a time."""
    # Only here, since pytest without -n does not need the package.
    from xdist.scheduler import LoadScopeScheduling

    class ByUnits(LoadScopeScheduling):  # type: ignore[misc]
        """Takes units for the scopes of pytest-xdist."""

        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

        def _assign_work_unit(self, node: WorkerController) -> None:
            self.workqueue.move_to_end(min(self.workqueue, key=_rank), last=False)
            super()._assign_work_unit(node)

        def remove_node(self, node: WorkerController) -> str | None:
            """Give the rest of a crashed process's tests to others; returns the test it crashed in, which is not tried again."""
            units = self.assigned_work[node]
            crashed = next((test for tests in units.values() for test, done in tests.items() if not done), None)
            for unit, tests in list(units.items()):
                if crashed in tests:
                    tests[crashed] = True
                # A process that is handed a unit with nothing left in it would wait for ever.
                if all(tests.values()):
                    del units[unit]
            super().remove_node(node)
            return crashed

    # Not by their number of tests: that says little about their time.
    config.option.loadscopereorder = False
    return ByUnits(config, log)
