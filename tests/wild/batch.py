"""A large table: how fast its rows become jobs, and how much memory that takes.

    python -m tests.wild.batch --rows 1000000

Nothing is drawn but a few pictures that cost nothing. Ends with 1 where memory grows with the rows.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import tempfile
import time
from pathlib import Path

from fluxfit.batch.columns import Columns
from fluxfit.batch.jobs import JobMaker
from fluxfit.batch.plan import fill_queue
from fluxfit.batch.queue import JobQueue
from fluxfit.batch.table import open_table
from fluxfit.nodes.headless import from_api

from tests.batch.fake_batch import api_graph, draw_batch

#: Bytes by which memory may grow over reading a table of any length.
MOST_GROWTH = 200_000_000
SAMPLERS = ("euler", "heun")


def write_table(path: Path, rows: int) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "seed", "sampler", "cfg"])
        for row in range(rows):
            prompt = f"a photograph of product {row % 1000}, on a white table, number {row // 7}"
            writer.writerow([prompt, row, SAMPLERS[row % 2], 1 + row % 5])


def peak() -> int:
    """The most memory that this process had, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    parser = argparse.ArgumentParser(description="A table of many rows.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "table.csv"
        (folder / "warm").mkdir()
        draw_batch(folder / "warm", grid=("seed=1..100",))
        write_table(path, args.rows)
        before, started = peak(), time.process_time()
        queue = JobQueue()
        graph = from_api(api_graph())
        maker = JobMaker(graph, Columns(graph, {"prompt": "3.prompt"}))
        fill_queue(queue, maker, open_table(path), {}, print)
        filled = time.process_time()
        pending = queue.order()
        first = next(queue.pending())
        ordered = time.process_time()
        growth = peak() - before
        print(
            f"{args.rows} rows: {args.rows / (filled - started):.0f} in a second of a core, sorted "
            f"in {ordered - filled:.1f} s, {growth / 1e6:.0f} MB more memory; {pending} jobs, "
            f"the first of line {first.line}",
            flush=True,
        )
        queue.close()
        started = time.process_time()
        summary = draw_batch(folder, table=path, limit=10)
        growth = peak() - before
        print(
            f"a whole run that draws {summary.drawn} of {summary.jobs}: "
            f"{time.process_time() - started:.1f} s of a core, {growth / 1e6:.0f} MB more memory"
        )
    return int(growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
