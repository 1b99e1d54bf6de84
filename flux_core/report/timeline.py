"""A report drawn over time: memory of each part, and what the copy and compute lanes did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..offload.clock import Ran
from ..offload.report import MemoryReport, PartReport
from ..offload.schedule import COMPUTE, COPY
from ..units import GB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS, REST, COPIES, COMPUTES, STALLS = "#4878a8", "#b8cce0", "#d98c3c", "#4f9d69", "#c0392b"
#: Passes over the blocks that the lanes show; of a whole run nothing could be told apart.
PASSES = 2


def timeline(report: MemoryReport) -> Tensor:
    """Draw a picture (H, W, 3) in [0, 1] of a run's parts.

    Above, bytes on the device while each part ran, weights and what was predicted beside them.
    Below, the lanes of the part that streamed most. Raises ``ValueError`` for an empty report, and
    ``ImportError`` where matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not report.parts:
        raise ValueError("the report is empty: nothing has run yet")
    figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    memory, lanes = figure.subplots(2, 1, height_ratios=(3, 2))
    draw_memory(memory, report)
    name, part = max(report.parts.items(), key=lambda item: item[1].streamed)
    draw_lanes(lanes, name, part)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).float() / 255


def draw_memory(axes: Axes, report: MemoryReport) -> None:
    """Bytes on the device, a bar a part as wide as it ran."""
    parts = sorted(report.parts.items(), key=lambda item: item[1].started)
    least = 0.02 * sum(part.moving + part.seconds for _, part in parts)  # to be seen at all
    at = 0.0
    for name, part in parts:
        width = max(least, part.moving + part.seconds)
        computing = max(part.peak or part.predicted, part.size) - part.size
        weights, rest = part.size / GB, computing / GB
        style: dict[str, Any] = {"align": "edge", "edgecolor": "white"}
        labels = ("weights", "computing, predicted") if at == 0 else (None, None)
        axes.bar(at, weights, width, color=WEIGHTS, label=labels[0], **style)
        axes.bar(at, rest, width, bottom=weights, color=REST, label=labels[1], **style)
        text, top = f"{name}\n{part.mode}", (at + width / 2, (part.size + computing) / GB)
        where: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate(text, top, ha="center", va="bottom", fontsize=8, **where)
        at += width
    axes.margins(y=0.25)
    axes.set(ylabel=f"GB on {report.device}", xlabel="seconds", title="memory by part")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def draw_lanes(axes: Axes, name: str, part: PartReport) -> None:
    """The last passes of one part over its blocks."""
    axes.set_yticks((0, 1), ("compute", "copy"))
    axes.set_ylim(-0.6, 1.6)
    shown = last_passes(part.ran)
    if not shown:
        axes.set_title("nothing was streamed", fontsize=10)
        return
    began = min(ran.start - ran.waited for ran in shown)
    for ran in shown:
        row, color = (1, COPIES) if ran.lane == COPY else (0, COMPUTES)
        length, left = 1e3 * (ran.end - ran.start), 1e3 * (ran.start - began)
        edge = color if row else "white"
        axes.barh(row, length, 0.8, left=left, color=color, edgecolor=edge, linewidth=0.5)
        if ran.waited:
            left = 1e3 * (ran.start - ran.waited - began)
            axes.barh(0, 1e3 * ran.waited, 0.3, left=left, color=STALLS)
    axes.set_xlabel("milliseconds")
    title = (
        f"{name}: the last {PASSES} passes over its streamed blocks; {part.bandwidth / GB:.1f} "
        f"GB/s, {part.stalled:.2f} s stalled in all (red)"
    )
    axes.set_title(title, fontsize=10)


def last_passes(ran: list[Ran]) -> list[Ran]:
    """What ran while the blocks were passed for the last times."""
    computed = [r for r in ran if r.lane == COMPUTE]
    if not computed:
        return []
    count = PASSES * len({r.block for r in computed})
    begin = computed[-count:][0].start
    return [r for r in ran if r.end >= begin]
