"""Where a graph's nodes lie on the page, and how its wires go round them.

Steps stand from left to right, each with a frame; a step has columns, a column has nodes from top
to bottom. A wire to the next column is direct. One that passes columns goes in a lane above them,
by reroutes, so that none is behind a node.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tools.graphs import Description
from tools.pages import Page

#: Pixels of the page: a node's title bar and the badge above it, a row of sockets.
TITLE, BADGE, SOCKET = 30, 22, 20
#: Between columns of a step and between steps, for wires to turn in; between nodes of a column.
GAP, STEP_GAP, SPACE = 64, 104, 20
#: How much taller than wide a wire between columns may be before its curve leaves them.
STEEPNESS = 7
#: Between lanes, and a frame's margin and its own title.
LANE, MARGIN, FRAME_TITLE = 24, 24, 40
#: Height of lanes above the nodes, about.
LANES = 150
#: The part of a gap that is between a column and where a wire turns into its lane.
TURN = 0.3
COLORS = ("#3f789e", "#b58b2a", "#8a8", "#a1309b", "#88a", "#b06634", "#8aa")


@dataclass
class Box:
    """A node's place without its title bar, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass
class Reroute:
    """A point that wires from one output pass, after that of the number ``parent``."""

    id: int
    x: int
    y: int
    parent: int | None
    links: list[int] = field(default_factory=list)


@dataclass
class Layout:
    """Places of nodes by name, frames and reroutes as the page writes them."""

    boxes: dict[str, Box]
    groups: list[dict[str, Any]]
    reroutes: list[Reroute]
    last_reroute: dict[int, int]  # of a wire, by its number

    def extra(self) -> dict[str, Any]:
        """The part of a workflow's file that holds reroutes."""
        points = [
            {"id": r.id, "pos": [r.x, r.y], "linkIds": r.links}
            | ({} if r.parent is None else {"parentId": r.parent})
            for r in self.reroutes
        ]
        ends = [{"id": link, "parentId": end} for link, end in self.last_reroute.items()]
        return {"linkExtensions": ends, "reroutes": points} if points else {}


@dataclass(frozen=True)
class Wire:
    """A wire's number, the nodes that it joins, and their sockets from the top."""

    number: int
    source: str
    slot: int
    target: str
    place: int


