"""Sends the demo's steps when their turn has come, follows the jobs in the ledger, and checks what they left.

Imported after ``switchyard.configure``, as ``steps``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import dramatiq

import switchyard
from cli.demo.board import Row
from cli.demo.receiver import Receiver
from cli.demo.steering import Burst, Thumbnails, Together
from cli.demo.steps import BULK, BULK_NAME, Step, Wrong, bulk, picture_key, steps
from switchyard import Job, State

#: How many jobs one page of ``list_jobs`` holds at most.
_PAGE: Final = 200

ENDED: Final = frozenset({State.COMPLETED, State.DEAD, State.CANCELLED})
_ACTIVE: Final = tuple(state for state in State if state not in ENDED)


@dataclass(slots=True)
class Bulk:
    """The small jobs, together."""

    tag: str
    #: Seconds that sending took.
    sending: float = 0.0
    active: int = BULK
    #: All of them, once none is active.
    jobs: list[Job] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether none is active any more."""
        return self.active == 0


class Course:
    """One run: what was sent, how it stands, what it came to."""

    def __init__(self, receiver: Receiver) -> None:
        run = secrets.token_hex(3)
        self._tag = f"demo-{run}"
        self._steps = steps(run, receiver)
        self._ids: dict[str, str] = {}
        #: What was done to jobs, by the name of their step.
        self._acted: set[str] = set()
        #: What the second send of a step came to: the id of its job, and whether it was told that there was one.
        self.repeats: dict[str, tuple[str, bool]] = {}
        #: The jobs as they were last seen, by the name of their step.
        self.jobs: dict[str, Job] = {}
        self.bulk = Bulk(tag=f"{self._tag}-bulk")
        self.together: tuple[Together, ...] = (Burst(self._tag), Thumbnails(run, picture_key(run)))

    def begin(self) -> None:
        """Send what waits for nothing."""
        self._send_ready()
        for some in self.together:
            some.send()
        started = time.monotonic()
        switchyard.enqueue_many(bulk(self.bulk.tag))
        self.bulk.sending = time.monotonic() - started

    def advance(self) -> bool:
        """Look at every job, send what is ready now. Returns whether all is over."""
        found = {job.id: job for job in switchyard.list_jobs(tag=self._tag, limit=_PAGE).jobs}
        for name, id in self._ids.items():
            job = found.get(id) or switchyard.get_job(id)
            if job is not None:
                self.jobs[name] = job
        for step in self._steps:
            self._act(step)
        for some in self.together:
            some.look()
        if not self.bulk.jobs:
            self.bulk.active = sum(1 for _ in _all(tag=self.bulk.tag, state=_ACTIVE))
            if self.bulk.active == 0:
                self.bulk.jobs = list(_all(tag=self.bulk.tag))
        self._send_ready()
        return self.bulk.ended and all(some.over for some in self.together) and len(self._ended()) == len(self._steps)

    def rows(self) -> list[Row]:
        """Every step as it stands, in the order of sending; the small jobs are one row."""
        rows = [self._row(step) for step in self._steps]
        rows += [some.row() for some in self.together]
        rows.append(self._bulk_row())
        return rows

    def check(self) -> tuple[list[str], list[Path]]:
        """Hold every job against what its step says. Returns what is wrong, and the files made."""
        wrong: list[str] = []
        files: list[Path] = []
        for step in self._steps:
            try:
                files += self._checked(step)
            except Wrong as error:
                wrong.append(f"{step.name.strip()}: {error}")
        for some in self.together:
            try:
                files += some.check()
            except Wrong as error:
                wrong.append(f"{some.name}: {error}")
        completed = sum(job.state is State.COMPLETED for job in self.bulk.jobs)
        if completed != BULK:
            wrong.append(f"{BULK_NAME}: {completed} are completed, {self.bulk.active} are not over")
        return wrong, files

    def _checked(self, step: Step) -> list[Path]:
        job = self.jobs.get(step.name)
        if job is None:
            raise Wrong("it was never sent, since what it waits for did not end well")
        if job.state is not step.ends:
            raise Wrong(f"job {job.id} ({job.actor}) is {job.state}, not {step.ends}" + (f": {job.error}" if job.error else ""))
        if step.act is not None and step.name not in self._acted:
            raise Wrong(f"job {job.id} ({job.actor}) was over before anything was done to it")
        if step.twice and self.repeats.get(step.name) != (job.id, True):
            raise Wrong(f"sent again it was {self.repeats.get(step.name)}, and not job {job.id}")
        return step.check(job, self.jobs)

    def _act(self, step: Step) -> None:
        """Do to a job what its step says, once it is time."""
        job = self.jobs.get(step.name)
        if step.act is None or job is None or step.name in self._acted:
            return
        when, do = step.act
        if when(job):
            self._acted.add(step.name)
            do(job)
            self.jobs[step.name] = switchyard.get_job(job.id) or job

    def _send_ready(self) -> None:
        ended = self._ended()
        if self.bulk.ended:
            ended.add(BULK_NAME)
        for step in self._steps:
            if step.name in self._ids or not ended.issuperset(step.after):
                continue
            if step.message is not None:
                message = step.message().copy(options={"tags": [self._tag], **step.options})
                again = step.message().copy(options={"tags": [self._tag], **step.options})
                # The second click on a file may be the first one's job.
                message = dramatiq.get_broker().enqueue(message, delay=step.delay)  # type: ignore[arg-type]
                self._ids[step.name] = message.message_id
                if step.twice:
                    again = dramatiq.get_broker().enqueue(again)
                    self.repeats[step.name] = again.message_id, bool(again.options.get("replayed"))
            elif step.child is not None and (parent := self.jobs.get(step.child[0])) and parent.state is State.COMPLETED:
                self._ids[step.name] = parent.result[step.child[1]]

    def _ended(self) -> set[str]:
        """The steps that are over; one whose parent failed is over too, for it will never be sent."""
        ended = {name for name, job in self.jobs.items() if job.state in ENDED}
        for step in self._steps:
            parent = self.jobs.get(step.child[0]) if step.child else None
            if parent is not None and parent.state in ENDED and parent.state is not State.COMPLETED:
                ended.add(step.name)
        return ended

    def _row(self, step: Step) -> Row:
        job = self.jobs.get(step.name)
        if job is None:
            waits_for = step.child[0] if step.child else ", ".join(step.after)
            return Row(name=step.name, note=f"after: {waits_for}" if waits_for else "")
        return Row(
            name=step.name,
            actor=job.actor,
            state=job.state,
            expected=step.ends,
            attempt=f"{job.attempt}/{job.max_attempts}" if job.max_attempts else str(job.attempt),
            progress=job.progress,
            stage=job.stage or "",
            time=_time(job),
            note=_note(job),
        )

    def _bulk_row(self) -> Row:
        done = BULK - self.bulk.active
        state = State.PENDING if done == 0 else State.RUNNING
        if self.bulk.ended:
            state = next((job.state for job in self.bulk.jobs if job.state is not State.COMPLETED), State.COMPLETED)
        return Row(
            name=BULK_NAME,
            actor="flaky",
            state=state,
            expected=State.COMPLETED,
            progress=100 * done / BULK,
            stage=f"{done}/{BULK}",
            time=self._bulk_time(),
            note="sent in one transaction",
        )

    def _bulk_time(self) -> str:
        """Since they were sent, until the last one was over."""
        ends = [job.finished_at for job in self.bulk.jobs if job.finished_at is not None]
        begins = [job.created_at for job in self.bulk.jobs]
        return f"{(max(ends) - min(begins)).total_seconds():.2f} s" if ends else ""


def _all(**filters: Any) -> Iterator[Job]:
    after: str | None = None
    while True:
        page = switchyard.list_jobs(**filters, limit=_PAGE, after=after)
        yield from page.jobs
        after = page.next
        if after is None:
            return


def _time(job: Job) -> str:
    """How long it waits or runs; of a job that has ended, how long that was since it was sent."""
    now = datetime.now(UTC)
    if job.state in ENDED and job.finished_at is not None:
        return f"{(job.finished_at - job.created_at).total_seconds():.2f} s"
    if job.state is State.RUNNING:
        return f"runs {max(0.0, (now - (job.started_at or job.run_at or now)).total_seconds()):.1f} s"
    if job.run_at is None:
        return f"waits for {job.blocked_on or job.wait_reason}"
    left = (job.run_at - now).total_seconds()
    return f"in {left:.1f} s" if left > 0 else f"waits {-left:.1f} s"


def _note(job: Job) -> str:
    if job.error:
        return f"{job.error_type}: {job.error}"
    if isinstance(job.result, dict):
        for name in ("key", "file", "hour"):
            if name in job.result:
                return str(job.result[name])
        return ", ".join(f"{name} {value}" for name, value in job.result.items() if type(value) is int)
    return ""
