"""Say what a checkpoint or a LoRA holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from .outcome import Outcome

HELP = "say what a checkpoint or a LoRA holds"
LORA = "a LoRA"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)


def run(args: argparse.Namespace) -> Outcome:
    from flux_core.checkpoint.inspect import describe_file, file_facts

    facts, text = file_facts(args.file), describe_file(args.file)
    if facts["holds"] != LORA:
        return Outcome(text, facts)
    from flux_core.lora.inspect import lora_facts

    lora = lora_facts(args.file)
    return Outcome(f"{text}\n{lora}", facts | {"lora": lora.to_json()})
