"""Does a series grow? Only if its slope, its order, its middle and its floor all say so.

A least-squares line is bent by one outlier, and two averages are fooled by where a saw-tooth happens to stand. So four things are asked:

    slope   Theil-Sen, the median of the slopes of all pairs: up to 29 % of the points may be anything
    order   Mann-Kendall, by how much pairs that rise outnumber those that fall: noise gets that far once in 30,000 times
    middle  the median of the last third against that of the first
    floor   what each third was at or above for nine tenths of its time: a leak lifts it; garbage collection and autovacuum come back to it

Something *grows* when its slope is above the limit per hour, its order is no chance, and both its middle and its floor have risen by
more than the slack, which is in absolute terms: below it, nothing is worth a name. What happens in the warm-up is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import TypeVar

#: Fewest points, warm-up not counted, that say anything.
FEWEST = 12
#: Most points that slopes are taken of: the pairs are half of its square.
MOST = 400
#: What the order has to come to, in standard deviations of what chance does.
CHANCE = 4.0
#: The share of a third that may lie below its floor: one odd reading is none.
BELOW = 0.1

Point = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much something may grow."""

    #: A slope up to this is none, per hour.
    per_hour: float
    #: Nor is a rise up to this, from the first third to the last.
    slack: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """What a series does after its warm-up; first and last are the medians of its outer thirds."""

    points: int
    first: float
    last: float
    floor_rise: float
    per_hour: float
    grows: bool

    @property
    def judged(self) -> bool:
        """Whether there were points enough."""
        return self.points >= FEWEST


def trend(series: Sequence[Point], limit: Limit, *, warm_up: float = 0.0) -> Trend:
    """Judge one series of (seconds, value).

    Parameters:
        warm_up: seconds from the first point on that are left out.
    """
    begin = series[0][0] + warm_up if series else 0.0
    points = [point for point in series if point[0] >= begin]
    if len(points) < FEWEST:
        values = [value for _, value in points] or [0.0]
        return Trend(points=len(points), first=values[0], last=values[-1], floor_rise=0.0, per_hour=0.0, grows=False)
    third = len(points) // 3
    early, late = ([value for _, value in part] for part in (points[:third], points[-third:]))
    first, last = median(early), median(late)
    floor_rise = _floor(late) - _floor(early)
    per_hour = theil_sen(points) * 3_600
    ordered = mann_kendall([value for _, value in points]) >= CHANCE
    grows = ordered and per_hour > limit.per_hour and last - first > limit.slack and floor_rise > limit.slack
    return Trend(points=len(points), first=first, last=last, floor_rise=floor_rise, per_hour=per_hour, grows=grows)


def theil_sen(points: Sequence[Point]) -> float:
    """The median of the slopes of all pairs, per second; of evenly chosen points where there are very many."""
    chosen = _thinned(points)
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for at, earlier in enumerate(chosen)
        for later in chosen[at + 1 :]
        if later[0] > earlier[0]
    ]
    return median(slopes) if slopes else 0.0


def mann_kendall(values: Sequence[float]) -> float:
    """How far the pairs that rise outnumber those that fall, in standard deviations of the same numbers in any order."""
    chosen = _thinned(values)
    size = len(chosen)
    excess = sum((later > earlier) - (later < earlier) for at, earlier in enumerate(chosen) for later in chosen[at + 1 :])
    return excess / sqrt(size * (size - 1) * (2 * size + 5) / 18)


def slower(windows: Sequence[float], ratio: float, slack: float) -> bool:
    """Whether times (or whatever should not rise) are worse in the end: the last third's median beyond the first's times ``ratio``,
    and ``slack`` on top."""
    if len(windows) < 3:
        return False
    third = len(windows) // 3
    return median(windows[-third:]) > median(windows[:third]) * ratio + slack


def _thinned(points: Sequence[T]) -> Sequence[T]:
    return points[:: -(-len(points) // MOST)]


def _floor(values: Sequence[float]) -> float:
    return sorted(values)[int(BELOW * len(values))]
