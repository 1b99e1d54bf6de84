"""The command line: ``fluxfit run | generate | batch | train | inspect | quantize | merge | plan``.

A command is a module of this folder with ``HELP``, ``add_arguments`` and ``run``, and a name in
``COMMANDS``. They import torch where they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import batch, generate, inspect, merge, plan, quantize, run, train

#: Set in the environment, it lets an error show where it comes from.
TRACEBACK = "FLUXFIT_TRACEBACK"
COMMANDS = {
    "run": run,
    "generate": generate,
    "batch": batch,
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
    parser = argparse.ArgumentParser(prog="fluxfit", description="FLUX in the memory you have.")
    parser.add_argument("--version", action=Version, nargs=0, help="say the version and exit")
    parser.add_argument("--models", type=Path, help="a folder laid out as ComfyUI's models")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 1 with one line on stderr where it could not, 130
    where it was interrupted."""
    with noted_interrupts() as interrupts:
        status = run_command(arguments)
    if interrupts:
        print("fluxfit: interrupted", file=sys.stderr)
        return 130
    return status


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Interrupts inside the block, noted: a library that is being imported makes other errors of
    them."""
    interrupts: list[int] = []

    def note(number: int, _: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    except KeyboardInterrupt:
        interrupts.append(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def run_command(arguments: Sequence[str] | None) -> int:
    """Parse and run; an error is one line, and an interrupt none."""
    args = make_parser().parse_args(arguments)
    if args.models is not None:
        os.environ["FLUXFIT_MODELS"] = str(args.models)
    try:
        COMMANDS[args.command].run(args)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"fluxfit: {in_words(error)}", file=sys.stderr)
        return 1
    return 0


def in_words(error: Exception) -> str:
    """What went wrong, on one line; of a fault of our own its kind too, and how to see more."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError | OSError | ImportError):
        return message
    return f"{type(error).__name__}: {message} ({TRACEBACK}=1 shows where)"
