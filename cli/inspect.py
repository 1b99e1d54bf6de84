"""Say what a checkpoint holds."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "say what a checkpoint holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)


def run(args: argparse.Namespace) -> None:
    from flux_core.checkpoint.inspect import describe_file

    print(describe_file(args.file))
