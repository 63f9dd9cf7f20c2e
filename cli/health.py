"""What is wrong with a system, and what is worth a word, judged from one look at it; each with the way out.

A *problem* is something that keeps jobs from running or will not end by itself: exit code 1, so that a health check hears it. A *note* is
something that somebody wanted, or has to look at some time: dead letters, a pause, a worker that died and was replaced.

    Nothing here is judged in its first minute (``PATIENCE``): a deployment, a restart and a rescue take that long and are no problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from brokers import TRANSPORTS
from cli.broker_status import Depth, overruled, shared
from cli.moments import off, span
from keeper.neighbours import ADVICE
from ledger.overview import PATIENCE, Overview
from ledger.version import LEDGER_REVISION
from settings import Settings

#: Silent workers that are named.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that was found; ``kind`` is for scripts and stays as it is."""

    kind: str
    text: str
    #: What to do about it.
    advice: str


def outdated(revision: str | None) -> Finding | None:
    """What is wrong with a ledger of this revision; None: nothing."""
    if revision is not None and revision >= LEDGER_REVISION:
        return None
    found = "has no ledger" if revision is None else f"is at migration {revision}, this code needs {LEDGER_REVISION}"
    return Finding(kind="ledger_not_migrated", text=f"the database {found}", advice="run `switchyard migrate`")


def unreachable(name: str, reason: str) -> Finding:
    """That a broker in use does not answer."""
    variable = {"postgres": "DATABASE_URL"}.get(name, f"{name.upper()}_URL")
    return Finding(
        kind="broker_unreachable",
        text=f"{name} does not answer from here: {reason}",
        advice=f"start it, or see to {variable}; jobs are accepted meanwhile, and wait in the ledger",
    )


def problems(
    found: Overview, brokers: Mapping[str, Depth], settings: Settings, *, max_wait: float | None = None
) -> list[Finding]:
    """What is wrong.

    Parameters:
        brokers: those in use, each with its answer.
        max_wait: seconds; a job that has been due for longer is a problem, whoever consumes its queue.
    """
    return [
        *(unreachable(name, depth.reason) for name, depth in brokers.items() if depth.reason is not None),
        *_of_refused(brokers),
        *(
            Finding(kind="prefix_shared", text=shared(name, depth.others, settings), advice=ADVICE)
            for name, depth in brokers.items()
            if depth.others
        ),
        *_of_workers(found),
        *_of_queues(found, max_wait),
        *_of_jobs(found),
        *(
            Finding(
                kind="schedule_overdue",
                text=f"schedule {schedule.name} has been due since {off(schedule.due_at, found.now)}",
                advice=f"start a worker that knows the actor {schedule.actor}, or pause it: `switchyard schedules pause`",
            )
            for schedule in found.overdue
        ),
    ]


def notes(found: Overview) -> list[Finding]:
    """What is worth a word."""
    return [*_of_the_dead(found), *_of_the_silent(found), *_of_versions(found), *_of_pauses(found), *_of_routes(found)]


def in_use(found: Overview, configured: str) -> list[str]:
    """The brokers that matter: those that routes lead to, that living workers fetch from, or where jobs wait; else the configured one."""
    names = {route.broker for route in found.routes} | found.holding
    names |= {name for worker in found.living for name in worker.consumes}
    if not names:
        names = {configured}
    return [*(name for name in TRANSPORTS if name in names), *sorted(names - set(TRANSPORTS))]


def _of_refused(brokers: Mapping[str, Depth]) -> Iterable[Finding]:
    for name, depth in brokers.items():
        for refused in depth.refused:
            yield Finding(
                kind="queue_refused",
                text=f"{name} refuses the queue {refused.queue}, whose jobs wait in the ledger: {refused.reason}",
                advice=f"{refused.advice}; it goes on by itself then",
            )


def _of_workers(found: Overview) -> Iterable[Finding]:
    if not found.living:
        yield Finding(kind="no_workers", text="no worker lives", advice="start one: `switchyard worker`")
    if found.unkept is not None and found.unkept > PATIENCE:
        yield Finding(
            kind="no_keeper",
            text=f"nobody has kept the ledger for {span(found.unkept)}: nothing is relayed, rescued or scheduled",
            advice="start a worker, or `switchyard keeper`; if some live, their logs say why",
        )


