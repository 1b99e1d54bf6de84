"""The node that draws the graph before it for every row of a table.

In the host it puts copies of the nodes that rows change in its own place (the host's expansion of
nodes), as many rows a run as it is asked for, each with a node that saves. Outside of the host the
driver of ``fluxfit batch`` draws what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flux_core.errors import ConfigError
from flux_core.receipts import KEY
from flux_core.record import Note

from . import host, host_execution
from .batch_graph import Prompt, RowGraph, graph_to_draw
from .guard import guarded
from .tables import RowsOf
from .widgets import ADVANCED, integer, socket, text
from .wires import BATCHES, FLUXFIT_TABLE

if TYPE_CHECKING:
    from ..batch.run import Batch
    from .batch_rows import Run

#: Rows that one run of the host draws at most: it keeps what nodes gave until the next.
MOST_ROWS = 200
#: What runs now, by the number of the node.
RUNS: dict[str, Run] = {}


class FluxFitBatch:
    """The graph before it, once a row."""

    DESCRIPTION = (
        "Draws what comes into images once for every row of a table, into a folder below the "
        "output folder: pictures, a manifest of what is done, results.csv, index.html to look at, "
        "grid.png. Queue again to go on; what is done is not drawn twice, and fluxfit batch goes "
        "on with the same folder."
    )
    CATEGORY = BATCHES
    FUNCTION = "draw"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["batch", "table", "for each", "loop", "xy plot", "csv"]
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("images", "grid", "report")
    OUTPUT_IS_LIST = (True, False, False)
    OUTPUT_TOOLTIPS = (
        "The pictures of the rows that this run drew, one after another; where nothing was left "
        "to draw, the first ones of the folder.",
        "The first pictures of the folder with their values, as grid.png has them.",
        "How many are done, failed and left.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "table": socket(FLUXFIT_TABLE, "From FluxFitTable."),
                "images": socket(
                    "IMAGE", "The pictures that a row is to have; drawn for rows alone.", lazy=True
                ),
                "folder": text("batch", "A folder below the output folder."),
                "rows": integer(
                    20,
                    1,
                    MOST_ROWS,
                    "Rows that one run draws; queue again for the next. The host keeps their "
                    "latents and prompts in memory until then.",
                ),
            },
            "optional": {
                "retries": integer(
                    1, 0, 10, "How often later runs try a row that failed again.", **ADVANCED
                ),
            },
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, folder: str, **_: object):
        """What the folder holds says whether there may be something to draw."""
        out = host.inside(host.output_folder(), folder)
        looked_at = [out / "manifest.jsonl", *sorted((out / "pictures").glob("*"))]
        return str([(p.name, p.stat().st_mtime_ns) for p in looked_at if p.exists()])

    def check_lazy_status(self, **_: object) -> list[str]:
        """Nothing: the graph itself is not drawn, its rows are."""
        return []

    def draw(
        self,
        table: RowsOf,
        folder: str,
        rows: int,
        prompt: dict[str, Any],
        unique_id: str,
        images: Tensor | None = None,
        retries: int = 1,
    ):
        graph = graph_to_draw(prompt, unique_id)
        out = host.inside(host.output_folder(), folder)
        if host_execution.node_classes():
            return expand(graph, unique_id, table, out, rows, retries)
        return draw_here(graph, table, out, rows, retries)


def batch_of(graph: Prompt, table: RowsOf, out: Path) -> Batch:
    """A batch as the driver has it."""
    from ..batch.run import Batch
    from ..batch.table import open_table
    from .headless import by_content, from_api

    opened = None if table.path is None else open_table(table.path)
    return Batch(from_api(graph), opened, table.grid, table.mapping, out, by_content)


def expand(graph: Prompt, node: str, table: RowsOf, out: Path, rows: int, retries: int):
    """Copies for the next rows, for the host to run; without any left what the folder holds."""
    from .batch_rows import FAULTS, Run, next_rows
    from .host_known import host_nodes_known

    host_execution.add_node_classes({FluxFitSaveRow.__name__: FluxFitSaveRow, END: FluxFitBatchEnd})
    with host_nodes_known(graph):
        batch = batch_of(graph, table, out)
        chosen = next_rows(batch, rows, retries)
    run = RUNS[node] = Run(batch, graph, chosen, rows)
    if not chosen.jobs:
        return end_of(RUNS.pop(node))
    prefix = f"{node}.0.0."
    copies = RowGraph(graph, node, prefix, lambda name: guarded(name, note_ran), FAULTS)
    ends: dict[str, Any] = {"node": node}
    saves: Prompt = {}
    for number, job in enumerate(chosen.jobs, 1):
        wire, run.copies[job.id] = copies.add(job.values)
        saving = {"images": wire, "node": node, "job": job.id, "number": number}
        saves[prefix + job.id] = {"class_type": FluxFitSaveRow.__name__, "inputs": saving}
        ends[f"row_{number}"] = [prefix + job.id, 0]
    last = {prefix + "end": {"class_type": END, "inputs": ends}}
    result = tuple([prefix + "end", slot] for slot in range(3))
    return {"result": result, "expand": copies.copies | saves | last}


def note_ran(node: str, notes: list[Note], fault: Exception | None) -> None:
    """A copy ran, or failed; its name begins with the number of the node that it is of."""
    run = RUNS.get(node.partition(".")[0])
    if run is not None:
        run.note_ran(node, notes, fault)


class FluxFitSaveRow:
    """Saves one row's pictures and notes that it is done; a part of FluxFitBatch."""

    CATEGORY = BATCHES
    FUNCTION = "save"
    OUTPUT_NODE = True
    DEPRECATED = True  # so that no list offers it
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        values = {name: ("STRING", {}) for name in ("node", "job")}
        return {
            "required": {"images": ("IMAGE",), **values, "number": ("INT", {})},
            "hidden": {"extra_pnginfo": "EXTRA_PNGINFO"},
        }

    @classmethod
    def IS_CHANGED(cls, **_: object):
        return float("nan")

    def save(
        self,
        images: Tensor,
        node: str,
        job: str,
        number: int,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ):
        run = RUNS[node]
        files = run.save(job, images, node, (extra_pnginfo or {}).get(KEY))
        host_execution.show_progress(node, number, len(run.rows.jobs))
        host.tell_page({"text": run.progress(number)})
        return {
            "ui": {"images": [host_execution.shown_file(run.batch.out / file) for file in files]}
        } | {"result": (images,)}


