"""Draw a sentence with the pocket model."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "draw a sentence with the pocket model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("--negative", default="")
    parser.add_argument("--cfg", type=float, default=2.5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--offload", default="component")
    parser.add_argument("--out", type=Path, default=Path("output"))


def run(args: argparse.Namespace) -> None:
    from flux_core import FluxPipeline, OffloadPolicy
    from flux_core.pocket import POCKET_SAMPLING

    from ..nodes import host
    from ..nodes.headless.stock_nodes import save_png

    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file, expected a folder")
    pipeline = FluxPipeline.from_pocket(
        precision=args.precision, policy=OffloadPolicy(args.offload)
    )
    with host.progress(args.steps, "drawing") as bar:
        drawn = pipeline(
            args.prompt,
            negative_prompt=args.negative,
            cfg=args.cfg,
            width=args.width,
            height=args.height,
            steps=args.steps,
            seed=args.seed,
            shift=POCKET_SAMPLING["shift"],
            callback=lambda step, total, _: bar.update(step + 1),
        )
    print(drawn.report)
    print(f"picture: {save_png(drawn.images[0], args.out.resolve() / 'generate')}")
