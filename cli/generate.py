"""Draw sentences with any model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .generate_arguments import add_arguments, output_of
from .outcome import Outcome, memory_data

if TYPE_CHECKING:
    from flux_core import Images
    from flux_core.record import Note

HELP = "draw sentences with any model, by default the pocket model"
PREFIX = "generate"
__all__ = ["HELP", "add_arguments", "draw", "request_of", "run"]


def request_of(args: argparse.Namespace) -> dict[str, Any]:
    """All that decides the pictures; see ``generate_request``."""
    from .generate_request import request_of

    return request_of(args)


def draw(request: Mapping[str, Any], progress: Any = None) -> Images:
    """Draw the pictures of a request; see ``generate_draw``."""
    from .generate_draw import draw

    return draw(request, progress)


def run(args: argparse.Namespace) -> Outcome:
    from .generate_request import batches_of

    out = output_of(args)
    batches = batches_of(request_of(args))
    return drawn_and_saved(args, out, batches)


def drawn_and_saved(args: argparse.Namespace, out: Path, batches: list[dict[str, Any]]) -> Outcome:
    """Draw batch after batch; each is saved before the next is drawn."""
    from flux_core.offload import MemoryReport
    from flux_core.record import recording

    from .generate_draw import Opened
    from .progress import progress

    report, pictures, seeds = MemoryReport(), [], []
    with progress("drawing") as show:
        opened = Opened.of(batches[0])
        for number, batch in enumerate(batches):

            def step(done: int, total: int, before: int = number) -> None:
                show(before * total + done, len(batches) * total)

            with recording() as notes:
                images = opened.draw(batch, step)
            texts = receipts_of(images, notes, {} if args.private else batch)
            start = out if is_file(out) else out / PREFIX
            alone = len(batches) == len(images) == 1
            start = start if alone or not is_file(out) else out.with_suffix("")
            pictures += images.save(start, overwrite=args.overwrite and alone, texts=texts)
            seeds += images.seeds
            report.add(images.report)
    text = "\n".join([str(report), *(f"picture: {path}" for path in pictures)])
    return Outcome(text, {"pictures": pictures, "seeds": seeds, **memory_data(report)})


def is_file(out: Path) -> bool:
    """Whether pictures go into a file of that name, and not into a folder."""
    return out.suffix.lower() == ".png" and not out.is_dir()


def receipts_of(
    images: Images, notes: list[Note], command: Mapping[str, Any]
) -> list[dict[str, str]]:
    """What each picture says of how it was made, by the key of its text."""
    from flux_core.receipts import KEY, Receipt, pixels_hash

    receipt = Receipt.of_notes(notes, command=command)
    hashes = [pixels_hash(pixels) for pixels in images.pixels]
    return [
        {KEY: str(receipt.of_picture(pixels, "", index, len(hashes)))}
        for index, pixels in enumerate(hashes)
    ]
