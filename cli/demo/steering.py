"""What the demo steers, beside jobs that simply run: a burst over a rate limit, and a group with its callback.

Each is one row of the board, as the small jobs are. Imported after ``switchyard.configure``, as ``steps``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Final

import switchyard
from actors import paced, process_image, send_email
from cli.demo.board import Row
from cli.demo.steps import Wrong, email, stored_file
from switchyard import Job, State

#: How many jobs the burst has, and how many of them its actor's limit lets start in a second.
BURST: Final = 12
RATE: Final = 10
#: By how much all starts together may look closer than the limit says, in seconds: on a busy machine a job starts a moment after it was
#: allowed to, the first one too.
SLACK: Final = 0.3
#: The boxes that the group's pictures are made to fit, in pixels.
BOXES: Final = (120, 240, 480)

_MOST: Final = 200


class Together(ABC):
    """Some jobs that are shown as one row."""

    name: str
    actor: str
    count: int

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    @abstractmethod
    def send(self) -> None:
        """Send them."""

    @abstractmethod
    def look(self) -> None:
        """See how they stand."""

    @property
    def ended(self) -> int:
        """How many have ended."""
        return sum(job.state in (State.COMPLETED, State.DEAD, State.CANCELLED) for job in self.jobs)

    @property
    def over(self) -> bool:
        """Whether all there is to wait for has ended."""
        return self.ended == self.count

    @abstractmethod
    def check(self) -> list[Path]:
        """The files they made. Raises: Wrong."""

    @abstractmethod
    def says(self) -> str:
        """What came of it, in a few words; empty while it is not over."""

    def row(self) -> Row:
        """The row of the board."""
        states = {job.state for job in self.jobs}
        bad = next((state for state in (State.DEAD, State.CANCELLED) if state in states), State.COMPLETED)
        state = (bad if self.over else State.RUNNING) if self.jobs else None
        return Row(
            name=self.name,
            actor=self.actor,
            state=state,
            progress=100 * self.ended / self.count if self.jobs else None,
            stage=f"{self.ended}/{self.count}",
            time=self.span(),
            note=self.says(),
        )

    def span(self) -> str:
        """From the first send to the last end."""
        ends = [job.finished_at for job in self.jobs if job.finished_at is not None]
        if not ends or not self.over:
            return ""
        return f"{(max(ends) - min(job.created_at for job in self.jobs)).total_seconds():.2f} s"

    def require_completed(self) -> None:
        """Raises: Wrong: one of them is not completed."""
        for job in self.jobs:
            if job.state is not State.COMPLETED:
                raise Wrong(f"job {job.id} ({job.actor}) is {job.state}" + (f": {job.error}" if job.error else ""))
        if len(self.jobs) != self.count:
            raise Wrong(f"{len(self.jobs)} of its {self.count} jobs were sent")


class Burst(Together):
    """More jobs at once than their actor's rate limit allows: each is told its time, and starts then."""

    name = "limited burst"
    actor = "paced"
    count = BURST

    def __init__(self, tag: str) -> None:
        super().__init__()
        self._tag = f"{tag}-burst"

    def send(self) -> None:
        """Send all of them at once."""
        switchyard.enqueue_many([paced.message_with_options(args=(number,), tags=[self._tag]) for number in range(BURST)])

    def look(self) -> None:
        """Ask for them by their tag."""
        self.jobs = list(switchyard.list_jobs(tag=self._tag, limit=_MOST).jobs)

    def check(self) -> list[Path]:
        """All of them took as long as the limit says, and waiting has cost no attempt."""
        self.require_completed()
        took, least = sum(self._gaps()), (BURST - 1) / RATE
        if took < least - SLACK:
            raise Wrong(f"{BURST} jobs started within {took:.2f} s, a limit of {RATE} a second takes {least:.2f} s")
        if any(job.attempt != 1 for job in self.jobs):
            raise Wrong("waiting for the limit has cost an attempt")
        return []

    def says(self) -> str:
        """The rate that was kept."""
        if not self.over or len(self.jobs) < BURST:
            return ""
        gaps = self._gaps()
        return f"{len(gaps) / sum(gaps):.1f} starts a second, the limit is {RATE}"

    def _gaps(self) -> list[float]:
        starts = sorted(job.started_at for job in self.jobs if job.started_at is not None)
        return [(later - sooner).total_seconds() for sooner, later in pairwise(starts)]


class Thumbnails(Together):
    """A group: one picture in three sizes, and an e-mail when all of them are there."""

    name = "picture group"
    actor = "process_image"
    count = len(BOXES)

    def __init__(self, run: str, picture: str) -> None:
        super().__init__()
        self._run = run
        done = send_email.message("ada@example.org", f"Thumbnails {run}", "All sizes are there.")
        sizes = [process_image.message(picture, box, box, format="webp") for box in BOXES]
        self._group = switchyard.group(sizes, name=f"thumbnails {run}", on_success=done)
        self._callbacks: tuple[switchyard.BatchCallback, ...] = ()
        self._callback: Job | None = None

    def send(self) -> None:
        """Write the group with its callback."""
        self._group.run()

    def look(self) -> None:
        """Ask for the group's jobs and its callback."""
        self.jobs = list(switchyard.list_jobs(batch=self._group.id, limit=_MOST).jobs)
        self._callbacks = switchyard.batch(self._group.id).callbacks
        for callback in self._callbacks:
            self._callback = switchyard.get_job(callback.id)

    @property
    def over(self) -> bool:
        """The callback comes after the pictures; there is none when one of them failed."""
        failed = any(job.state in (State.DEAD, State.CANCELLED) for job in self.jobs)
        told = self._callback is not None and self._callback.state in (State.COMPLETED, State.DEAD, State.CANCELLED)
        return super().over and (failed or told)

    def check(self) -> list[Path]:
        """Every picture is there, and one e-mail."""
        self.require_completed()
        files = [stored_file(job) for job in self.jobs]
        if len(self._callbacks) != 1 or self._callback is None or self._callback.state is not State.COMPLETED:
            raise Wrong(f"its callback did not come once: {self._callback}")
        return [*files, *email(self._callback, {})]

    def says(self) -> str:
        """That the callback came."""
        if not self.over or self._callback is None:
            return ""
        return f"callback {self._callback.actor}: {self._callback.state}"