class Columns:
    """The columns of a page's steps: what stands where, and how wide the gaps are."""

    def __init__(
        self, page: Page, graph: Description, sizes: Mapping[str, tuple[int, int]]
    ) -> None:
        self.page = page
        self.columns = [column for step in page.steps.values() for column in step]
        self.last = set(itertools.accumulate(len(step) for step in page.steps.values()))
        self.of = {name: i for i, column in enumerate(self.columns) for name in column}
        if set(self.of) != set(graph):
            odd = sorted(set(self.of) ^ set(graph))
            raise ValueError(f"on the page or in the graph, but not in both: {', '.join(odd)}")
        self.sizes = sizes
        self.boxes: dict[str, Box] = {}
        self.gaps: list[int] = []

    def place(self, wires: list[Wire]) -> None:
        for column in self.columns:
            y, width = 0, max(self.sizes[name][0] for name in column)
            for name in column:
                self.boxes[name] = Box(0, y, width, self.sizes[name][1])
                y += self.sizes[name][1] + TITLE + BADGE + SPACE
        x = 0
        for i, column in enumerate(self.columns):
            for name in column:
                self.boxes[name].x = x
            self.gaps.append(self.gap(i, wires))
            x += self.boxes[column[0]].width + self.gaps[i]

    def gap(self, column: int, wires: list[Wire]) -> int:
        """Pixels behind a column: more where wires run far up or down there."""
        rises = [0]
        for wire in wires:
            start, end = self.of[wire.source], self.of[wire.target]
            y, v = self.start(wire)[1], self.end(wire)[1]
            if start == column:
                rises.append(abs(v - y) if end == start + 1 else y + LANES)
            elif end == column + 1:
                rises.append(v + LANES)
        return max(STEP_GAP if column + 1 in self.last else GAP, max(rises) // STEEPNESS)

    def start(self, wire: Wire) -> tuple[int, int]:
        """Where a wire leaves its source."""
        box = self.boxes[wire.source]
        return box.x + box.width, box.y + 14 + SOCKET * wire.slot

    def end(self, wire: Wire) -> tuple[int, int]:
        """Where a wire enters its target."""
        box = self.boxes[wire.target]
        return box.x, box.y + 14 + SOCKET * wire.place

    def left(self, column: int) -> int:
        return self.boxes[self.columns[column][0]].x

    def right(self, column: int) -> int:
        return self.left(column) + self.boxes[self.columns[column][0]].width

    def turns(self, first: int, ends: list[int]) -> list[int]:
        """Where wires turn into a lane above the first of some columns, and down to targets."""
        start = self.left(first) - round(TURN * self.gaps[first - 1])
        return [start, *(self.right(e - 1) + round(TURN * self.gaps[e - 1]) for e in ends)]

    def frames(self, top: int) -> list[dict[str, Any]]:
        """A coloured frame a step."""
        groups, first = [], 0
        for i, (title, step) in enumerate(self.page.steps.items()):
            last = first + len(step) - 1
            boxes = [self.boxes[name] for column in step for name in column]
            bottom = max(box.y + box.height for box in boxes) + MARGIN
            x = self.left(first) - MARGIN
            width = self.right(last) + MARGIN - x
            groups.append(
                {
                    "id": i + 1,
                    "title": title,
                    "bounding": [x, top, width, bottom - top],
                    "color": COLORS[i % len(COLORS)],
                    "font_size": 24,
                    "flags": {},
                }
            )
            first = last + 1
        return groups


def lanes(nets: list[tuple[int, int]]) -> list[int]:
    """A lane for each span of columns, such that spans of one lane do not meet; 0 is the lowest."""
    taken: list[list[tuple[int, int]]] = []
    chosen = []
    for first, last in nets:
        free = (all(last < a or b < first for a, b in spans) for spans in taken)
        lane = next((i for i, is_free in enumerate(free) if is_free), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        chosen.append(lane)
    return chosen


def lay_out(
    page: Page, graph: Description, sizes: Mapping[str, tuple[int, int]], wires: list[Wire]
) -> Layout:
    """Places for the nodes of a graph whose sizes and wires are given."""
    columns = Columns(page, graph, sizes)
    columns.place(wires)
    far: dict[tuple[str, int], list[Wire]] = {}
    for wire in wires:
        if columns.of[wire.target] > columns.of[wire.source] + 1:
            far.setdefault((wire.source, wire.slot), []).append(wire)
    # the lowest output's wires turn first, under those of the ones above it
    nets = sorted(far.values(), key=lambda net: (columns.of[net[0].source], -net[0].slot))
    spans = [
        (columns.of[net[0].source] + 1, max(columns.of[w.target] for w in net) - 1) for net in nets
    ]
    reroutes: list[Reroute] = []
    last_reroute: dict[int, int] = {}
    chosen = lanes(spans)
    for net, lane, (first, _) in zip(nets, chosen, spans, strict=True):
        y = -TITLE - BADGE - LANE * (lane + 1)
        ends = sorted({columns.of[wire.target] for wire in net})
        chain = []
        for x in columns.turns(first, ends):
            parent = chain[-1].id if chain else None
            chain.append(Reroute(len(reroutes) + len(chain) + 1, x, y, parent))
        for wire in net:
            end = 1 + ends.index(columns.of[wire.target])
            last_reroute[wire.number] = chain[end].id
            for reroute in chain[: end + 1]:
                reroute.links.append(wire.number)
        reroutes += chain
    top = -TITLE - BADGE - LANE * (1 + max(chosen, default=-1)) - MARGIN - FRAME_TITLE
    return Layout(columns.boxes, columns.frames(top), reroutes, dict(sorted(last_reroute.items())))


def note_box(text: str, layout: Layout) -> Box:
    """The place of a note under the first step, tall enough for its text."""
    x, top, width, height = layout.groups[0]["bounding"]
    lines = sum(1 + 6 * len(line) // width for line in text.splitlines() if line)
    return Box(x, top + height + TITLE + MARGIN, width, 40 + 15 * lines + 8 * text.count("\n\n"))
