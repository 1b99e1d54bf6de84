"""Score the pocket Redux: does a drawing by a picture show what the picture does?

    python -m tools.pocket.score_redux

Pictures of held-out scenes, which are drawn anew, and judged by pixels alone: with an empty prompt,
with words that name the picture's shape, and with words that name another. A sheet shows each
picture and what was drawn by it.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flux_core import FluxPipeline, ReduxPrompt, load_redux, load_vision_encoder
from flux_core.pocket import POCKET_SAMPLING, pocket_file
from tools.pocket.scenes import SHAPES, Scene, draw, random_scene
from tools.pocket.score import SIDE, drawn, has_colours, is_right

#: What stands beside the picture in the prompt.
WORDINGS = NOTHING, ITS_SHAPE, OTHER = ("nothing", "its shape", "another shape")


def pictures(count: int) -> list[tuple[Scene, np.ndarray]]:
    """Held-out scenes of one thing with their pictures (SIDE, SIDE, 3) uint8."""
    rng = random.Random("redux score 1")
    scenes = [random_scene(rng, 1, held_out=True) for _ in range(count)]
    return [(scene, draw(scene, SIDE, rng)) for scene in scenes]


class Variations:
    """The pocket model with its vision encoder and Redux."""

    def __init__(self, precision: str = "bf16") -> None:
        self.pipeline = FluxPipeline.from_pocket(precision=precision)
        siglip, redux = pocket_file("clip_vision", "_siglip"), pocket_file("style_models", "_redux")
        self.vision = load_vision_encoder(siglip, precision=precision)
        self.redux = load_redux(redux, precision=precision)

    def draw(self, picture: np.ndarray, seed: int, text: str = "", **settings) -> np.ndarray:
        """A variation (SIDE, SIDE, 3) uint8 of a picture (H, W, 3) uint8."""
        shown = torch.from_numpy(picture.copy()).float()[None] / 255
        prompts = [ReduxPrompt(self.redux, self.vision, shown)]
        return drawn(self.pipeline, text, seed, image_prompts=prompts, **settings)


def other_shape(scene: Scene) -> Scene:
    """A scene of one thing with another shape."""
    thing = scene.things[0]
    shape = SHAPES[(SHAPES.index(thing.shape) + 3) % len(SHAPES)]
    return replace(scene, things=(replace(thing, shape=shape),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--words", nargs="+", choices=WORDINGS, default=WORDINGS)
    parser.add_argument("--steps", type=int, default=POCKET_SAMPLING["steps"])
    parser.add_argument("--cfg", type=float, default=POCKET_SAMPLING["cfg"])
    parser.add_argument("--out", type=Path, default=Path("output"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    variations = Variations()
    for words in args.words:
        right, coloured, rows = 0, 0, []
        for seed, (scene, shown) in enumerate(pictures(args.count)):
            wanted = other_shape(scene) if words == OTHER else scene
            text = "" if words == NOTHING else f"a {wanted.things[0].shape}"
            picture = variations.draw(shown, seed, text, steps=args.steps, cfg=args.cfg)
            right += is_right(picture, wanted)
            coloured += has_colours(picture, wanted)
            rows.append(np.concatenate([shown, picture], axis=1))
        print(
            f"{words}: of {args.count} pictures {coloured} have its colours, {right} the wanted "
            "shape too",
            flush=True,
        )
        sheet = [np.concatenate(rows[i : i + 5], axis=1) for i in range(0, len(rows) // 5 * 5, 5)]
        if sheet:
            name = f"score_redux_{words.replace(' ', '_')}.png"
            Image.fromarray(np.concatenate(sheet)).reduce(2).save(args.out / name)


if __name__ == "__main__":
    main()
