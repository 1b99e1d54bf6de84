"""A batch whose pictures cost nothing: one pixel, whose colour is a hash of the row's values."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fluxfit.batch.draw import Drawn, picture_name
from fluxfit.batch.grid import read_grid
from fluxfit.batch.jobs import Job
from fluxfit.batch.progress import BatchProgress
from fluxfit.batch.run import Batch, BatchSettings, LocalWorker, Summary, run_batch
from fluxfit.batch.table import open_table
from fluxfit.nodes.headless import from_api

from flux_core.receipts import KEY, Receipt, pixels_hash, png_bytes

LEAST: dict[str, Any] = {
    **{"steps": 1, "width": 64, "height": 64},
    **{"transformer_precision": "bf16", "t5_precision": "bf16"},
}
API = Path(__file__).resolve().parents[2] / "workflows" / "api"


def api_graph(name: str = "text_to_image") -> dict[str, Any]:
    """A shipped workflow at the least size and number of steps, nothing of it to be quantized."""
    data = json.loads((API / f"{name}.json").read_text())
    for item in data.values():
        item["inputs"] |= {key: LEAST[key] for key in LEAST if key in item["inputs"]}
    return data


class FakeDrawer:
    """Stands where a ``Drawer`` does."""

    def __init__(self, on_job: Callable[[Job], None] = lambda job: None, pictures: int = 1) -> None:
        self.on_job, self.pictures = on_job, pictures
        self.calls: Counter[str] = Counter()

    def draw(self, job: Job) -> list[Drawn]:
        self.calls[job.id] += 1
        self.on_job(job)
        return [self.picture(job, index) for index in range(self.pictures)]

    def picture(self, job: Job, index: int) -> Drawn:
        text = json.dumps([sorted(job.values.items()), index])
        pixels = np.frombuffer(hashlib.sha256(text.encode()).digest()[:3], np.uint8)
        pixels = pixels.reshape(1, 1, 3)
        receipt = Receipt(job={"id": job.id})
        receipt = receipt.of_picture(pixels_hash(pixels), "8", index, self.pictures)
        content = png_bytes(pixels, {KEY: str(receipt)})
        name = picture_name(job.id, "8", index, self.pictures)
        return Drawn(name, content, receipt.pixels)


class Lines(BatchProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def draw_batch(
    folder: Path,
    drawer: FakeDrawer | None = None,
    *,
    table: str | Path | None = None,
    grid: tuple[str, ...] = (),
    mapping: Mapping[str, str] | None = None,
    graph: dict[str, Any] | None = None,
    progress: Lines | None = None,
    **settings: Any,
) -> Summary:
    """Draw a batch into ``folder/out``; a table is a path, or the text of a CSV."""
    if isinstance(table, str):
        path = folder / "table.csv"
        path.write_text(table)
        table = path
    opened, values = None if table is None else open_table(table), read_grid(grid)
    names = [*values, *((opened and opened.columns) or ())]
    if mapping is None:
        streamed = opened is not None and opened.columns is None
        mapping = {"prompt": "3.prompt"} if streamed or "prompt" in names else {}
    batch = Batch(
        from_api(graph or api_graph()),
        opened,
        values,
        mapping,
        folder / "out",
    )
    worker = LocalWorker(drawer or FakeDrawer())  # type: ignore[arg-type]
    return run_batch(
        batch, BatchSettings(**{"sheet": False, **settings}), lambda: worker, progress or Lines()
    )


def entries(folder: Path) -> list[dict[str, Any]]:
    """What the manifest says of jobs."""
    lines = (folder / "out" / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def pictures(folder: Path) -> dict[str, bytes]:
    """Contents of all pictures by name."""
    return {path.name: path.read_bytes() for path in (folder / "out").rglob("*.png")}