def _of_queues(found: Overview, max_wait: float | None) -> Iterable[Finding]:
    for queue in found.queues:
        if queue.paused or queue.oldest is None:
            continue
        if not queue.workers and found.living and queue.oldest > PATIENCE:
            yield Finding(
                kind="queue_without_workers",
                text=f"{_jobs(queue.waiting)} in queue {queue.queue}, the oldest for {span(queue.oldest)}, and no worker consumes it",
                advice="start one whose modules declare an actor on it, and whose -Q, if it has any, names it: "
                f"`switchyard worker -Q {queue.queue} MODULE`; or look: `switchyard jobs --queue {queue.queue}`. If no actor is "
                "meant to be on it, docs/howto/dead-letters.md says how its jobs get elsewhere",
            )
        elif max_wait is not None and queue.oldest > max_wait:
            yield Finding(
                kind="waits_too_long",
                text=f"in queue {queue.queue} a job has waited for {span(queue.oldest)}, longer than {span(max_wait)}",
                advice="start more workers, or see what theirs are busy with: `switchyard jobs --state running`",
            )


def _of_jobs(found: Overview) -> Iterable[Finding]:
    if found.lost:
        yield Finding(
            kind="not_rescued",
            text=f"{_jobs(found.lost)} of workers that died {'is' if found.lost == 1 else 'are'} not rescued yet",
            advice="a worker or `switchyard keeper` does that within seconds; if one lives, its log says why",
        )
    for unknown in found.unknown:
        if unknown.oldest > PATIENCE:
            yield Finding(
                kind="unknown_actor",
                text=f"{_jobs(unknown.jobs)} of actor {unknown.actor}, which no worker knows, for {span(unknown.oldest)}",
                advice="start a worker with its module, before they are dead; or cancel them: "
                f"`switchyard cancel --actor {unknown.actor}`",
            )


def _of_the_dead(found: Overview) -> Iterable[Finding]:
    if found.dead:
        lately = f", {found.died_lately:,} of them within the last hour" if found.died_lately else ""
        if found.dead == found.died_lately == 1:
            lately = ", within the last hour"
        some = f"{found.dead:,}{' or more' if found.dead_at_least else ''} dead letter{'' if found.dead == 1 else 's'}"
        yield Finding(kind="dead_letters", text=some + lately, advice="`switchyard dead groups` says of what kind")


def _of_the_silent(found: Overview) -> Iterable[Finding]:
    silent = [worker for worker in found.workers if not worker.alive]
    if silent:
        named = ", ".join(f"{worker.id} for {span(worker.silence)}" for worker in silent[:_NAMED])
        more = f" and {len(silent) - _NAMED:,} more" if len(silent) > _NAMED else ""
        yield Finding(
            kind="worker_silent",
            text=f"silent: {named}{more}",
            advice="they died, or cannot reach Postgres; their jobs go to others",
        )


def _of_versions(found: Overview) -> Iterable[Finding]:
    versions = Counter(worker.version or "one that does not say which" for worker in found.living)
    if len(versions) > 1:
        counted = ", ".join(f"{version} ({count:,})" for version, count in sorted(versions.items()))
        yield Finding(
            kind="mixed_versions",
            text=f"the living workers run several versions of Switchyard: {counted}",
            advice="a rolling deployment does that; if none is under way, restart the older ones: `switchyard workers` shows which",
        )


def _of_pauses(found: Overview) -> Iterable[Finding]:
    for pause in found.pauses:
        options = [f"--queue {pause.queue}"] * (pause.queue is not None) + [f"--actor {pause.actor}"] * (pause.actor is not None)
        yield Finding(
            kind="paused",
            text=f"{pause.what}: paused since {off(pause.since, found.now)}",
            advice=f"`switchyard resume {' '.join(options) or '--all'}` ends it",
        )


def _of_routes(found: Overview) -> Iterable[Finding]:
    for route in found.routes:
        if route.overruled:
            text, _, advice = overruled(route, found.routes).partition(". ")
            yield Finding(kind="route_decided", text=text, advice=advice)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count:,} jobs"
