"""How a LoRA's strength goes over a run: points on the schedule, and lines or steps between them.

    0:1, 0.5:1, 0.8:0          lines: all of it for the first half, then less, none from 0.8 on
    step 0:1, 0.5:0            steps: all of it, and from the middle on none

Left of the colon stands the share of the schedule, from 0 (noise) to 1, as spans of prompts and of
ControlNets have it; right of it what the strength is multiplied with.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from ..bounds import brief, check_number

NAME = "a LoRA's schedule"
LINEAR, STEP = "linear", "step"
MOST_POINTS = 1000


@dataclass(frozen=True)
class StrengthSchedule:
    """Points (share, factor) by rising share; of two at one share the later holds from there on.

    Before the first point its factor holds, after the last one that one's. ``stepped``: each holds
    until the next, rather than lines between them.
    """

    points: tuple[tuple[float, float], ...]
    stepped: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.points) <= MOST_POINTS:
            raise ValueError(f"{NAME} has {len(self.points)} points, expected 1 to {MOST_POINTS}")
        last = 0.0
        for place, (share, factor) in enumerate(self.points):
            check_number(share, f"{NAME}: the share of point {place}", 0, 1)
            check_number(factor, f"{NAME}: the factor of point {place}", -1000, 1000)
            if share < last:
                raise ValueError(f"{NAME}: {share:g} comes after {last:g}, expected rising shares")
            last = share

    @classmethod
    def parse(cls, text: str) -> StrengthSchedule:
        """Read points such as ``0:1, 0.5:0``, or ``step 0:1, 0.5:0``; raises ``ValueError``."""
        head, _, rest = text.strip().partition(" ")
        mode = head.lower()
        stepped = mode == STEP
        entries = (rest if mode in (LINEAR, STEP) else text).split(",")
        return cls(tuple(point_of(entry) for entry in entries if entry.strip()), stepped)

    @classmethod
    def of(cls, value: StrengthSchedule | str | None) -> StrengthSchedule | None:
        """A schedule as it is, or of its text."""
        if value is None or isinstance(value, StrengthSchedule):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{NAME} is {brief(value)}, expected a text such as 0:1, 0.5:0")
        return cls.parse(value)

    def at(self, share: float) -> float:
        """What the strength is multiplied with at a share of the schedule."""
        later = bisect_right([point[0] for point in self.points], share)
        if later == 0:
            return self.points[0][1]
        begin, before = self.points[later - 1]
        if self.stepped or later == len(self.points):
            return before
        end, after = self.points[later]
        return before + (after - before) * (share - begin) / (end - begin)


def point_of(entry: str) -> tuple[float, float]:
    """A point of its text; raises ``ValueError`` naming it where it is none."""
    try:
        share, factor = (float(part) for part in entry.split(":"))
    except ValueError as error:
        raise ValueError(
            f"{NAME}: {brief(entry.strip())} is no point, expected one such as 0.5:1, the share of "
            f"the schedule and the factor there, behind {LINEAR} or {STEP} or neither"
        ) from error
    return share, factor
