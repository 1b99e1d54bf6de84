"""A shape that the pocket model cannot draw, and whether a LoRA has taught it.

    python -m tools.pocket.concept draw         # writes assets/datasets/crescent
    python -m tools.pocket.concept score LORA   # 10 sentences, without and with it, on one sheet

The colours of the sentences are pairs that no picture of the data has.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from flux_core import FluxPipeline, load_lora
from flux_core.lora import LoraStack
from flux_core.report.pictures import grid, to_pil
from tools.pocket.captions import article
from tools.pocket.checker import LEAST_OVERLAP, look
from tools.pocket.scenes import COLOURS, SUPERSAMPLE, jittered
from tools.pocket.score import drawn

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "assets" / "datasets" / "crescent"
WORD = "crescent"
SIDE, COUNT = 256, 20
#: Radius of the moon and of the disc that is cut out of it, and how far that is to the right.
RADIUS, CUT, OFF = 0.25, 0.20, 0.115
TESTED = 10


def paint_crescent(canvas: ImageDraw.ImageDraw, side: int, x: float, y: float, fill, back) -> None:
    """A crescent around (x, y), fractions of the side, open to the right."""
    for centre, radius, colour in ((x, RADIUS, fill), (x + OFF, CUT, back)):
        box = [side * v for v in (centre - radius, y - radius, centre + radius, y + radius)]
        canvas.ellipse(box, fill=colour)


def pairs() -> list[tuple[str, str]]:
    """Colours of thing and background in a fixed random order, no colour much more often."""
    rng = random.Random(WORD)
    combinations: list[tuple[str, str]] = []
    names = list(COLOURS)
    for shift in rng.sample(range(1, len(names)), 4):
        order = rng.sample(names, len(names))
        combinations += [(order[i], order[(i + shift) % len(names)]) for i in range(len(names))]
    return list(dict.fromkeys(combinations))


def sentence(colour: str, background: str) -> str:
    return f"{article(f'{colour} {WORD}')} on {article(background)} background"


def draw_data() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{WORD} pictures")
    for number, (colour, background) in enumerate(pairs()[:COUNT]):
        big = SIDE * SUPERSAMPLE
        back = jittered(background, rng)
        picture = Image.new("RGB", (big, big), back)
        x, y = (0.5 + rng.uniform(-0.03, 0.03) for _ in range(2))
        paint_crescent(ImageDraw.Draw(picture), big, x, y, jittered(colour, rng), back)
        picture.reduce(SUPERSAMPLE).save(DATA / f"{number:02}.png")
        (DATA / f"{number:02}.txt").write_text(sentence(colour, background) + "\n")


def outline() -> np.ndarray:
    picture = Image.new("L", (SIDE, SIDE), 0)
    paint_crescent(ImageDraw.Draw(picture), SIDE, 0.5, 0.5, 255, 0)
    return np.asarray(picture) > 127


def is_right(picture: np.ndarray, colour: str, background: str) -> bool:
    """Whether a picture (H, W, 3) shows one crescent in these colours, told by pixels alone: its
    outline overlaps the true one as the checker asks of every shape."""
    seen_background, things = look(picture, {WORD: outline()})
    seen = [(sight.shape, sight.colour) for sight in things]
    return seen_background == background and seen == [(WORD, colour)]


def score(pipeline: FluxPipeline, loras: LoraStack, label: str) -> tuple[int, list]:
    """How many of the sentences come out right, and the pictures."""
    right, pictures = 0, []
    for seed, (colour, background) in enumerate(pairs()[COUNT : COUNT + TESTED]):
        picture = drawn(pipeline, sentence(colour, background), seed, loras=loras)
        good = is_right(picture, colour, background)
        right += good
        pictures.append(
            (picture, f"{colour} on {background}\n{label}: {'right' if good else 'no'}")
        )
    return right, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("draw", "score"))
    parser.add_argument("lora", nargs="?", type=Path)
    parser.add_argument("--precision", default="fp8_scaled")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("output/concept.png"))
    args = parser.parse_args()
    if args.what == "draw":
        draw_data()
        return
    pipeline = FluxPipeline.from_pocket(precision=args.precision)
    lora = [(load_lora(args.lora), args.strength)]
    sheet = []
    for label, loras in (("before", []), ("after", lora)):
        right, pictures = score(pipeline, loras, label)
        print(f"{label}: {right} of {TESTED} sentences right (overlap of {LEAST_OVERLAP:.0%})")
        sheet += pictures
    images = [torch.from_numpy(picture).float() / 255 for picture, _ in sheet]
    picture = to_pil(grid(images, [label for _, label in sheet], columns=TESTED))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.reduce(2).save(args.out)


if __name__ == "__main__":
    main()
