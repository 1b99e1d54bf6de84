"""Add LoRAs to a transformer's weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from .files import named_path, refuse_output
from .outcome import Outcome

HELP = "add LoRAs to a transformer's weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    parser.add_argument("--lora", action="append", required=True, metavar="FILE[=STRENGTH]")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--out", type=named_path, required=True)
    parser.add_argument("--overwrite", action="store_true")


def run(args: argparse.Namespace) -> Outcome:
    from flux_core import load_transformer, save_module
    from flux_core.bounds import check_number
    from flux_core.checkpoint.inspect import describe_file
    from flux_core.checkpoint.reader import open_source
    from flux_core.lora import load_lora, match_lora, merge_loras

    refuse_output(args.out, args.overwrite)
    stack = []
    for option in args.lora:
        path, number = file_and_strength(option)
        check_number(number, f"--lora {option}: strength", -1000, 1000)
        stack.append((load_lora(path), number))
    notes = open_source(args.file).metadata
    module = merge_loras(load_transformer(args.file, precision=args.precision), stack)
    matches = [str(match_lora(lora, module)) for lora, _ in stack]
    kept = {k: v for k, v in notes.items() if k.startswith("fluxfit.latent")}
    save_module(module, args.out, metadata=kept)
    text = "\n".join([*matches, describe_file(args.out)])
    return Outcome(text, {"files": [args.out], "loras": matches})


def file_and_strength(option: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE=STRENGTH``; the name of a file may have an equals sign in it."""
    path, equals, strength = option.rpartition("=")
    if not equals or Path(option).is_file():
        return Path(option), 1.0
    try:
        return Path(path), float(strength)
    except ValueError as error:
        raise ValueError(f"--lora {option}: strength is {strength!r}, not a number") from error
