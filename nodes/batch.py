"""The node that draws the graph before it for every row of a table, and the two that it puts into
the host's graph: ``batch/in_graph.py`` has what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flux_core.receipts import KEY

from . import host, host_execution
from .tables import RowsOf
from .widgets import ADVANCED, integer, socket, text
from .wires import BATCHES, FLUXFIT_TABLE

#: Rows that one run of the host draws at most: it keeps what nodes gave until the next.
MOST_ROWS = 200


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
        from ..batch.manifest import NAME

        out = host.inside(host.output_folder(), folder)
        looked_at = [out / NAME, *sorted((out / "pictures").glob("*"))]
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
        from ..batch.in_graph import Asked, draw_here, expand

        out = host.inside(host.output_folder(), folder)
        asked = Asked(prompt, unique_id, table, out, rows, retries)
        if not host_execution.node_classes():
            return draw_here(asked)
        host_execution.add_node_classes({part.__name__: part for part in PARTS})
        return expand(asked, *(part.__name__ for part in PARTS))


class FluxFitSaveRow:
    """Saves one row's pictures and notes that it is done; a part of FluxFitBatch."""

    CATEGORY = BATCHES
    FUNCTION = "save"
    OUTPUT_NODE = True
    DEPRECATED = True  # so that no list offers it
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": socket("IMAGE", "The row's pictures."),
                "node": text("", "The number of FluxFitBatch."),
                "job": text("", "The row's job."),
                "number": integer(1, 1, MOST_ROWS, "Which row of the run it is."),
            },
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
        from ..batch.in_graph import RUNS

        run = RUNS[node]
        files = run.save(job, images, node, (extra_pnginfo or {}).get(KEY))
        host_execution.show_progress(node, number, len(run.rows.jobs))
        host.tell_page({"text": run.progress(number)})
        shown = [host_execution.shown_file(run.batch.out / file) for file in files]
        return {"ui": {"images": shown}, "result": (images,)}


class FluxFitBatchEnd:
    """What all rows came to, when every one of them is saved or failed; a part of FluxFitBatch."""

    CATEGORY = BATCHES
    FUNCTION = "end"
    DEPRECATED = True
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    #: Wires that are waited for and not read: of a row that failed there is nothing to read.
    ROWS = {
        f"row_{number}": socket("IMAGE", "A row that is saved, or failed.", rawLink=True)
        for number in range(1, MOST_ROWS + 1)
    }

    @classmethod
    def INPUT_TYPES(cls):
        node = text("", "The number of FluxFitBatch.")
        return {"required": {"node": node}, "optional": cls.ROWS}

    @classmethod
    def IS_CHANGED(cls, **_: object):
        return float("nan")

    def end(self, node: str, **_: object):
        from ..batch.in_graph import RUNS, end_of

        return end_of(RUNS.pop(node))


#: What saves a row, and what comes after all of them.
PARTS = (FluxFitSaveRow, FluxFitBatchEnd)
