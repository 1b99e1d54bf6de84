"""The command line, ``fluxfit COMMAND``: run, generate, batch, replay, train, inspect and others.

A command is a module of this folder with ``HELP``, ``add_arguments`` and ``run``, which returns an
``Outcome``, and a name in ``COMMANDS``. They import torch where they run, so that ``--help`` and a
wrong argument are answered at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from . import batch, generate, inspect, merge, plan, quantize, replay, run, train
from .exit_codes import FAILED, INTERRUPTED, exit_code
from .files import models_folder
from .outcome import Outcome, as_json, error_data
from .parser import JSON, Command, make_parser
from .standard_out import complain, printed

#: Set in the environment, it lets an error show where it comes from.
TRACEBACK = "FLUXFIT_TRACEBACK"
COMMANDS: dict[str, Command] = {
    "run": run,
    "generate": generate,
    "batch": batch,
    "replay": replay,
    "inspect": inspect,
    "plan": plan,
    "train": train,
    "merge": merge,
    "quantize": quantize,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status, see ``exit_codes``. What went wrong is one line on
    stderr, and with ``--json`` an object on stdout too."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with noted_interrupts() as interrupts:
        status = run_command(words)
    if interrupts:
        return tell_error(INTERRUPTED, "interrupted", JSON in words)
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


def run_command(words: Sequence[str]) -> int:
    """Parse and run; an error is one line, and an interrupt none."""
    in_json = JSON in words
    try:
        args = make_parser(COMMANDS).parse_args(words)
        in_json = args.json
        with environment_of(args), redirect_stdout(sys.stderr):
            outcome = COMMANDS[args.command].run(args)
        return tell(outcome, in_json)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        status = exit_code(error)
        return tell_error(status, in_words(error, status), in_json)


@contextmanager
def environment_of(args: argparse.Namespace) -> Iterator[None]:
    """What every command and the processes that it starts see: where models are, and whether
    progress is shown. Raises ``FileNotFoundError`` for a folder of models that is none."""
    asked: dict[str, str] = {}
    if args.models is not None:
        asked["FLUXFIT_MODELS"] = str(models_folder(args.models))
    if args.quiet:
        asked["FLUXFIT_QUIET"] = "1"
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def tell(outcome: Outcome, in_json: bool) -> int:
    """Print what was done; returns the exit status."""
    return printed(as_json(outcome.data) if in_json else outcome.text, outcome.status)


def tell_error(status: int, message: str, in_json: bool) -> int:
    """Print what went wrong; returns the exit status."""
    if in_json:
        printed(as_json(error_data(status, message)), status)
    complain(message)
    return status


def in_words(error: Exception, status: int) -> str:
    """What went wrong, on one line; of a fault of our own its kind too, and how to see more."""
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    message = " ".join(message.split()) or type(error).__name__
    if status != FAILED or isinstance(error, ValueError | OSError | ImportError):
        return message
    return f"{type(error).__name__}: {message} ({TRACEBACK}=1 shows where)"
