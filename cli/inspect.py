"""Say what a checkpoint or a LoRA holds, or how a picture was made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .files import refuse_missing
from .outcome import Outcome

if TYPE_CHECKING:
    from ..nodes.headless.replay import PictureFile

HELP = "say what a checkpoint or a LoRA holds, or how a picture was made"
LORA = "a LoRA"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)


def run(args: argparse.Namespace) -> Outcome:
    refuse_missing(args.file)
    from flux_core.checkpoint.inspect import describe_file, file_facts
    from flux_core.pictures import is_picture

    if is_picture(args.file):
        return about_picture(args.file)
    facts, text = file_facts(args.file), describe_file(args.file)
    if facts["holds"] != LORA:
        return Outcome(text, facts)
    from flux_core.lora.inspect import lora_facts

    lora = lora_facts(args.file)
    return Outcome(f"{text}\n{lora}", facts | {"lora": lora.to_json()})


def about_picture(path: Path) -> Outcome:
    """What a picture says of itself; raises ``ValueError`` naming it where that is nothing."""
    from ..nodes.headless.replay import PictureFile
    from ..nodes.headless.workflow_file import to_api

    picture = PictureFile.open(path)
    height, width = picture.pixels.shape[:2]
    graph = to_api(picture.graph) if picture.has_graph else None
    about, changed = about_receipt(picture)
    lines = [f"{path}: {width}x{height}", *about]
    lines.append("no graph" if graph is None else f"a graph of {len(graph)} nodes")
    receipt = None if picture.receipt is None else picture.receipt.to_json()
    data = {"width": width, "height": height, "changed": changed}
    return Outcome("\n".join(lines), {"file": path, **data, "receipt": receipt, "graph": graph})


def about_receipt(picture: PictureFile) -> tuple[list[str], bool | None]:
    """A picture's receipt in words, and whether its pixels are others; None where nothing says
    which they were. Raises ``FileError`` naming the file for a receipt that is damaged."""
    from flux_core.errors import FileError
    from flux_core.files import reading
    from flux_core.receipts.describe import describe_receipt

    from ..nodes.headless.replay import known_pixels

    if picture.receipt is None:
        return ["no receipt of FluxFit's"], None
    with reading(picture.path, "a picture with a receipt", FileError):
        about = describe_receipt(picture.receipt)
        if not known_pixels(picture.receipt):
            return [about, "the receipt does not say which pixels were saved"], None
        changed = picture.changed
    return [about, f"pixels {'changed since they were' if changed else 'as'} saved"], changed
