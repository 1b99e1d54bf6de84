"""The command line: ``fluxfit run | generate | train | inspect | quantize | merge | plan``.

A command is a module of this folder with ``HELP``, ``add_arguments`` and ``run``, and a name in
``COMMANDS``. They import torch where they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import generate, inspect, merge, plan, quantize, run, train

COMMANDS = {
    "run": run,
    "generate": generate,
    "inspect": inspect,
    "plan": plan,
    "train": train,
    "merge": merge,
    "quantize": quantize,
}


class Version(argparse.Action):
    """Says the version, for which the core must be imported."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import flux_core

        print(f"fluxfit {flux_core.__version__}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fluxfit", description="FLUX.1 in the memory you have.")
    parser.add_argument("--version", action=Version, nargs=0, help="say the version and exit")
    parser.add_argument("--models", type=Path, help="a folder laid out as ComfyUI's models")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status, 1 with one line on stderr where it could not."""
    args = make_parser().parse_args(arguments)
    if args.models is not None:
        os.environ["FLUXFIT_MODELS"] = str(args.models)
    try:
        COMMANDS[args.command].run(args)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        print(f"fluxfit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fluxfit: interrupted", file=sys.stderr)
        return 130
    return 0