class FluxFitBatchEnd:
    """What all rows came to, when every one of them is saved or failed; a part of FluxFitBatch."""

    CATEGORY = BATCHES
    FUNCTION = "end"
    DEPRECATED = True
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    #: Wires that are waited for and not read: of a row that failed there is nothing to read.
    ROWS = {f"row_{n}": ("IMAGE", {"rawLink": True}) for n in range(1, MOST_ROWS + 1)}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"node": ("STRING", {})}, "optional": cls.ROWS}

    @classmethod
    def IS_CHANGED(cls, **_: object):
        return float("nan")

    def end(self, node: str, **_: object):
        return end_of(RUNS.pop(node))


END = FluxFitBatchEnd.__name__


def end_of(run: Run) -> dict[str, Any]:
    """Note what failed, write results and sheet, and say what there is."""
    from .batch_report import report_of
    from .batch_rows import finish
    from .host_known import host_nodes_known

    failed = run.note_failed()
    with host_nodes_known(run.graph):
        summary, left_out = finish(run.batch)
    report = report_of(summary, left_out, failed, run.rows)
    return given(run.batch.out, run.drawn(), run.most, report)


def draw_here(graph: Prompt, table: RowsOf, out: Path, rows: int, retries: int) -> dict[str, Any]:
    """All that is missing, outside of the host; of the pictures the first that are of one size,
    since there are no lists of them there."""
    from ..batch.draw import Drawer
    from ..batch.run import BatchSettings, LocalWorker, run_batch
    from ..batch.sheet import write_sheet
    from .batch_report import first_pictures, grid_picture, report_of

    batch = batch_of(graph, table, out)
    summary = run_batch(batch, BatchSettings(retries), lambda: LocalWorker(Drawer(graph)))
    report = report_of(summary, write_sheet(out).left_out)
    images = first_pictures(out, rows)
    if not images:
        raise ConfigError(f"no row could be drawn: {report.splitlines()[0]}")
    alike = [image for image in images if image.shape == images[0].shape]
    return {"ui": {"text": (report,)}, "result": (torch.cat(alike), grid_picture(out), report)}


def given(out: Path, drawn: list[Tensor], most: int, report: str) -> dict[str, Any]:
    """What the node gives: pictures drawn, or else the first of the folder; the grid; a report."""
    from .batch_report import first_pictures, grid_picture

    images: list[Any] = drawn or first_pictures(out, most) or [host_execution.blocker()]
    grid: Any = grid_picture(out)
    grid = host_execution.blocker() if grid is None else grid
    return {"ui": {"text": (report,)}, "result": (images, grid, report)}
