"""Draw a workflow over a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from .files import find_workflow
from .outcome import Outcome

HELP = "draw a workflow over a table of values"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", type=Path)
    parser.add_argument(
        "table",
        type=Path,
        nargs="?",
        help="CSV, JSON lines or Parquet; columns are NODE.INPUT, or an input that one node has",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures and manifest")
    parser.add_argument(
        "--grid",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUES",
        help="every value with every row: seed=1..8 sampler=euler,heun prompt=@lines.txt",
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="NAME=NODE.INPUT",
        help="what a column of the table sets, or a JSON file that says so; NAME= leaves it out",
    )
    parser.add_argument("--retries", type=int, default=0, help="more tries of a job that failed")
    parser.add_argument("--fail-fast", action="store_true", help="end with the first failed job")
    parser.add_argument("--limit", type=int, help="draw this many jobs at most")
    parser.add_argument(
        "--private", action="store_true", help="keep prompts and paths out of what is written"
    )


def run(args: argparse.Namespace) -> Outcome:
    from ..batch.grid import read_grid
    from ..batch.table import open_table

    workflow = find_workflow(args.workflow)
    if args.table is None and not args.grid:
        raise ValueError("expected a table, --grid, or both")
    for name in ("retries", "limit"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name} is {getattr(args, name)}, expected at least 0")
    table = None if args.table is None else open_table(args.table)
    grid = read_grid(args.grid)

    from ..batch.columns import read_mapping
    from ..batch.draw import Drawer
    from ..batch.run import Batch, BatchSettings, LocalWorker, run_batch
    from ..nodes import headless

    graph = headless.read_workflow(workflow)
    batch = Batch(graph, table, grid, read_mapping(args.map), args.out)
    settings = BatchSettings(args.retries, args.fail_fast, args.limit, args.private)
    summary = run_batch(
        batch, settings, lambda: LocalWorker(Drawer(headless.to_api(graph), private=args.private))
    )
    return Outcome(str(summary))
