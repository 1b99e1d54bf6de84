"""Draw a sentence with the pocket model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .merge import file_and_strength
from .outcome import Outcome, memory_data

if TYPE_CHECKING:
    from flux_core.sampling.regional import RegionPrompt

HELP = "draw a sentence with the pocket model"
#: How far above 1 a sum of two numbers as they are typed may come.
ROUNDING = 1e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("--negative", default="")
    parser.add_argument("--cfg", type=float, help="2.5 by default, and 1 with --reference")
    parser.add_argument(
        "--nag-scale", type=float, help="normalized attention guidance away from --negative, 5 say"
    )
    parser.add_argument("--steps", type=int, default=30, help="30 by default")
    parser.add_argument("--seed", type=int, default=0, help="0 by default")
    side = "256 by default; the pocket model draws about that, for more take --hires"
    parser.add_argument("--width", type=int, default=256, help=side)
    parser.add_argument("--height", type=int, default=256, help=side)
    parser.add_argument(
        "--reference", action="append", default=[], metavar="PICTURE", help="a picture to look at"
    )
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar='"X,Y,W,H: WORDS"',
        help="a prompt for a box: left, top, width and height in shares of the picture; the words "
        "say the place and the background too",
    )
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[=STRENGTH]")
    parser.add_argument(
        "--tile", type=int, help="pixels of windows that a larger picture has; 256 with --hires"
    )
    parser.add_argument("--hires", type=float, help="draw again, larger by this")
    parser.add_argument(
        "--hires-denoise",
        type=float,
        default=0.3,
        help="how much is drawn again, 0.3 by default; with much more, windows draw things anew",
    )
    parser.add_argument("--precision", default="bf16", help="of weights; bf16 by default")
    parser.add_argument(
        "--offload", default="component", help="the policy: none, component, stream or auto"
    )
    parser.add_argument("--out", type=Path, default=Path("output"), help="a folder")


def run(args: argparse.Namespace) -> Outcome:
    from flux_core import FluxPipeline, OffloadPolicy
    from flux_core.pocket import POCKET_SAMPLING
    from flux_core.receipts import saved_pixels

    from ..nodes import host
    from ..nodes.headless.stock_nodes import save_png

    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file, expected a folder")
    more = options_of(args)
    pipeline = FluxPipeline.from_pocket(
        precision=args.precision, policy=OffloadPolicy(args.offload)
    )
    runs = 2 if args.hires else 1
    with host.progress(runs * args.steps, "drawing") as bar:
        drawn = pipeline(
            args.prompt,
            negative_prompt=args.negative,
            cfg=args.cfg if args.cfg is not None else 1.0 if args.reference else 2.5,
            width=args.width,
            height=args.height,
            steps=args.steps,
            seed=args.seed,
            shift=POCKET_SAMPLING["shift"],
            callback=lambda step, total, _: bar.update(step + 1),
            **more,
        )
    path = save_png(saved_pixels(drawn.images[0]), args.out.resolve() / "generate")
    data = {"pictures": [path], "seeds": [args.seed], **memory_data(drawn.report)}
    return Outcome(f"{drawn.report}\npicture: {path}", data)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What is asked for beside a plain prompt, as the pipeline has it; ``ValueError`` for numbers
    out of range."""
    from flux_core.pictures import open_picture
    from flux_core.sampling.guidance import GuidanceOptions
    from flux_core.sampling.hires import Hires
    from flux_core.sampling.nag import NormalizedAttentionGuidance
    from flux_core.sampling.tiles import UNIT, Tiling

    options: dict[str, Any] = {"loras": [file_and_strength(option) for option in args.lora]}
    if args.reference:
        options["reference"] = [open_picture(path) for path in args.reference]
        options["reference_size"] = "drawn"
    if args.region:
        options["regions"] = [region_of(option) for option in args.region]
    if args.nag_scale is not None:
        nag = NormalizedAttentionGuidance(scale=args.nag_scale)
        options["guidance_options"] = GuidanceOptions(nag=nag)
    size = 256 if args.tile is None else args.tile
    tiles = Tiling(size, size // 4 // UNIT * UNIT)
    if args.tile is not None:
        options["tiles"] = tiles
    if args.hires is not None:
        options["hires"] = Hires(args.hires, args.hires_denoise, tiles=tiles)
    return options


def region_of(option: str) -> RegionPrompt:
    """``X,Y,W,H: WORDS``, the box in shares of the picture; raises ``ValueError`` for anything
    else."""
    from flux_core.sampling.regional import RegionPrompt

    box, colon, words = option.partition(":")
    try:
        left, top, width, height = (float(number) for number in box.split(","))
    except ValueError as error:
        raise ValueError(
            f"--region {option}: expected left, top, width and height, a colon, and words, as in "
            "0,0,0.5,1: a red circle"
        ) from error
    if not colon or not words.strip():
        raise ValueError(f"--region {option}: has no words behind its box")
    if not (0 <= left < left + width <= 1 + ROUNDING and 0 <= top < top + height <= 1 + ROUNDING):
        raise ValueError(
            f"--region {option}: the box is not inside of the picture: width and height are above "
            "0, and left and width together, and top and height, 1 at most"
        )
    box_of = (left, top, min(1.0, left + width), min(1.0, top + height))
    return RegionPrompt(words.strip(), box=box_of)
