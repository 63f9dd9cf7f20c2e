"""The invariants, checked from outside: what producers and actors wrote down, the effects' table, and the log of transitions.

The ledger's rows are compared with these witnesses; they are never believed by themselves. Each complaint names its invariant as
docs/reliability.md lists them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from psycopg import Connection

from ledger.states import LEGAL, TERMINAL, State
from tests.faults.recorder import Event

#: Most examples of one complaint.
EXAMPLES = 5
#: How every job of these actors has to end, if nothing but faults hit it.
ENDS = {
    "plain": "completed",
    "fenced": "completed",
    "aside": "completed",
    "parent": "completed",
    "flaky": "completed",
    "newer": "completed",
    "doomed": "dead",
}
#: Actors whose effect is in their own commit.
FENCED = ("fenced", "aside", "parent")

_ROWS = """
SELECT message_id::text AS id, actor, state, generation, attempt, failures, lost, max_attempts, last_token::text AS last_token,
    result, dead_reason, error_type, error
FROM switchyard.job
"""


@dataclass
class Verdict:
    """What a scenario came to."""

    jobs: int = 0
    faults: int = 0
    #: Sends whose outcome was unknown to the sender and that turned out to be stored (allowed).
    recovered: int = 0
    lost: int = 0
    stuck: int = 0
    fenced_duplicates: int = 0
    #: Executions that overlapped with another of the same job (allowed: the older one's writes are refused).
    overlaps: int = 0
    #: Executions that ended well after their claim was gone, and were refused.
    zombies: int = 0
    #: Executions beyond the first of a job that did not fail by itself (allowed: at least once).
    reruns: int = 0
    recoveries: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def complain(self, invariant: str, text: str, examples: Iterable[object]) -> int:
        """Add a violation if there are examples of it; returns how many."""
        found = list(examples)
        if found:
            shown = ", ".join(map(str, found[:EXAMPLES])) + (", ..." if len(found) > EXAMPLES else "")
            self.violations.append(f"{invariant}: {len(found)} {text}: {shown}")
        return len(found)


class Case:
    """Everything that is known about one scenario."""

    def __init__(self, connection: Connection[Any], look: Callable[[], list[Event]], max_lost: int) -> None:
        self.max_lost = max_lost
        cursor = connection.execute(_ROWS)
        names = [column.name for column in cursor.description or ()]
        self.rows = {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}
        self.effects = Counter(row[0] for row in connection.execute("SELECT job::text FROM rig_effect").fetchall())
        self.steps: dict[str, list[tuple[str, str, int, str | None, str | None]]] = defaultdict(list)
        for job, *step in connection.execute(
            "SELECT job::text, before, after, generation, token_before::text, token_after::text FROM rig_step ORDER BY seq"
        ).fetchall():
            self.steps[job].append((step[0], step[1], step[2], step[3], step[4]))
        self.history: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for job, generation, attempt, outcome in connection.execute(
            "SELECT j.message_id::text, a.generation, a.attempt, a.outcome"
            " FROM switchyard.attempt AS a JOIN switchyard.job AS j ON j.id = a.job_id"
        ).fetchall():
            self.history[job].append((generation, attempt, outcome))
        self.notices = Counter(
            (row[0], row[1])
            for row in connection.execute("SELECT job::text, generation FROM rig_notice WHERE consumer = 'broker'")
        )
        # After the rows: whatever still goes on, each of them has been invoked by now.
        self.events = events = look()
        self.invoked = {event.job: event for event in events if event.kind == "invoke"}
        self.ok = {event.job for event in events if event.kind == "ok"}
        self.refused = {event.job for event in events if event.kind == "fail"}
        self.starts = [event for event in events if event.kind == "start"]
        self.ends = {(event.job, event.fields["token"]): event for event in events if event.kind == "end"}

    def alive(self) -> Iterator[dict[str, Any]]:
        """Rows that have not ended."""
        return (row for row in self.rows.values() if State(row["state"]) not in TERMINAL)


def check(case: Case, *, ends: dict[str, str] | None = None) -> Verdict:
    """Hold the case against the invariants. ``ends``: how jobs of each actor have to end, instead of ``ENDS``."""
    verdict = Verdict(jobs=len(case.rows), faults=sum(event.kind in ("fault", "failpoint") for event in case.events))
    _sends(case, verdict)
    _endings(case, verdict, ENDS if ends is None else ends)
    _effects(case, verdict)
    _transitions(case, verdict)
    _executions(case, verdict)
    _histories(case, verdict)
    verdict.recoveries = recoveries(case.events)
    return verdict


def _sends(case: Case, verdict: Verdict) -> None:
    verdict.lost = verdict.complain("I1", "jobs were accepted and are gone", case.ok - case.rows.keys())
    verdict.complain("I1", "jobs were refused and stored all the same", (case.refused - case.ok) & case.rows.keys())
    verdict.complain("I1", "jobs exist that nobody sent", case.rows.keys() - case.invoked.keys())
    verdict.recovered = sum(
        1 for job in case.rows if job not in case.ok and job in case.invoked and "parent" not in case.invoked[job].fields
    )


def _endings(case: Case, verdict: Verdict, ends: dict[str, str]) -> None:
    stuck = [f"{row['id']} ({row['actor']}, {row['state']})" for row in case.alive()]
    verdict.stuck = verdict.complain("I1", "jobs are still active long after the last fault", stuck)
    wrong = [
        f"{row['id']} ({row['actor']}: {row['state']}, {row['dead_reason']}, {row['error']})"
        for row in case.rows.values()
        if State(row["state"]) in TERMINAL and row["actor"] in ends and row["state"] != ends[row["actor"]]
    ]
    verdict.complain("I1", "jobs ended otherwise than they had to", wrong)
    mute = [row["id"] for row in case.rows.values() if row["state"] == "dead" and not (row["dead_reason"] and row["error_type"])]
    verdict.complain("I5", "dead letters without a reason or an error", mute)
    deaths = {(job, generation) for job, steps in case.steps.items() for _, after, generation, *_ in steps if after == "dead"}
    odd = [f"{job} ({generation})" for job, generation in deaths | case.notices.keys() if case.notices[job, generation] != 1]
    verdict.complain("I5", "deaths, by their generation, have not exactly one notice", odd)
    beyond = [
        row["id"]
        for row in case.rows.values()
        if row["lost"] > case.max_lost or (row["max_attempts"] is not None and row["failures"] > row["max_attempts"])
    ]
    verdict.complain("I7", "jobs failed or were lost more often than they may", beyond)


def _effects(case: Case, verdict: Verdict) -> None:
    twice = [f"{job} ({count})" for job, count in case.effects.items() if count > 1]
    verdict.fenced_duplicates = verdict.complain("I3", "jobs have several committed effects", twice)
    fenced = [row for row in case.rows.values() if row["actor"] in FENCED]
    without = [row["id"] for row in fenced if row["state"] == "completed" and not case.effects[row["id"]]]
    verdict.complain("I3", "completed jobs have no committed effects", without)
    early = [row["id"] for row in fenced if row["state"] != "completed" and case.effects[row["id"]]]
    verdict.complain("I3", "jobs have committed effects and did not complete", early)
    wrong = []
    for job, event in case.invoked.items():
        if "parent" in event.fields:
            parent = case.rows.get(event.fields["parent"])
            committed = parent is not None and parent["state"] == "completed" and parent["last_token"] == event.fields["token"]
            if committed != (job in case.rows):
                wrong.append(job)
    verdict.complain("I3", "children are there without their parent's commit, or missing after it", wrong)


def _transitions(case: Case, verdict: Verdict) -> None:
    illegal, torn, again, reused = [], [], [], []
    for job, steps in case.steps.items():
        state = None
        tokens = set()
        for before, after, _, old, new in steps:
            if before == after == "running" and old != new:
                again.append(job)
            elif before != after and State(after) not in LEGAL[State(before)]:
                illegal.append(f"{job} ({before} to {after})")
            if state is not None and before != state:
                torn.append(job)
            state = after
            if new is not None:
                if new in tokens:
                    reused.append(job)
                tokens.add(new)
        row = case.rows.get(job)
        if row is not None and row["state"] != state:
            torn.append(job)
    verdict.complain("I4", "jobs took an illegal step", illegal)
    verdict.complain("I4", "jobs have a gap in their steps", torn)
    verdict.complain("I6", "jobs were claimed while it ran", again)
    verdict.complain("I6", "jobs were claimed with a token used before", reused)


def _executions(case: Case, verdict: Verdict) -> None:
    claimed = {(job, token) for job, steps in case.steps.items() for *_, token in steps if token is not None}
    strangers = [event.job for event in case.starts if (event.job, event.fields["token"]) not in claimed]
    verdict.complain("I6", "executions had no claim", strangers)
    times = Counter((event.job, event.fields["token"]) for event in case.starts)
    verdict.complain("I6", "claims were executed more than once", [job for (job, _), count in times.items() if count > 1])
    foreign = []
    for row in case.rows.values():
        if row["state"] == "completed" and isinstance(row["result"], dict):
            if (row["result"].get("token"), row["result"].get("attempt")) != (row["last_token"], row["attempt"]):
                foreign.append(row["id"])
            end = case.ends.get((row["id"], row["last_token"]))
            if end is None and row["actor"] not in FENCED:
                foreign.append(row["id"])
    verdict.complain("I6", "completed jobs: the row holds the result of another claim", foreign)
    runs: dict[str, list[Event]] = defaultdict(list)
    for event in case.starts:
        runs[event.job].append(event)
    for job, started in runs.items():
        last_token = case.rows[job]["last_token"] if job in case.rows else None
        finished = [case.ends.get((job, event.fields["token"])) for event in started]
        well = [end for end in finished if end is not None and end.fields["outcome"] == "ok"]
        verdict.zombies += sum(end.fields["token"] != last_token for end in well)
        verdict.reruns += len(started) - 1 - sum(end is not None and end.fields["outcome"] != "ok" for end in finished[:-1])
        spans = sorted((event.at, end.at if end is not None else event.at) for event, end in zip(started, finished, strict=True))
        verdict.overlaps += sum(later[0] < earlier[1] for earlier, later in pairwise(spans))


def _histories(case: Case, verdict: Verdict) -> None:
    holes = []
    for row in case.rows.values():
        if State(row["state"]) not in TERMINAL or row["generation"] != 1:
            continue
        last = row["attempt"] - (row["state"] == "completed")
        found = sorted(attempt for generation, attempt, _ in case.history[row["id"]] if generation == 1)
        if found != list(range(1, last + 1)):
            holes.append(f"{row['id']} ({row['actor']}, {row['state']} in attempt {row['attempt']}, history of {found})")
        failures = sum(outcome == "failed" for _, _, outcome in case.history[row["id"]])
        if failures != row["failures"]:
            holes.append(f"{row['id']} ({row['failures']} failures, {failures} in the history)")
    verdict.complain("I4", "jobs have a history that does not match their attempts", holes)


def waited_for_leases(case: Case) -> list[str]:
    """Jobs that were taken back from a worker after its lease, where none had to be."""
    return [job for job, entries in case.history.items() if any(outcome == "lost" for _, _, outcome in entries)]


def recoveries(events: list[Event]) -> list[float]:
    """Seconds from each fault to the recovery from it.

    Of a process that was killed: from the kill to the next start of each job that it was running. Of anything that was healed: from there
    to the next end of any job.
    """
    starts: dict[str, list[float]] = defaultdict(list)
    ended: set[tuple[str, str]] = set()
    well = sorted(event.at for event in events if event.kind == "end" and event.fields["outcome"] == "ok")
    for event in events:
        if event.kind == "start":
            starts[event.job].append(event.at)
        elif event.kind == "end":
            ended.add((event.job, event.fields["token"]))
    found = []
    for fault in events:
        if fault.fields.get("killed") or (fault.kind == "failpoint" and fault.fields["action"] == "crash"):
            pids = set(fault.fields.get("killed", [fault.pid]))
            for event in events:
                # Those that still ended, between the note and the kill, were not interrupted.
                if event.kind == "start" and event.pid in pids and (event.job, event.fields["token"]) not in ended:
                    after = [at for at in starts[event.job] if at > fault.at]
                    found += [min(after) - fault.at] if after else []
        elif fault.kind == "healed":
            after = [at for at in well if at > fault.at]
            found += [min(after) - fault.at] if after else []
    return found
