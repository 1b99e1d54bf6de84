"""The exact sequence of copies and computations of a ring, and a clock to run it against.

``make_schedule`` lists what ``Ring`` does, in the order in which it does it; ``simulate`` gives
each entry its time, with one lane for copies and one for computing, both first come, first served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

COPY, COMPUTE = "copy", "compute"


@dataclass(frozen=True)
class LaneTask:
    """One copy into a slot, or one block's computation (``slot`` None: it is resident)."""

    lane: str
    block: int
    step: int
    slot: int | None


@dataclass(frozen=True)
class Span:
    """When an entry ran, in seconds."""

    entry: LaneTask
    start: float
    end: float


def make_schedule(count: int, streamed: Collection[int], slots: int, steps: int) -> list[LaneTask]:
    """Copies and computations of ``steps`` steps over ``count`` blocks, some of them streamed.

    A copy is listed under the step that reads it. The copies past the last step are left out.
    """
    order = sorted(streamed)
    slots = min(slots, len(order))
    entries = [LaneTask(COPY, order[k], 0, k) for k in range(slots)]
    holding = {order[k]: k for k in range(slots)}
    following = slots
    for step in range(steps):
        for block in range(count):
            slot = holding.pop(block) if block in streamed else None
            entries.append(LaneTask(COMPUTE, block, step, slot))
            if slot is None:
                continue
            turn, place = divmod(following, len(order))
            if turn < steps:
                entries.append(LaneTask(COPY, order[place], turn, slot))
                holding[order[place]] = slot
            following += 1
    return entries


def simulate(
    entries: Sequence[LaneTask], copying: Sequence[float], computing: Sequence[float]
) -> list[Span]:
    """Run a schedule against the clock.

    Args:
        copying, computing: seconds that each block takes, by its number.
    """
    free = {COPY: 0.0, COMPUTE: 0.0}
    filled: dict[int, float] = {}
    released: dict[int, float] = {}
    spans = []
    for entry in entries:
        waits_for = filled if entry.lane == COMPUTE else released
        start = free[entry.lane]
        if entry.slot is not None:
            start = max(start, waits_for.get(entry.slot, 0.0))
        end = start + (copying if entry.lane == COPY else computing)[entry.block]
        free[entry.lane] = end
        if entry.slot is not None:
            (filled if entry.lane == COPY else released)[entry.slot] = end
        spans.append(Span(entry, start, end))
    return spans


def step_seconds(spans: Sequence[Span]) -> float:
    """Seconds of the last step, which is that of all but the first."""
    ends: dict[int, float] = {}
    for span in spans:
        if span.entry.lane == COMPUTE:
            ends[span.entry.step] = max(ends.get(span.entry.step, 0.0), span.end)
    steps = sorted(ends)
    before = ends[steps[-2]] if len(steps) > 1 else 0.0
    return ends[steps[-1]] - before
