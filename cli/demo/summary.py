"""What came of a demo: the files it made, how the failing jobs failed, how fast the small ones were, and what to try next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

import switchyard
from cli.demo.course import Course
from cli.demo.steps import BULK_NAME
from cli.processes import shown
from cli.stack import Stack
from switchyard import State

Say = Callable[[str], None]

_KB: Final = 1_000
_MS: Final = 1_000


def print_summary(console: Console, stack: Stack, course: Course, files: Sequence[Path]) -> None:
    """Print it; parts whose jobs did not get that far are left out."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say("")
    say("[bold]Files made[/]")
    for path in files:
        say(f"  {_size(path):>9}  {escape(shown(path))}")
    _failures(say, course)
    _steered(say, course)
    _speed(say, course)
    say("")
    say("[bold]Where everything is[/]")
    for name, place in stack.places:
        say(f"  {name:10}{escape(place)}")
    if stays := stack.stays():
        say("")
        say("[bold]What stays[/]")
        for what in stays:
            say(f"  {escape(what)}")
    _next_steps(say, stack)
    say("")


def _failures(say: Say, course: Course) -> None:
    flaky, dead = course.jobs.get("fails twice"), course.jobs.get("dies")
    if flaky is not None:
        say("")
        say(f"[bold]A job that failed twice[/]  {flaky.id}")
        for attempt in switchyard.attempts(flaky.id):
            words = f"{attempt.error_type}: {attempt.error}" if attempt.error else ""
            colour = "green" if attempt.outcome == "completed" else "magenta"
            say(f"  {attempt.attempt} [{colour}]{attempt.outcome}[/]  {escape(words)}")
    if dead is not None and dead.state is State.DEAD:
        say("")
        say(f"[bold]The dead letter[/]  {dead.id}")
        say(f"  {dead.actor}  [red]dead[/] after {dead.attempt} attempts ({dead.dead_reason})")
        say(f"  {escape(f'{dead.error_type}: {dead.error}')}")


def _steered(say: Say, course: Course) -> None:
    """What was done to jobs on their way, and what came of it."""
    lines = [(some.name, some.says()) for some in course.together]
    for name, (id_, replayed) in course.repeats.items():
        lines.append((name, f"one job, {id_}" if replayed else f"a second job, {id_}"))
    stopped, replayed_job = course.jobs.get("cancelled"), course.jobs.get("replayed")
    if stopped is not None and stopped.cancel_requested_at is not None and stopped.finished_at is not None:
        took = (stopped.finished_at - stopped.cancel_requested_at).total_seconds()
        lines.append(("cancelled", f"at {stopped.progress or 0:.1f} %, stopped {took * _MS:.0f} ms after it was asked to"))
    if replayed_job is not None and replayed_job.generation > 1:
        lines.append(
            ("replayed", f"a dead letter with other arguments: {replayed_job.state}, generation {replayed_job.generation}")
        )
    if any(text for _, text in lines):
        say("")
        say("[bold]Steered[/]")
        for name, text in lines:
            say(f"  {name:19}{escape(text)}")


def _speed(say: Say, course: Course) -> None:
    """From the send's commit to the completion's; all times are Postgres's own."""
    spans = [(job.created_at, job.finished_at) for job in course.bulk.jobs if job.finished_at is not None]
    if not spans:
        return
    total = (max(end for _, end in spans) - min(begin for begin, _ in spans)).total_seconds()
    latencies = sorted((end - begin).total_seconds() for begin, end in spans)
    say("")
    say(f"[bold]{BULK_NAME}, beside all the others[/]")
    say(
        f"  sent in {course.bulk.sending * _MS:.0f} ms, all completed after {total * _MS:.0f} ms: {len(spans) / total:,.0f} jobs/s"
    )
    say(
        f"  from send to completion: half within {_percentile(latencies, 50) * _MS:.0f} ms, "
        f"95 % within {_percentile(latencies, 95) * _MS:.0f} ms"
    )


def _next_steps(say: Say, stack: Stack) -> None:
    # In a checkout by make, which needs no path to the virtual environment.
    command = "make" if Path("Makefile").exists() else "switchyard"
    other = stack.other_brokers()[0]
    say("")
    say("[bold]What to try next[/]")
    say(f"  {f'BROKER={other} {command} demo':33}the same jobs, another broker")
    say(f"  {f'{command} up':33}the stack, until Ctrl-C, for jobs of your own")
    say(f"  {'actors/examples.py':33}job types of a few lines each: add yours")


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size} B" if size < _KB else f"{size / _KB:,.1f} kB"
