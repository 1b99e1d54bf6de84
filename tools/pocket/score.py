"""Score the pocket model: does a picture show what its sentence says?

100 sentences about one thing and 100 about two, on triples of shape, colour and background that
training never showed. A picture counts if the checker finds exactly the things named, each with its
shape and colour, on the background named. Also measures the upscaler against bicubic enlargement.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flux_core import Control, FluxPipeline, load_controlnet
from flux_core.pocket import POCKET_SAMPLING, pocket_file
from flux_core.report.pictures import psnr
from flux_core.sampling.images import to_pixels
from tools.pocket.cache import enlarged
from tools.pocket.captions import UNSAID, describe
from tools.pocket.checker import look
from tools.pocket.degrade import degrade
from tools.pocket.scenes import Scene, draw, random_scene

SIDE = 256


def prompts(count: int, things: int) -> list[tuple[str, Scene]]:
    """Sentences on held-out scenes that name the background."""
    rng = random.Random(f"score {things}")
    sentences = []
    while len(sentences) < count:
        scene = random_scene(rng, things, held_out=True)
        caption = describe(scene, rng)
        if caption.answers["background"] != UNSAID:
            sentences.append((caption.text, scene))
    return sentences


def is_right(picture: np.ndarray, scene: Scene) -> bool:
    """Whether the picture shows the scene's background and exactly its shapes and colours."""
    background, seen = look(picture)
    wanted = sorted((t.shape, t.colour) for t in scene.things)
    return (
        background == scene.background and sorted((s.shape or "", s.colour) for s in seen) == wanted
    )


def has_colours(picture: np.ndarray, scene: Scene) -> bool:
    """Whether background and colours are right, whatever the shapes."""
    background, seen = look(picture)
    wanted = {t.colour for t in scene.things}
    return background == scene.background and {s.colour for s in seen} == wanted


def drawn(pipeline: FluxPipeline, text: str, seed: int, **settings) -> np.ndarray:
    """One picture (SIDE, SIDE, 3) uint8."""
    options = {"width": SIDE, "height": SIDE} | POCKET_SAMPLING | settings
    images = pipeline(text, seed=seed, **options).images
    return (images[0] * 255).round().to(torch.uint8).numpy()


def score_prompts(
    pipeline: FluxPipeline, count: int, things: int, out: Path, **settings
) -> tuple[int, int]:
    """How many of ``count`` pictures are right, and how many in both colours alone.

    All are put on one sheet, framed in green or red.
    """
    right, coloured, sheet = 0, 0, []
    for seed, (text, scene) in enumerate(prompts(count, things)):
        picture = drawn(pipeline, text, seed, **settings)
        good = is_right(picture, scene)
        right += good
        coloured += has_colours(picture, scene)
        if not good:
            print(f"  wrong: {text!r}: {look(picture)}", flush=True)
        frame = np.full((SIDE + 8, SIDE + 8, 3), (0, 160, 0) if good else (200, 0, 0), np.uint8)
        frame[4:-4, 4:-4] = picture
        sheet.append(frame)
    rows = [np.concatenate(sheet[i : i + 10], axis=1) for i in range(0, len(sheet) // 10 * 10, 10)]
    if rows:
        Image.fromarray(np.concatenate(rows)).reduce(2).save(out / f"score_{things}.png")
    return right, coloured


def score_upscaler(
    pipeline: FluxPipeline, count: int, steps: int, out: Path
) -> tuple[float, float]:
    """Mean PSNR of the upscaler and of bicubic enlargement over held-out pictures."""
    net = load_controlnet(pocket_file("controlnet", "_upscaler"))
    rng = random.Random("upscale")
    ours, theirs, rows = [], [], []
    for seed in range(count):
        scene = random_scene(rng, held_out=True)
        sharp = torch.from_numpy(draw(scene, SIDE, rng).copy()).float()[None] / 255
        small = degrade(sharp)
        bicubic = enlarged(small, SIDE)
        cond = pipeline.vae.encode(to_pixels(bicubic)).float()
        picture = pipeline(
            describe(scene, rng).text,
            width=SIDE,
            height=SIDE,
            steps=steps,
            seed=seed,
            shift=POCKET_SAMPLING["shift"],
            controls=[Control(net, cond)],
        ).images
        ours.append(psnr(picture, sharp))
        theirs.append(psnr(bicubic, sharp))
        rows.append(torch.cat([bicubic[0], picture[0], sharp[0]], dim=1))
    sheet = (torch.cat(rows[:8]) * 255).to(torch.uint8).numpy()
    Image.fromarray(sheet).save(out / "score_upscaler.png")
    return float(np.mean(ours)), float(np.mean(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--upscales", type=int, default=50)
    parser.add_argument("--steps", type=int, default=POCKET_SAMPLING["steps"])
    parser.add_argument("--cfg", type=float, default=POCKET_SAMPLING["cfg"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, default=Path("output"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = FluxPipeline.from_pocket(precision=args.precision)
    settings = {"steps": args.steps, "cfg": args.cfg}
    for things in (1, 2):
        right, coloured = score_prompts(pipeline, args.count, things, args.out, **settings)
        print(
            f"{things} thing(s): {right} of {args.count} pictures show what the sentence says, "
            f"{coloured} have its colours"
        )
    if args.upscales:
        ours, theirs = score_upscaler(pipeline, args.upscales, args.steps, args.out)
        print(
            f"upscaler: {ours:.2f} dB, bicubic {theirs:.2f} dB, "
            f"{ours - theirs:+.2f} dB over {args.upscales} pictures"
        )


if __name__ == "__main__":
    main()
