"""Run a workflow file without ComfyUI."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .exit_codes import DONE, FAILED
from .files import find_workflow
from .outcome import Outcome, memory_data

HELP = "run a workflow file (UI or API format)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", type=Path)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change a value; NODE is its number or class",
    )
    parser.add_argument(
        "--private", action="store_true", help="keep prompts and paths out of pictures' files"
    )


def run(args: argparse.Namespace) -> Outcome:
    from ..nodes import accounts, headless

    graph = headless.read_workflow(find_workflow(args.workflow))
    for assignment in args.set:
        headless.set_value(graph, assignment)
    started = time.monotonic()
    runner = headless.GraphRunner(args.private)
    results = runner.run(graph)
    seconds, pictures = time.monotonic() - started, headless.saved_images(results)
    batches = [batch for shown in runner.shown.values() for batch in shown.get("batch", ())]
    text = [str(accounts.total), *(f"picture: {path}" for path in pictures), *map(str, batches)]
    memory = memory_data(accounts.total)
    return Outcome(
        "\n".join([*text, f"took {seconds:.1f} s"]),
        {
            **{"pictures": pictures, "seconds": seconds, **memory},
            **({"batches": [batch.data() for batch in batches]} if batches else {}),
        },
        DONE if all(batch.whole for batch in batches) else FAILED,
    )
