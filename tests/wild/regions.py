"""Do regions get their colours? Pairs of things in the left and the right half, told by pixels.

    python -m tests.wild.regions --count 50 --out output

Each picture has a prompt for the whole ("white background") and one for each half ("a green ring on
the left side, white background"), of colours and a background drawn at random. It is right if the
largest thing that each half shows has the colour that its prompt says. Ends with 1 where fewer than
nine in ten are right. Also says how many show both colours and nothing else on one background
throughout, and, with ``--plain``, how many are right where one prompt says it all.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flux_core import FluxPipeline
from flux_core.sampling.conditioning import RegionalOptions
from flux_core.sampling.regional import RegionPrompt
from tools.pocket.captions import article
from tools.pocket.checker import look
from tools.pocket.scenes import COLOURS, SHAPES

SIDE, STEPS, CFG = 256, 15, 2.5
SHARE_RIGHT = 0.9
#: Colours nearer to each other than this are not told apart at a thing's soft edges.
LEAST_APART = 90


@dataclass(frozen=True)
class Pair:
    """Two things on a background, each a colour and a shape, the left one first."""

    things: tuple[tuple[str, str], tuple[str, str]]
    background: str

    @property
    def whole(self) -> str:
        """What is common to both halves."""
        return f"{self.background} background"

    @property
    def both(self) -> str:
        """All of it in one sentence."""
        left, right = (article(f"{colour} {shape}") for colour, shape in self.things)
        return f"{left} on the left and {right} on the right on {self.background}"

    @property
    def regions(self) -> list[RegionPrompt]:
        """A prompt for each half."""
        boxes = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
        return [
            RegionPrompt(
                f"{article(f'{colour} {shape}')} on the {side} side, {self.background} background",
                box,
            )
            for (colour, shape), side, box in zip(
                self.things, ("left", "right"), boxes, strict=True
            )
        ]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of things and backgrounds whose colours are told apart."""
    rng = random.Random(f"regions {seed}")
    drawn: list[Pair] = []
    while len(drawn) < count:
        left, right, back = rng.sample(sorted(COLOURS), 3)
        shapes = rng.choice(SHAPES), rng.choice(SHAPES)
        values = [np.array(COLOURS[name]) for name in (left, right, back)]
        apart = [np.linalg.norm(values[i] - values[i - 1]) for i in range(3)]
        if min(apart) >= LEAST_APART:
            drawn.append(Pair(((left, shapes[0]), (right, shapes[1])), back))
    return drawn


def has_its_colours(picture: np.ndarray, pair: Pair) -> bool:
    """Whether the largest thing in each half of a picture (H, W, 3) uint8 has its colour."""
    middle = picture.shape[1] // 2
    for half, (colour, _) in zip(
        (picture[:, :middle], picture[:, middle:]), pair.things, strict=True
    ):
        _, seen = look(np.ascontiguousarray(half))
        if not seen or seen[0].colour != colour:
            return False
    return True


def has_one_background(picture: np.ndarray, pair: Pair) -> bool:
    """Whether a picture (H, W, 3) uint8 shows both colours on the background, and nothing else."""
    background, seen = look(picture)
    colours = sorted(sight.colour for sight in seen)
    return background == pair.background and colours == sorted(c for c, _ in pair.things)


def drawn(
    pipeline: FluxPipeline, pair: Pair, seed: int, options: RegionalOptions | None = None, **more
) -> np.ndarray:
    """A picture (SIDE, SIDE, 3) uint8 of a pair, with regions unless ``plain``."""
    plain = more.pop("plain", False)
    images = pipeline(
        pair.both if plain else pair.whole,
        regions=() if plain else pair.regions,
        regional=options,
        seed=seed,
        **{"width": SIDE, "height": SIDE, "steps": STEPS, "cfg": CFG, "shift": "diffsynth"} | more,
    ).images
    return (images[0] * 255).round().to(torch.uint8).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description="Colours of two regions, told by pixels.")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="one prompt, without regions")
    parser.add_argument("--out", type=Path, help="folder for a sheet of all pictures")
    for name in ("share", "base", "across", "later"):
        default = getattr(RegionalOptions(), name)
        parser.add_argument(f"--{name}", type=float, default=default)
    args = parser.parse_args()
    options = RegionalOptions(args.share, args.base, args.across, args.later)
    pipeline = FluxPipeline.from_pocket(precision="fp32", policy="none")
    right, even, sheet = 0, 0, []
    some = pairs(args.first + args.count, args.seed)[args.first :]
    for number, pair in enumerate(some, args.first):
        picture = drawn(pipeline, pair, number, options, plain=args.plain)
        good = has_its_colours(picture, pair)
        right, even = right + good, even + has_one_background(picture, pair)
        if not good:
            print(f"  wrong: {number}, {pair.both!r}", flush=True)
        sheet.append(picture)
    print(f"{right} of {args.count} pairs have their colours, {even} on one background")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        blank = [np.zeros_like(sheet[0])] * (-len(sheet) % 10)
        sheet += blank
        rows = [np.concatenate(sheet[i : i + 10], axis=1) for i in range(0, len(sheet), 10)]
        Image.fromarray(np.concatenate(rows)).reduce(2).save(args.out / "regions.png")
    return int(right < SHARE_RIGHT * args.count)


if __name__ == "__main__":
    sys.exit(main())
