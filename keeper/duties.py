"""The table of duties: what runs, in this order, and how often. The relay is not among them, since it says itself when its next turn is.

A new duty is a file beside this one and a line here.
"""

from __future__ import annotations

from typing import Final

from keeper import (
    batches,
    dead_letters,
    expiry,
    keys,
    look,
    lost,
    pauses,
    rescue,
    retention,
    samples,
    schedule,
    slots,
    strays,
    unknown,
    workers,
)
from keeper.duty import Duty
from settings import Settings

#: How often that runs which moves slowly, in seconds.
SLOW: Final = 60.0


def _sweep(settings: Settings) -> float:
    return settings.sweep


def _slowly(_: Settings) -> float:
    return SLOW


#: The loop gives it a turn when a tick is due, besides.
SCHEDULE: Final = Duty("schedule", schedule.rest, schedule.sweep)

DUTIES: Final = (
    # Before ticks are made: what this process declares may have changed when they are.
    Duty("schedules", schedule.often, schedule.declare),
    SCHEDULE,
    # First of those that sweep: they ask what it saw.
    Duty("look", _sweep, look.sweep),
    Duty("rescue", _sweep, rescue.sweep),
    Duty("pauses", _sweep, pauses.sweep),
    Duty("strays", _sweep, strays.sweep),
    Duty("lost", _sweep, lost.sweep),
    Duty("expiry", _sweep, expiry.sweep),
    Duty("unknown", _sweep, unknown.sweep),
    # After those that end jobs.
    Duty("batches", _sweep, batches.sweep),
    Duty("dead letters", _sweep, dead_letters.sweep),
    Duty("slots", _sweep, slots.sweep),
    Duty("gates", _slowly, slots.forget),
    Duty("retention", retention.period, retention.sweep),
    Duty("samples", lambda settings: settings.sample_every, samples.sweep),
    Duty("keys", _slowly, keys.sweep),
    Duty("workers", _slowly, workers.sweep),
    Duty("declarations", _slowly, strays.forget),
    Duty("old batches", _slowly, batches.forget),
)
