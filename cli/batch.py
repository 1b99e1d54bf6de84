"""Draw a workflow over a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from .exit_codes import DONE, FAILED
from .files import find_workflow, named_path
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
    parser.add_argument(
        "--out", type=named_path, required=True, help="folder of pictures and manifest"
    )
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
    parser.add_argument("--no-sheet", action="store_true", help="write no page of the results")
    add_ray_arguments(parser)


def add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="draw on a Ray cluster (auto, or HOST:PORT); without an address on one of this "
        "machine, which ends with the command",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="with --ray: by default one for each card, or node without cards",
    )
    parser.add_argument(
        "--gpus-per-worker", type=float, help="with --ray: by default 1 where there are cards"
    )


def check_ray_arguments(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for what says nothing, before a table is read for it."""
    for name, least in {"workers": 1, "gpus_per_worker": 0}.items():
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is not None and args.ray is None:
            raise ValueError(f"{option} {value:g} says how to draw with --ray, which is not there")
        if value is not None and not value >= least:
            raise ValueError(f"{option} is {value:g}, expected at least {least}")
    if args.ray is not None:
        from ..batch.ray_cluster import import_ray, quiet

        quiet(args.ray)
        import_ray()


def run(args: argparse.Namespace) -> Outcome:
    from ..batch.grid import read_grid
    from ..batch.table import open_table

    workflow = find_workflow(args.workflow)
    if args.table is None and not args.grid:
        raise ValueError("expected a table, --grid, or both")
    for name in ("retries", "limit"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name} is {getattr(args, name)}, expected at least 0")
    check_ray_arguments(args)
    table = None if args.table is None else open_table(args.table)
    grid = read_grid(args.grid)

    from ..batch.columns import read_mapping
    from ..batch.draw import Drawer
    from ..batch.progress import BatchProgress
    from ..batch.row_graph import graph_of_rows
    from ..batch.run import Batch, BatchSettings, LocalWorker, Workers, run_batch
    from ..nodes import headless

    graph = graph_of_rows(headless.read_workflow(workflow))
    batch = Batch(graph, table, grid, read_mapping(args.map), args.out)
    settings = BatchSettings(
        args.retries, args.fail_fast, args.limit, args.private, sheet=not args.no_sheet
    )

    progress = BatchProgress()

    def workers() -> Workers:
        prompt = headless.to_api(graph)
        if args.ray is None:
            return LocalWorker(Drawer(prompt, private=args.private))
        from ..batch.ray_workers import RayWorkers

        return RayWorkers(
            prompt,
            args.out,
            args.private,
            args.ray,
            args.workers,
            args.gpus_per_worker,
            say=progress.say,
        )

    summary = run_batch(batch, settings, workers, progress)
    status = DONE if summary.whole else FAILED
    return Outcome(str(summary), summary.data(), status)
