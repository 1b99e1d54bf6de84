"""How long a batch's sheet takes to write and to open, and how long FLUX Batch looks at its table.

    python -m benchmarks.sheet --jobs 10000

Writes so many pictures of 192x256 pixels, each with a receipt, as a batch leaves them. The page is
opened where Playwright and Chromium are; the table is a grid of as many seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import runpy
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flux_core.receipts import Receipt, png_bytes

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "__main__.py"), run_name="fluxfit_command")["open_package"]()

from fluxfit.batch.host_rows import finish, next_rows  # noqa: E402  (the package is open now)
from fluxfit.batch.in_graph import Asked  # noqa: E402
from fluxfit.batch.row_graph import graph_to_draw  # noqa: E402
from fluxfit.batch.sheet import write_sheet  # noqa: E402
from fluxfit.nodes.tables import rows_of  # noqa: E402

SAMPLERS = ("euler", "heun", "dpm")
NODE = "9"  # FluxFitBatch in the shipped workflow


def write_batch(folder: Path, jobs: int) -> None:
    """Pictures of one colour and a manifest."""
    numbers = np.random.default_rng(0)
    with open(folder / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for n in range(jobs):
            job = hashlib.sha256(str(n).encode()).hexdigest()[:24]
            pixels = np.broadcast_to(numbers.integers(0, 256, 3, np.uint8), (256, 192, 3))
            path = folder / "pictures" / job[:2] / f"{job}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(np.ascontiguousarray(pixels), {"fluxfit": str(Receipt())}))
            values = {"prompt": f"picture {n % 7} " * 9, "seed": n // 3, "sampler": SAMPLERS[n % 3]}
            done = {"job": job, "line": n, "values": values, "seconds": 1.0}
            entry = done | {"files": [path.relative_to(folder).as_posix()]}
            manifest.write(json.dumps(entry) + "\n")


def measure(what: str, run: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = run()
    print(f"{what}: {time.perf_counter() - start:.2f} s")
    return result


def open_page(index: Path) -> None:
    """Open the page, then look for one word, in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 900})

        def until_shown() -> None:
            page.goto(index.as_uri())
            page.wait_for_selector(".card")

        measure("the page opens", until_shown)
        look = """() => {
            const start = performance.now()
            document.getElementById('search').value = '4 euler'
            filter()
            return performance.now() - start
        }"""
        print(f"a filter: {page.evaluate(look) / 1000:.3f} s")
        browser.close()


def plan(jobs: int, folder: Path) -> None:
    """What FLUX Batch does before and after the rows of one run."""
    prompt = json.loads((ROOT / "workflows" / "api" / "batch_table.json").read_text())
    asked = Asked(prompt, NODE, rows_of("(none)", f"seed=1..{jobs}", ""), folder, 20, 1)
    batch = asked.batch(graph_to_draw(prompt, NODE))
    measure("the next rows of a table", lambda: next_rows(batch, 20, 1))
    measure("results after a run", lambda: finish(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_batch(folder, jobs)
        measure("the sheet, first", lambda: write_sheet(folder))
        sheet = measure("the sheet, again", lambda: write_sheet(folder))
        try:
            open_page(sheet.page)
        except ImportError:
            print("Playwright is not installed: the page was not opened")
        plan(jobs, folder / "planned")


if __name__ == "__main__":
    main()
