"""A batch as a node of a graph: what comes into the node is drawn for every row of a table.

In the host copies of the nodes that rows change are put in the node's place (the host's expansion
of nodes), as many rows a run as it is asked for, each with a node that saves. Outside of the host
the driver draws what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flux_core.errors import ConfigError
from flux_core.record import Note

from ..nodes import host_execution
from ..nodes.guard import guarded
from ..nodes.headless import from_api
from ..nodes.tables import RowsOf
from .draw import Drawer
from .host_known import host_nodes_known
from .host_rows import FAULTS, Run, finish, next_rows
from .report import first_pictures, grid_picture, report_of
from .row_graph import Prompt, RowGraph, graph_to_draw
from .run import Batch, BatchSettings, LocalWorker, run_batch
from .table import open_table

#: What runs now, by the number of the node.
RUNS: dict[str, Run] = {}


@dataclass(frozen=True)
class Asked:
    """What a batch's node is asked for.

    Attributes:
        prompt: the graph that it stands in, as the host has it.
        node: its number there.
        out: the batch's folder.
        rows: that one run draws at most.
        retries: how often a row that failed is tried again.
    """

    prompt: Prompt
    node: str
    table: RowsOf
    out: Path
    rows: int
    retries: int

    def batch(self, graph: Prompt) -> Batch:
        """The batch over the graph that draws, as the driver has it."""
        table = None if self.table.path is None else open_table(self.table.path)
        return Batch(from_api(graph), table, self.table.grid, self.table.mapping, self.out)


def expand(asked: Asked, saver: str, last: str) -> dict[str, Any]:
    """Copies for the next rows, for the host to run; without any left what the folder holds.

    Args:
        saver, last: the classes of what saves a row, and of what comes after all rows.
    """
    node, graph = asked.node, graph_to_draw(asked.prompt, asked.node)
    with host_nodes_known(graph):
        batch = asked.batch(graph)
        rows = next_rows(batch, asked.rows, asked.retries)
    run = Run(batch, graph, rows, asked.rows)
    if not rows.jobs:
        return end_of(run)
    RUNS[node] = run
    prefix = f"{node}.0.0."
    copies = RowGraph(graph, node, prefix, lambda name: guarded(name, note_ran), FAULTS)
    ends: dict[str, Any] = {"node": node}
    saves: Prompt = {}
    for number, job in enumerate(rows.jobs, 1):
        wire, run.copies[job.id] = copies.add(job.values)
        saving = {"images": wire, "node": node, "job": job.id, "number": number}
        saves[prefix + job.id] = {"class_type": saver, "inputs": saving}
        ends[f"row_{number}"] = [prefix + job.id, 0]
    end = {prefix + "end": {"class_type": last, "inputs": ends}}
    result = tuple([prefix + "end", slot] for slot in range(3))
    return {"result": result, "expand": copies.copies | saves | end}


def note_ran(node: str, notes: list[Note], fault: Exception | None) -> None:
    """A copy ran, or failed; its name begins with the number of the node that it is of."""
    run = RUNS.get(node.partition(".")[0])
    if run is not None:
        run.note_ran(node, notes, fault)


def end_of(run: Run) -> dict[str, Any]:
    """Note what failed, write results and sheet, and say what there is."""
    failed = run.note_failed()
    with host_nodes_known(run.graph):
        summary, lines = finish(run.batch)
    report = report_of(summary, lines, failed, run.rows)
    return given(run.batch.out, run.drawn(), run.most, report)


def draw_here(asked: Asked) -> dict[str, Any]:
    """All that is missing, outside of the host; of the pictures the first that are of one size,
    since there are no lists of them there. Shows its ``Summary`` too."""
    graph = graph_to_draw(asked.prompt, asked.node)
    settings = BatchSettings(asked.retries)
    summary = run_batch(asked.batch(graph), settings, lambda: LocalWorker(Drawer(graph)))
    report = report_of(summary)
    images = first_pictures(asked.out, asked.rows)
    if not images:
        first = next((f": line {e['line']}: {e['error']}" for e in summary.errors), "")
        raise ConfigError(f"no row could be drawn: {report.splitlines()[0]}{first}")
    alike = [image for image in images if image.shape == images[0].shape]
    values = (torch.cat(alike), grid_picture(asked.out), report)
    return {"ui": {"text": (report,), "batch": (summary,)}, "result": values}


def given(out: Path, drawn: list[Tensor], most: int, report: str) -> dict[str, Any]:
    """What the node gives: pictures drawn, or else the first of the folder; the grid; a report."""
    images: list[Any] = drawn or first_pictures(out, most) or [host_execution.blocker()]
    grid: Any = grid_picture(out)
    grid = host_execution.blocker() if grid is None else grid
    return {"ui": {"text": (report,)}, "result": (images, grid, report)}
