"""Say what a checkpoint holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from .outcome import Outcome

HELP = "say what a checkpoint holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)


def run(args: argparse.Namespace) -> Outcome:
    from flux_core.checkpoint.inspect import describe_file

    text = describe_file(args.file)
    return Outcome(text, {"file": args.file, "text": text})
